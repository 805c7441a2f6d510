"""What a dashboard asks of Prometheus, with the answers that Grafana would put in place of its variables."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from tools.phases import Failure

SCRAPE = 15  # seconds, as Grafana takes it unless a question says otherwise


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show something: a row is a title."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: dict[str, Any]) -> list[str]:
    """Everything that it asks, the moments of releases included."""
    asked = [target["expr"] for panel in panels(board) for target in panel.get("targets", [])]
    return [*asked, *(one["expr"] for one in board["annotations"]["list"])]


def plain(expression: str, every: str = "", span: str = "1h") -> str:
    """With all hosts, models and replicas chosen. Grafana makes of `$__rate_interval` four times the interval of a
    question."""
    seconds = int(every.removesuffix("s")) if every else SCRAPE
    known = {"__rate_interval": f"{4 * seconds}s", "__range": span}
    return re.sub(r"\$(\w+)", lambda found: known.get(found.group(1), ".+"), expression)


def query_range(base: str, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
    words = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": step})
    try:
        with urllib.request.urlopen(f"{base}/api/v1/query_range?{words}", timeout=30) as answer:
            return list(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        raise Failure(f"Prometheus refuses {expression}: {error.read().decode()[:300]}") from None
    except OSError as error:
        raise Failure(f"Prometheus at {base} does not answer ({error}): is the lab up? `make demo`") from None
