"""Whether Prometheus gets its figures: a question to the estate that is reported and decides nothing."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

PATIENCE = 90.0  # a scrape happens every 15 s in the estate, and the first one may come just too early
PAUSE = 0.5
ANSWER = 10.0


class NoAnswerError(Exception):
    """The sentence says who gave none, and why."""


@dataclass(frozen=True)
class Seen:
    """Which targets Prometheus reports as up, and a sentence about it."""

    found: tuple[str, ...]
    missing: tuple[str, ...]
    said: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def watch(
    url: str,
    targets: Collection[str],
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Seen:
    """Wait until Prometheus reports every target as up. Not being seen is a finding, never a failure; a Prometheus
    that gives no answer is asked again until the patience is over too, since it may be starting."""
    begun = clock()
    while True:
        trouble = ""
        found: set[str] = set()
        try:
            found = up(url) & set(targets)
        except NoAnswerError as error:
            trouble = str(error)
        missing = sorted(set(targets) - found)
        seconds = clock() - begun
        if not missing or seconds > patience:
            return Seen(tuple(sorted(found)), tuple(missing), _said(url, found, missing, trouble, seconds), seconds)
        pause(PAUSE)


def _said(url: str, found: Collection[str], missing: list[str], trouble: str, seconds: float) -> str:
    if trouble:
        return f"{trouble}: the release is live, and nobody can say whether it is watched"
    if not missing:
        return f"Prometheus at {url} reports {len(found)} of {len(found)} targets as up"
    deaf = [why for target in missing if (why := _silent(target))]
    reason = "; ".join(deaf) if deaf else f"they answer this host, so see {url}/targets for the reason"
    return f"Prometheus at {url} does not report {', '.join(missing)} as up after {seconds:.0f} s: {reason}"


def _silent(target: str) -> str:
    try:
        _get(f"http://{target}/metrics")
    except NoAnswerError as error:
        return str(error)
    return ""


def up(url: str) -> set[str]:
    """What Prometheus gets figures from."""
    try:
        result = json.loads(_get(f"{url}/api/v1/query?query=up"))["data"]["result"]
        return {entry["metric"]["instance"] for entry in result if entry["value"][1] == "1"}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise NoAnswerError(f"{url} does not answer as Prometheus does") from error


def _get(url: str) -> bytes:
    # the estate's own hosts are asked directly, whatever proxy the environment names
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER) as answer:
            return bytes(answer.read())
    except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException) as error:
        raise NoAnswerError(f"{url} gives no answer ({getattr(error, 'reason', None) or error})") from error
