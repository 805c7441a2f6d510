"""The transaction as a unit of its own: it outlives whoever asked for it, and systemd cleans up if it is
killed."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failure import RefusedError
from .journal import read_story
from .layout import Layout
from .lock import holder

UNIT = "citadel-activate.service"
RESULTS = Path("/run/citadel-release")
PYTHON = "/usr/bin/python3"
PAUSE = 0.2

Run = Callable[[list[str]], subprocess.CompletedProcess[str]]


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Request:
    act: str
    release: str = ""
    force: bool = False
    who: str = ""
    keep: int = 5
    keep_bad: int = 2
    keep_revisions: int = 2

    def arguments(self, result: Path) -> list[str]:
        base = [PYTHON, "-B", "-m", "citadel", "release", self.act]
        if self.act == "activate":
            # a way back is run by what the host has, which may be from before this option
            base += [self.release, "--keep-revisions", str(self.keep_revisions)]
        elif self.act == "rollback" and self.release:
            base += ["--to", self.release]
        if self.act != "recover":
            base += ["--who", self.who or "somebody", *(["--force"] if self.force else [])]
            base += ["--keep", str(self.keep), "--keep-bad", str(self.keep_bad)]
        return [*base, "--result", str(result)]


def command(layout: Layout, request: Request, result: Path) -> list[str]:
    """After a kill of the transaction, systemd itself starts the recovery: nobody has to come and look."""
    recovery = Request("recover").arguments(result)
    return [
        "systemd-run",
        f"--unit={UNIT}",
        "--collect",
        "--quiet",
        "--description=Citadel release transaction",
        "--service-type=exec",
        f"--property=ExecStopPost={' '.join(recovery)}",
        "--property=TimeoutStopSec=2h",
        f"--setenv=PYTHONPATH={engine(layout, request)}",
        *request.arguments(result),
    ]


def engine(layout: Layout, request: Request) -> Path:
    """The code that runs the transaction: the new release's own, or, going back, the latest that this host
    has."""
    if request.act == "activate":
        return layout.release(request.release) / "host"
    if not layout.engine.is_dir():
        raise RefusedError("Nothing was ever deployed to this host, so there is nothing to go back to.")
    return layout.engine.resolve()


def begin(layout: Layout, request: Request) -> Path:
    """Start it; the file in which its outcome will be."""
    RESULTS.mkdir(mode=0o755, exist_ok=True)
    result = RESULTS / f"{uuid.uuid4().hex}.json"
    start(command(layout, request, result), layout)
    return result


def start(arguments: list[str], layout: Layout, run: Run = _run, patience: float = 10.0) -> None:
    """A unit that ended a moment ago may not be gone yet; one that runs is somebody else's transaction."""
    limit = time.monotonic() + patience
    while (done := run(arguments)).returncode:
        if "already" not in done.stderr or time.monotonic() > limit:
            raise RefusedError(f"The transaction could not be started: {done.stderr.strip()}")
        if active(run):
            raise RefusedError(holder(layout))
        time.sleep(PAUSE)


def follow(result: Path, timeout: float) -> dict[str, Any]:
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        # Asked before the file is looked for, so that an end between the two is not taken for a loss.
        over = not active()
        if result.exists():
            outcome: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            if over or outcome["outcome"] != "stuck":
                return outcome
        elif over:
            raise RefusedError(f"The transaction ended without a word. `journalctl -u {UNIT}` on the host says more.")
        time.sleep(PAUSE)
    raise RefusedError(
        f"The transaction still runs after {timeout:.0f} s. It goes on by itself: `journalctl -fu {UNIT}`."
    )


def follow_step(layout: Layout, result: Path, name: str, timeout: float) -> float | None:
    """Wait until a step has ended; how long it took, or None if the transaction ended without it."""
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        over = result.exists() or not active()
        for step in steps(layout):
            if step["name"] == name:
                return float(step["seconds"])
        if over:
            return None
        time.sleep(PAUSE)
    return None


def steps(layout: Layout) -> list[dict[str, Any]]:
    """The completed steps of the open transaction, or of the last one that ended."""
    story = read_story(layout)
    if story is None:
        newest = max(layout.journals.glob("*.jsonl"), default=None, key=lambda path: path.name)
        story = read_story(layout, newest) if newest else None
    return story.steps() if story else []


def active(run: Run = _run) -> bool:
    done = run(["systemctl", "is-active", UNIT])
    return done.stdout.strip() in {"active", "activating", "deactivating", "reloading"}
