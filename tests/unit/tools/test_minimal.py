"""`make check` inside of a minimal tree: what it needs of a machine on which nothing has run before."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab.settings import Lab
from tools import minimal, phases
from tools.phases import Journal

INSIDE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'check.json').write_text('{\"phases\": {\"ruff\": 1.5}}')"


def test_the_first_verb_of_a_machine_makes_the_place_for_its_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(phases, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(phases, "ROOT", tmp_path)
    monkeypatch.setattr(minimal, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(minimal, "copy_checkout", Path.mkdir)
    monkeypatch.setattr(minimal, "bare_tree", lambda cache, packages: cache / "tree")
    monkeypatch.setattr(minimal, "command", lambda *given: [sys.executable, "-c", INSIDE, given[-1]])
    lab = replace(Lab.from_environment(), cache=tmp_path / "never" / "there")
    journal = Journal("test")
    minimal.check(journal, lab, str)
    assert journal.times["make check in a minimal tree: ruff"] == 1.5
    assert list(lab.cache.iterdir()) == [], "the copy is gone"
