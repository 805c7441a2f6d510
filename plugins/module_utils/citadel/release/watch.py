"""Whether the estate's Prometheus watches what a release serves.

Only a deployment asks for this. The way back must not hang on a monitor, which may be what is broken.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Protocol

from .failure import FailedError
from .files import read_json
from .layout import Layout
from .manifest import Manifest

FILE = "config/prometheus.json"  # {"url": where Prometheus answers, "targets": [what it scrapes of this release]}
PATIENCE = 90.0  # a scrape happens every 15 s in the estate, and the first one may come just too early
PAUSE = 0.5
ANSWER = 10.0


class Watch(Protocol):
    def objections(self, manifest: Manifest) -> list[str]: ...
    def prove(self, manifest: Manifest) -> list[dict[str, Any]]: ...


class PrometheusWatch:
    def __init__(
        self,
        layout: Layout,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._layout = layout
        self._clock = clock
        self._pause = pause

    def objections(self, manifest: Manifest) -> list[str]:
        """A deployment that could not be proven in the end does not begin."""
        told = self._told(manifest)
        try:
            if told:
                _up(told["url"])
        except FailedError as error:
            return [f"{error}: start it, or take its host out of the inventory's group metrics_servers"]
        return []

    def prove(self, manifest: Manifest) -> list[dict[str, Any]]:
        """Every target gives its figures to whoever asks, and Prometheus says that it gets them."""
        told = self._told(manifest)
        wanted = set(told.get("targets", []))
        begun = self._clock()
        for target in sorted(wanted):
            _get(f"http://{target}/metrics")
        while wanted:
            missing = sorted(wanted - _up(told["url"]))
            if not missing:
                break
            if self._clock() - begun > PATIENCE:
                raise FailedError(
                    f"Prometheus at {told['url']} does not report {', '.join(missing)} as up after {PATIENCE:.0f} s: "
                    "see its page of targets for the reason"
                )
            self._pause(PAUSE)
        seconds = round(self._clock() - begun, 2)
        return [
            {"unit": "prometheus", "model": target, "answer": "up", "seconds": seconds} for target in sorted(wanted)
        ]

    def _told(self, manifest: Manifest) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self._layout.release(manifest.id) / FILE, {})
        return found


def _up(url: str) -> set[str]:
    """What Prometheus gets figures from."""
    try:
        result = json.loads(_get(f"{url}/api/v1/query?query=up"))["data"]["result"]
        return {entry["metric"]["instance"] for entry in result if entry["value"][1] == "1"}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FailedError(f"{url} does not answer as Prometheus does") from error


def _get(url: str) -> bytes:
    # the estate's own hosts are asked directly, whatever proxy the environment names
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER) as answer:
            return bytes(answer.read())
    except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
        raise FailedError(f"{url} gives no answer ({getattr(error, 'reason', None) or error})") from error
