"""docs/scope.md has every decision, and what it says to hold stands where it says."""

from __future__ import annotations

import re

from lab.settings import ROOT

ROWS = re.findall(r"^\| C(\d+) \| .+? \| (holds|open|left out) \| (.+) \|$", (ROOT / "docs/scope.md").read_text(), re.M)
PLACE = re.compile(r"`([\w/.@-]+)` ([^,]+?)(?:, (?=`)|\. |$)")


def test_every_decision_is_there_once() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 54))


def test_what_holds_stands_in_the_tree() -> None:
    missing = []
    for number, state, where in ROWS:
        places = PLACE.findall(where)
        if state == "holds" and not places:
            missing.append(f"C{number} names no place")
        for path, needle in places if state == "holds" else ():
            found = ROOT / path
            files = list(found.rglob("*.yml")) if found.is_dir() else [found]
            if not any(file.is_file() and needle in file.read_text(encoding="utf-8") for file in files):
                missing.append(f"C{number}: {path} has no {needle!r}")
    assert not missing
