"""A verb finds what is declared, and nothing else, however much the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import phases, programs, toolchain
from tools.phases import Failure, Journal


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The PATH of `make check`, made on a machine whose own PATH begins with a folder of somebody's."""
    own = tmp_path / "own"
    own.mkdir()
    for name in ("undeclared", "sed", "python3"):
        (own / name).write_text("#!/bin/sh\necho own\n")
        (own / name).chmod(0o755)
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "programs")
    monkeypatch.setenv("PATH", f"{own}:{os.environ['PATH']}")
    programs.confine("check")
    return own


def where(name: str) -> str | None:
    return shutil.which(name)


def test_a_phase_finds_what_is_declared_and_nothing_else(
    confined: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(phases, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(phases, "ROOT", tmp_path)
    declared = [name for need in programs.needs("check") for name in need.names()]
    assert programs.missing("check") == []
    journal = Journal("check")
    each = 'for name; do command -v "$name" || { echo "$name is not found"; exit 1; }; done'
    journal.phase("look", ["sh", "-c", each, "sh", *declared])
    with pytest.raises(Failure, match="not found"):
        journal.phase("look", ["sh", "-c", "undeclared"])
    # what each Debian has, and this verb does not say that it needs
    for name in ("find", "apt-get", "mmdebstrap", "ip"):
        assert where(name) is None, f"{name} is found"


def test_python_is_the_interpreter_that_runs_and_no_stand_in(confined: Path) -> None:
    said = subprocess.run(
        ["python3", "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == sys.version
    assert not Path(where("python3") or "").resolve().is_relative_to(confined)


def test_the_systems_own_program_is_taken_before_one_of_the_callers(confined: Path) -> None:
    assert Path(where("sed") or "").readlink() in {Path("/usr/bin/sed"), Path("/bin/sed")}


def test_a_program_that_only_the_callers_path_has_is_found_from_inside_too(
    confined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "NEEDS", (programs.Need("some-package", programs.EVERY, "undeclared"),))
    monkeypatch.setenv("PATH", f"{confined}:{os.environ['PATH']}")
    programs.confine("status")
    programs.confine("plan")
    assert Path(where("undeclared") or "").readlink() == confined / "undeclared"


def test_a_folder_of_an_earlier_list_is_mended(confined: Path) -> None:
    folder = programs.FOLDER / "check"
    (folder / "stray").symlink_to("/bin/sh")
    (folder / "git").unlink()
    (folder / "sh").unlink()
    (folder / "sh").symlink_to("/nowhere")
    programs.confine("check")
    assert where("stray") is None
    assert where("git") and where("sh")


def test_a_program_that_is_missing_is_named_with_its_package(
    confined: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = (
        programs.Need("some-package", programs.EVERY, "no-such-program"),
        programs.Need("another", programs.EVERY, there=lambda: False),
        programs.Need("not-missed", programs.EVERY, "no-such-program", optional=True),
    )
    monkeypatch.setattr(phases, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(programs, "NEEDS", wanted)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Failure, match=r"only root can install them: sudo apt-get install another some-package$"):
        toolchain.packages(Journal("check"))


def test_a_checkout_of_somebody_else_is_a_sentence(confined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/checkout/.cache")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Failure, match=r"/checkout/\.cache belongs to somebody else"):
        programs.confine("check")
