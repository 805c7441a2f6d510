"""Cases of alerts as promtool's test files: for each alert one, with the rules that it needs and no others."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citadel import rules
from citadel.alerts import ALERTS

Series = dict[str, str]
Rule = dict[str, Any]
RECORD = re.compile(r"\bcitadel:[\w:]+")
FOREIGN = 'job="of-somebody-else"'

OBJECTIVES = {"mean_ms": 500, "p95_ms": 750, "first_token_ms": 200, "per_token_ms": 150, "concurrent": 20}
NEIGHBOUR = "llm-02"


def _contract(host: str, *replicas: str) -> dict[str, Any]:
    at = {"citadel_host": host}
    models = [{"job": "citadel-llm-models", "labels": {**at, "model": one, "replica": one}} for one in replicas]
    others = [{"job": job, "labels": at} for job in ("citadel-llm-gateway", "citadel-llm-server")]
    return {"models": {"phi": {"objectives": OBJECTIVES}}, "scraped": [*models, *others]}


CONTRACTS = {"llm-01": _contract("llm-01", "phi"), NEIGHBOUR: _contract(NEIGHBOUR, "phi", "tiny")}
EVERY_ALERT = {alert.name: {"off": False} for alert in ALERTS}


@dataclass(frozen=True)
class Cases:
    """Of one alert: what makes it fire, with the labels that it has then; what nearly does; what does not."""

    at: str
    fires: Sequence[tuple[Series, Mapping[str, str]]]
    edge: Sequence[Series]
    quiet: Sequence[Series]
    step: str = "30s"
    alone: bool = False  # it is about all servers together, so none is put beside the first


def all_rules() -> list[Rule]:
    given = rules.Settings.of(EVERY_ALERT)
    return [rule for _, group in rules.groups(CONTRACTS, given) for rule in group]


def needed(alert: str, every: Iterable[Rule]) -> list[Rule]:
    """The alert and all that it is computed from, in the order in which it is computed."""
    every = list(every)
    names = {alert}
    while True:
        chosen = [rule for rule in every if (rule.get("alert") or rule["record"]) in names]
        found = names | {name for rule in chosen for name in RECORD.findall(rule["expr"])}
        if found == names:
            return chosen
        names = found


def write(folder: Path, alert: str, cases: Cases, every: Iterable[Rule]) -> Path:
    chosen = needed(alert, every)
    own = next(rule for rule in chosen if rule.get("alert") == alert)
    (folder / f"{alert}.rules.json").write_text(json.dumps({"groups": [{"name": "all", "rules": chosen}]}))
    tests = [_test(f"{alert} {number}", own, cases, *one) for number, one in enumerate(_situations(cases))]
    path = folder / f"{alert}.test.json"
    path.write_text(
        json.dumps({"rule_files": [f"{alert}.rules.json"], "evaluation_interval": cases.step, "tests": tests})
    )
    return path


def _situations(cases: Cases) -> Iterator[tuple[Series, Mapping[str, str] | None]]:
    """Series, and the labels of the alert if they make one: each case by itself, beside another server that is in the
    opposite case, and beside the same series of somebody else's jobs."""
    silent = [*cases.edge, *cases.quiet]
    yield from cases.fires
    yield from ((one, None) for one in silent)
    if cases.alone:
        return
    for number, (series, labels) in enumerate(cases.fires):
        other = silent[number % len(silent)]
        yield series | neighbour(other), labels
        yield series | foreign(other), labels
        yield foreign(series), None
    for number, series in enumerate(silent):
        other, labels = cases.fires[number % len(cases.fires)]
        yield series | neighbour(other), {**labels, "citadel_host": NEIGHBOUR}
        yield series | foreign(other), None


def foreign(series: Series) -> Series:
    """As another job would have it; without what is recorded, which has none."""
    changed = {re.sub(r'job="[^"]+"', FOREIGN, name): values for name, values in series.items()}
    return {name: values for name, values in changed.items() if name not in series}


def neighbour(series: Series) -> Series:
    return {name.replace('"llm-01"', f'"{NEIGHBOUR}"'): values for name, values in series.items()}


def _test(
    name: str, own: Rule, cases: Cases, series: Series, labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    expected = []
    if labels is not None:
        every = {"alertname": own["alert"], "alertstate": "firing", **own["labels"], **labels}
        written = ",".join(f"{key}={json.dumps(value)}" for key, value in every.items())
        expected = [{"labels": f"ALERTS{{{written}}}", "value": 1}]
    question = f'ALERTS{{alertname="{own["alert"]}",alertstate="firing"}}'
    return {
        "name": name,
        "interval": cases.step,
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [{"expr": question, "eval_time": cases.at, "exp_samples": expected}],
    }


def run(files: Iterable[Path]) -> str:
    """What promtool says is wrong; nothing if all is as expected."""
    done = subprocess.run(
        ["promtool", "test", "rules", *files], capture_output=True, text=True, check=False, timeout=300
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
