"""Running other programs, with their own words in the error when they fail."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.settings import LabError


def run(*command: str | Path, stdin: str | None = None) -> str:
    """Run a command and return what it printed; a failure is told with the command and its last lines."""
    arguments = [str(part) for part in command]
    try:
        done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LabError(f"`{arguments[0]}` is not installed on this machine, and the lab needs it.") from None
    if done.returncode != 0:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:])
        raise LabError(f"`{' '.join(arguments)}` failed with status {done.returncode}: {said}")
    return done.stdout


def succeeds(*command: str | Path) -> bool:
    """Whether a command ends well; one that is not installed does not."""
    try:
        return subprocess.run([str(part) for part in command], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def lines(*command: str | Path) -> Sequence[str]:
    return run(*command).splitlines()
