"""`make dashboards`: the JSON that Grafana is given, from Python; PICTURES=1 draws them from a lab's answers too."""

from __future__ import annotations

import os
from pathlib import Path

from tools import toolchain
from tools.phases import ROOT, Journal, say

FOLDER = ROOT / "roles" / "monitoring" / "files" / "dashboards"
PICTURES = ROOT / "docs" / "dashboards"


def dashboards() -> None:
    journal = Journal("dashboards")
    toolchain.python_tools(journal)
    _run(journal, "write the dashboards", "tools.dashboards")
    say(f"dashboards: {FOLDER.relative_to(ROOT)}")
    if os.environ.get("PICTURES") == "1":
        _run(journal, "draw them from the lab's answers", "tools.dashboards.pictures")
        say(f"dashboards: {PICTURES.relative_to(ROOT)}")


def _run(journal: Journal, name: str, module: str) -> None:
    # the SDK warns that a later Grafana has another format; the estate's has this one
    python: list[str | Path] = [toolchain.program("python"), "-W", "ignore::DeprecationWarning", "-m", module]
    journal.phase(name, python, toolchain.paths())
