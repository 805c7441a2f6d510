"""The file of rules for Prometheus: `alerts.py` for these servers, with these settings."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import contract
from .alerts import ALERTS, FIRST_TOKEN_EDGES, LATENCY_EDGES, RECORDED, SEVERITIES, Alert

MARK = "# of citadel-llm"
RUNBOOK = "docs/monitoring.md"
EVERY = 15.0  # seconds between two evaluations
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
JOBS = {"GATEWAY": contract.GATEWAY, "MODELS": contract.MODELS, "HOST": contract.HOST}

DURATION = re.compile(r"(?<![\w:.])(\d+)([smhd])\b")
AHEAD = re.compile(r"(?<=, )(\d+)([smhd])(?=\))")
JOB = re.compile(rf"(?<=\{{)({'|'.join(JOBS)})\b")
FAST_BURN = 14.4  # the largest factor of the budget that an alert waits for


class RulesError(ValueError):
    """One key, its value, and what it takes."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        super().__init__(f"citadel_alerts.{key} = {value!r}: {problem}")


@dataclass(frozen=True)
class Settings:
    """How an estate wants to be alerted."""

    scale: float = 1  # of every duration
    shortest: float = 60  # seconds that no window of a rate is shortened below: four scrapes
    objective: float = 0.99  # the share of requests that shall not fail
    requests: int = 20  # the fewest in a window that a share of errors is told of
    changed: Mapping[str, Alert] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Checked: numbers by their names, and what an alert's name has instead of its defaults."""
        if not isinstance(given, Mapping):
            raise RulesError("*", given, "give a mapping, such as {DiskLow: {threshold: 0.2}}")
        known = {alert.name: alert for alert in ALERTS}
        numbers: dict[str, Any] = {}
        changed = {}
        for key, value in given.items():
            if key in ("scale", "shortest", "objective", "requests"):
                numbers[key] = _number(key, value)
            elif key in known:
                changed[key] = _changed(known[key], value)
            else:
                raise RulesError(
                    key,
                    value,
                    "there is no such alert or setting; docs/monitoring.md has the alerts, and settings "
                    "are scale, shortest, objective, requests",
                )
        settings = cls(**numbers, changed=changed)
        settings._check()
        return settings

    def _check(self) -> None:
        for key in ("scale", "shortest", "requests"):
            if getattr(self, key) <= 0:
                raise RulesError(key, getattr(self, key), "give more than 0")
        if not 0 < self.objective < 1 or FAST_BURN * (1 - self.objective) >= 1:
            raise RulesError(
                "objective",
                self.objective,
                "give a share between 0.94 and 1, such as 0.99; below that no share of "
                "errors is ever 14.4 times what is allowed",
            )

    @property
    def alerts(self) -> list[Alert]:
        return [self.changed.get(alert.name, alert) for alert in ALERTS]

    def scaled(self, seconds: float) -> float:
        return round(seconds * self.scale, 3)

    def window(self, seconds: float) -> float:
        return seconds if self.scale >= 1 else max(min(self.shortest, seconds), self.scaled(seconds))


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RulesError(key, value, "give a number")
    return value


def _changed(alert: Alert, given: Any) -> Alert:
    if not isinstance(given, Mapping):
        raise RulesError(alert.name, given, "give a mapping of for, threshold, severity and off")
    changes: dict[str, Any] = {}
    for key, value in given.items():
        path = f"{alert.name}.{key}"
        if key == "for":
            changes["held"] = _seconds(path, value)
        elif key == "threshold" and alert.threshold is not None:
            changes["threshold"] = _number(path, value)
        elif key == "severity" and value in SEVERITIES:
            changes["severity"] = value
        elif key == "off" and isinstance(value, bool):
            changes["off"] = value
        else:
            raise RulesError(path, value, _problem(alert, key))
    return replace(alert, **changes)


def _problem(alert: Alert, key: str) -> str:
    if key == "threshold":
        return "this alert has none"
    wanted = {"severity": f"choose one of {', '.join(SEVERITIES)}", "off": "give true or false"}
    return wanted.get(key, "an alert takes for, threshold, severity and off")


def _seconds(path: str, value: Any) -> float:
    """A number of seconds, or as Prometheus writes it: 90s, 5m, 1h."""
    found = DURATION.fullmatch(value) if isinstance(value, str) else None
    if found:
        return float(int(found[1]) * UNITS[found[2]])
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise RulesError(path, value, "give seconds, or a duration such as 90s, 5m, 1h")
    return float(value)


def rendered(contracts: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The whole file. `contracts` are the published ones, by host."""
    of = Settings.of(settings)
    found = "".join(_group(*one, of) for one in groups(contracts, of))
    return f"{MARK}, which writes it anew\n" + (f"groups:\n{found}" if found else "groups: []\n")


def groups(
    contracts: Mapping[str, Mapping[str, Any]], settings: Settings
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Names of groups with their rules, as Prometheus has them. What is recorded comes first."""
    if not contracts:
        return
    yield "citadel_llm_contract", [*_objectives(contracts), *_expected(contracts)]
    yield (
        "citadel_llm_recording",
        [{"record": name, "expr": of_settings(expression, settings)} for name, expression in RECORDED.items()],
    )
    wanted = [alert for alert in settings.alerts if not alert.off]
    for group in dict.fromkeys(alert.group for alert in wanted):
        yield group, [rule(alert, settings) for alert in wanted if alert.group == group]


def _objectives(contracts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each model promises, as series that expressions compare with."""
    for host, published in contracts.items():
        for name, model in published["models"].items():
            for record, value in objectives(model["objectives"]):
                yield _constant(record, value, {"citadel_host": host, "model": name})


def objectives(of_model: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """In seconds; latencies that are looked up in a histogram at the next of its edges."""
    for key, record, edges in (
        ("p95_ms", "citadel:objective_p95:seconds", LATENCY_EDGES),
        ("mean_ms", "citadel:objective_mean:seconds", ()),
        ("first_token_ms", "citadel:objective_first_token:seconds", FIRST_TOKEN_EDGES),
        ("per_token_ms", "citadel:objective_per_token:seconds", ()),
    ):
        if key in of_model:
            yield record, rounded_up(of_model[key] / 1000, edges)
    if "concurrent" in of_model:
        yield "citadel:objective_concurrent:requests", of_model["concurrent"]


def rounded_up(seconds: float, edges: Sequence[float]) -> float:
    """To the next edge; beyond the last one nothing can be told, so that is the limit."""
    return edges[min(bisect_left(edges, seconds), len(edges) - 1)] if edges else seconds


def _expected(contracts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A target that no file names is not down, it is not there; so each is expected by name."""
    for published in contracts.values():
        for target in published["scraped"]:
            yield _constant("citadel:target:expected", 1, {"job": target["job"], **target["labels"]})


def _constant(record: str, value: float, labels: Mapping[str, str]) -> dict[str, Any]:
    return {"record": record, "expr": f"vector({value:g})", "labels": dict(labels)}


def rule(alert: Alert, settings: Settings) -> dict[str, Any]:
    expression = alert.expression
    if alert.threshold is not None:
        expression = expression.replace("THRESHOLD", f"{alert.threshold:.12g}")
    held = settings.scaled(alert.held)
    return {
        "alert": alert.name,
        "expr": of_settings(expression, settings),
        **({"for": written(held)} if held else {}),
        "labels": {"severity": alert.severity, "category": alert.category, "citadel": "llm"},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook": f"{RUNBOOK}#{alert.name.lower()}",
            "dashboard": dashboard(alert),
        },
    }


def dashboard(alert: Alert) -> str:
    which = f"/d/citadel-{alert.dashboard}?var-citadel_host={{{{ $labels.citadel_host }}}}"
    return f"{which}&var-model={{{{ $labels.model }}}}" if "$labels.model }" in alert.summary else which


def of_settings(expression: str, settings: Settings) -> str:
    """Jobs, budget and requests put in, durations shortened."""
    text = JOB.sub(lambda found: f'job="{JOBS[found[1]]}"', expression)
    text = text.replace("BUDGET", f"{1 - settings.objective:.6g}").replace("REQUESTS", f"{settings.requests}")
    # how far a line is drawn ahead is a number of seconds for Prometheus, and no duration
    text = AHEAD.sub(lambda found: f"{settings.scaled(int(found[1]) * UNITS[found[2]]):g}", text)
    return DURATION.sub(lambda found: written(settings.window(int(found[1]) * UNITS[found[2]])), text)


def written(seconds: float) -> str:
    """As Prometheus takes a duration."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % UNITS[unit] == 0:
            return f"{int(seconds) // UNITS[unit]}{unit}"
    return f"{round(seconds * 1000)}ms"


def _group(name: str, rules: Sequence[Mapping[str, Any]], settings: Settings) -> str:
    interval = written(max(5.0, settings.scaled(EVERY)) if settings.scale < 1 else EVERY)
    return f"- name: {name}\n  interval: {interval}\n  rules:\n" + "".join(_yaml(one) for one in rules)


def _yaml(one: Mapping[str, Any]) -> str:
    """Block style for people; every text that could be read as something else in JSON's, which YAML takes."""
    kind = "alert" if "alert" in one else "record"
    lines = [f"  - {kind}: {json.dumps(one[kind])}", "    expr: |-"]
    lines += [f"      {line}" for line in one["expr"].splitlines()]
    if "for" in one:
        lines.append(f"    for: {one['for']}")
    for part in ("labels", "annotations"):
        if part in one:
            lines.append(f"    {part}:")
            lines += [f"      {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in one[part].items()]
    return "\n".join(lines) + "\n"
