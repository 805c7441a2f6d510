"""Whether Prometheus gets its figures: a question to the estate that is reported and decides nothing."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PATIENCE = 90.0  # a scrape happens every 15 s in the estate, and the first one may come just too early
PAUSE = 0.5
ANSWER = 10.0


class NoAnswerError(Exception):
    """The sentence says who gave none, and why."""


@dataclass(frozen=True, order=True)
class Watched:
    """A target as the labels of `up` tell it from others: one address may serve several."""

    host: str
    job: str
    instance: str
    model: str = ""
    replica: str = ""
    path: str = field(default="/metrics", compare=False)

    @classmethod
    def of(cls, target: Mapping[str, Any]) -> Watched:
        """One of the contract's."""
        labels = target["labels"]
        told = (labels["citadel_host"], target["job"], target["address"])
        return cls(*told, labels.get("model", ""), labels.get("replica", ""), target["path"])

    @classmethod
    def found(cls, metric: Mapping[str, str]) -> Watched:
        names = ("citadel_host", "job", "instance", "model", "replica")
        return cls(*(metric.get(name, "") for name in names))

    def __str__(self) -> str:
        return f"{self.replica or self.job} of {self.host}"


@dataclass(frozen=True)
class Seen:
    """Which targets Prometheus reports as up, and a sentence about it."""

    found: tuple[str, ...]
    missing: tuple[str, ...]
    others: tuple[str, ...]
    said: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def watch(
    url: str,
    targets: Collection[Watched],
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Seen:
    """Wait until Prometheus reports every target as up, and of their hosts nothing else. Not being seen is a finding,
    never a failure; a Prometheus that gives no answer is asked again until the patience is over too, since it may be
    starting."""
    begun = clock()
    hosts = {target.host for target in targets}
    while True:
        trouble = ""
        known: dict[Watched, bool] = {}
        try:
            known = {one: good for one, good in up(url).items() if one.host in hosts}
        except NoAnswerError as error:
            trouble = str(error)
        found = sorted(target for target in targets if known.get(target))
        missing = sorted(set(targets) - set(found))
        others = sorted(set(known) - set(targets))
        seconds = clock() - begun
        if seconds > patience or not (missing or others):
            if trouble:
                said = f"{trouble}: the release is live, and nobody can say whether it is watched"
            else:
                said = _said(url, len(found), missing, others, seconds)
            return Seen(_names(found), _names(missing), _names(others), said, seconds)
        pause(PAUSE)


def _names(targets: Sequence[Watched]) -> tuple[str, ...]:
    return tuple(map(str, targets))


def _said(url: str, found: int, missing: Sequence[Watched], others: Sequence[Watched], seconds: float) -> str:
    if not missing and not others:
        return f"Prometheus at {url} reports {found} of {found} targets as up"
    said = []
    if missing:
        deaf = list(dict.fromkeys(why for target in missing if (why := _silent(target))))
        reason = "; ".join(deaf) if deaf else f"they answer this host, so see {url}/targets for the reason"
        said.append(f"does not report {', '.join(map(str, missing))} as up after {seconds:.0f} s: {reason}")
    if others:
        said.append(f"still asks for {', '.join(map(str, others))} after {seconds:.0f} s")
    return f"Prometheus at {url} {', and '.join(said)}"


def _silent(target: Watched) -> str:
    try:
        _get(f"http://{target.instance}{target.path}")
    except NoAnswerError as error:
        return str(error)
    return ""


def up(url: str) -> dict[Watched, bool]:
    """What Prometheus asks for, and whether it gets figures from it."""
    try:
        result = json.loads(_get(f"{url}/api/v1/query?query=up"))["data"]["result"]
        return {Watched.found(entry["metric"]): entry["value"][1] == "1" for entry in result}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NoAnswerError(f"{url} does not answer as Prometheus does") from error


def _get(url: str) -> bytes:
    # the estate's own hosts are asked directly, whatever proxy the environment names
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER) as answer:
            return bytes(answer.read())
    except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException) as error:
        raise NoAnswerError(f"{url} gives no answer ({getattr(error, 'reason', None) or error})") from error
