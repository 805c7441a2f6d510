"""Tests find the programs that tools/programs.py declares, whoever starts them."""

from __future__ import annotations

import os

from tools import programs, toolchain


def pytest_configure() -> None:
    # `make check` and `make test` have seen to it; a pytest of one's own has what `make test` has
    if str(programs.FOLDER) not in os.environ["PATH"]:
        programs.confine("test")
        os.environ.update(toolchain.environment())
