"""Small wrongs are put into the rules, one at a time; the cases have to notice. A sample, or all: MUTANTS=all.

A mutant is one metric renamed, one label dropped, one comparison turned round, or one number in another unit.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.unit.rules.cases import CASES
from tests.unit.rules.promtool import Rule, all_rules, needed, run, write

SAMPLE, SEED = 25, 1
BOUND = 0.9  # of the mutants are caught; what lives is printed
METRIC = re.compile(r"\b(?!citadel_host\b)(?:llm|node|citadel|vllm:|up\b)[\w:]*(?=[{\[) \n]|$)")
GROUPED = re.compile(r"\b(by|on) \(([^)]+)\)")
MATCHER = re.compile(r'(?<=[{ ])\w+(?:=~|!~|!=|=)"(?:[^"\\]|\\.)*"(?:, )?')
COMPARED = re.compile(r"(?<= )(==|!=|>=|<=|>|<)(?= )")
TURNED = {"==": "!=", "!=": "==", ">": "<", "<": ">", ">=": "<", "<=": ">"}
NUMBER = re.compile(r'(?<![\w:."$\[{])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w:"\]])')


@dataclass(frozen=True)
class Mutant:
    index: int  # of the rule
    what: str
    expression: str


def mutants_of(index: int, rule: Rule) -> Iterator[Mutant]:
    text = rule["expr"]

    def put(start: int, end: int, other: str, what: str) -> Mutant:
        name = rule.get("alert") or rule["record"]
        return Mutant(
            index, f"{name}: {what} in {text[max(0, start - 30) : end + 30]!r}", text[:start] + other + text[end:]
        )

    for found in METRIC.finditer(text):
        yield put(*found.span(), f"{found[0]}_gone", f"{found[0]} renamed")
    for found in GROUPED.finditer(text):
        labels = found[2].split(", ")
        for label in labels:
            rest = ", ".join(one for one in labels if one != label)
            yield put(*found.span(2), rest, f"{found[1]} without {label}")
    for found in MATCHER.finditer(text):
        yield put(*found.span(), "", f"without {found[0]}")
    for found in COMPARED.finditer(text):
        yield put(*found.span(), TURNED[found[1]], f"{found[1]} turned round")
    for found in NUMBER.finditer(text):
        # what is expected is a series, whatever its value
        if float(found[0]) and text != "vector(1)":
            yield put(*found.span(), f"{float(found[0]) * 1000:g}", f"{found[0]} x 1000")
            yield put(*found.span(), f"{float(found[0]) / 1000:g}", f"{found[0]} / 1000")


def survives(mutant: Mutant, every: list[Rule]) -> bool:
    wrong = [{**rule, "expr": mutant.expression} if at == mutant.index else rule for at, rule in enumerate(every)]
    touched = [name for name in CASES if wrong[mutant.index] in needed(name, wrong)]
    with tempfile.TemporaryDirectory(prefix="citadel-rules-") as folder:
        return not touched or run([write(Path(folder), name, CASES[name], wrong) for name in touched]) == ""


def test_a_wrong_in_the_rules_is_noticed() -> None:
    every = all_rules()
    # a target of another model is the same rule once more; what nothing alerts on is for dashboards
    used = {id(rule) for name in CASES for rule in needed(name, every)}
    everything = [mutant for index, rule in enumerate(every) if id(rule) in used for mutant in mutants_of(index, rule)]
    chance = random.Random(SEED)  # a sample, no secret
    chosen = everything if os.environ.get("MUTANTS") == "all" else chance.sample(everything, SAMPLE)
    alive = [mutant for mutant in chosen if survives(mutant, every)]
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants caught", *(one.what for one in alive), sep="\n")
    assert len(alive) <= (1 - BOUND) * len(chosen), "\n".join(one.what for one in alive)
