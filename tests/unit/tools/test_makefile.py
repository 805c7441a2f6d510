"""What a verb inherits from make, where no shell stands between the two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.phases import ROOT

SHOW = "import os; print(sorted(name for name in os.environ if not name.isidentifier() or name == 'TO'))"


def test_every_name_is_one_that_a_program_can_set_again(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    (tmp_path / "Makefile").write_text(f"include {ROOT}/Makefile\nshow:\n\t@{sys.executable} {tmp_path}/show.py\n")
    plain = {"PATH": os.environ["PATH"]}
    words = ["make", "-f", str(tmp_path / "Makefile"), "show"]
    done = subprocess.run(words, env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['TO']"
