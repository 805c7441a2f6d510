"""What the real programs export: recorded by `python -m tests.expositions record`, read by tests."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("gateway", "vllm", "node", "prometheus", "citadel")
SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# what Prometheus and the contract add to everything that is scraped
ADDED = {"job", "instance", "citadel_host"}
OF_TARGET = {"vllm": {"model", "replica"}}
SYNTHETIC = {
    **{key: {"model", "replica"} for key in ("up", "scrape_duration_seconds", "scrape_samples_scraped")},
    "ALERTS": {"model", "replica", "unit", "alertname", "alertstate", "severity", "category", "citadel"},
}
# they come with work that is not done; the alerts that ask for them are off
AWAITED = {
    "llm_business_value_score",
    "llm_business_value_threshold",
}

WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool", "inf"}
WORDS |= {"nan"}
TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
BRACED = re.compile(r"([a-zA-Z_:][\w:]*)?\s*\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
BARE = re.compile(r"(?<![\w:$.])([a-zA-Z_:][\w:]*)(?![\w:]*\s*\()")


@dataclass(frozen=True)
class Exposition:
    series: dict[str, dict[str, set[str]]]  # name -> label -> its values

    def edges(self, histogram: str) -> set[float]:
        return {float(edge) for edge in self.series.get(f"{histogram}_bucket", {}).get("le", set())}


def read(name: str) -> Exposition:
    found: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in (HERE / f"{name}.prom").read_text(encoding="utf-8").splitlines():
        sample = None if line.startswith("#") else SAMPLE.match(line)
        if sample:
            labels = found[sample[1]]
            for label, value in LABEL.findall(sample[2] or ""):
                labels[label].add(value)
            for label in ADDED | OF_TARGET.get(name, set()):
                labels[label].update(())
    return Exposition({name: dict(labels) for name, labels in found.items()})


def everything() -> dict[str, dict[str, set[str]]]:
    """All of them; a name that two programs have, such as a process' memory, has the labels of both."""
    merged = {name: {label: set[str]() for label in ADDED | labels} for name, labels in SYNTHETIC.items()}
    for exposition in map(read, NAMES):
        for metric, labels in exposition.series.items():
            for label, values in labels.items():
                merged.setdefault(metric, {}).setdefault(label, set()).update(values)
    return merged


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Every metric that an expression names, with its matchers."""
    rest = GROUPING.sub(" ", expression)
    for found in BRACED.finditer(rest):
        if found[1]:
            yield found[1], MATCHER.findall(found[2])
    rest = re.sub(r"\[[^\]]*\]", " ", TEXT.sub(" ", BRACED.sub(" ", rest)))
    for name in BARE.findall(rest):
        if name.lower() not in WORDS and not re.fullmatch(r"\d+[smhdwy]", name):
            yield name, []


def wrong(expression: str, known: dict[str, dict[str, set[str]]]) -> Iterator[str]:
    """What an expression names that nothing exports: a metric, a label of it, a value that a label never has.

    `known` has the recorded series of the rules too. A label by which is grouped has to be one of some metric there.
    """
    named = set()
    for metric, matchers in selectors(expression):
        if metric in AWAITED:
            named |= ADDED | {"model"}
            continue
        if metric not in known:
            yield f"nothing exports {metric}"
            continue
        labels = known[metric]
        named |= set(labels)
        for label, how, value in matchers:
            if label not in labels:
                yield f"{metric} has no label {label}"
            elif "$" not in value and how in ("=", "=~") and labels[label] and not has(how, value, labels[label]):
                yield f"{label} of {metric} is never {value!r}"
    made = set(re.findall(r'label_(?:replace|join)\([^"]*?"(\w+)"', re.sub(r"\{[^}]*\}", "", expression)))
    for group in GROUPING.findall(expression):
        for label in filter(None, (one.strip() for one in group.split(","))):
            if label not in named | made:
                yield f"nothing in it has the label {label}"


def has(how: str, value: str, values: Iterable[str]) -> bool:
    return value in values if how == "=" else any(re.fullmatch(value, one) for one in values)
