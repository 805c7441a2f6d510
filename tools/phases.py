"""Long work told in phases: what runs, for how long, where its log is; and one clear paragraph when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"

PATIENCE = 10.0  # seconds between asking a phase to end, telling it, and ending it

TASK = re.compile(r"^(?:TASK|RUNNING HANDLER|PLAY) \[(.*?)\]")
FATAL = re.compile(r"^(?:fatal|failed): \[([^\]]+)\]")
MESSAGE = re.compile(r"^\[ERROR\]: (?:Task failed: )?(?:Action failed: |Module failed: )?(.*)")
RECAP = re.compile(r"^(\S+)\s+: ok=\d+.*\bunreachable=(\d+)\s+failed=(\d+)")
# a new API key is shown once, and a log is not where
SECRET = re.compile(r"(ck_[0-9a-f]{8}_)[A-Za-z0-9_-]+")
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Failure(Exception):
    """One paragraph for the person at the keyboard."""


class Stopped(Exception):
    """What runs beside this has failed, and says why."""


@dataclass
class Running:
    """The phases that run now: one, and one beside it at most."""

    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True
        for process in list(self.processes):
            end(process)


@dataclass
class Journal:
    """The phases of one verb, their times, and one log for all of them."""

    verb: str
    started: float = field(default_factory=time.monotonic)
    times: dict[str, float] = field(default_factory=dict)
    running: Running = field(default_factory=Running)
    part: str = ""  # what runs beside the rest has a log of its own, and no line that moves

    def __post_init__(self) -> None:
        REPORTS.mkdir(exist_ok=True)
        self.log = REPORTS / f"{self.verb}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}{self.part}.log"

    @contextlib.contextmanager
    def beside(self, part: str, work: Callable[[Journal], None]) -> Iterator[None]:
        """Do this work while the block runs. What fails first ends the other and is what is told."""
        failed: list[BaseException] = []

        def fail(error: BaseException) -> None:
            failed.append(error)
            self.running.stop()

        def run() -> None:
            try:
                work(replace(self, part=f"-{part}"))
            except BaseException as error:
                fail(error)

        thread = threading.Thread(target=run, name=part)
        thread.start()
        try:
            yield
        except BaseException as error:
            fail(error)
        thread.join()
        if failed:
            raise failed[0]

    def phase(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        show: Callable[[str], str | None] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Run a command with its output in the log; what `show` makes of a line is shown on the screen."""
        begun = time.monotonic()
        if self.running.stopped:
            raise Stopped(name)
        if not self.log.exists():
            self.log.touch()
            say(f"{self.verb}: the full log is {self.log.relative_to(ROOT)}")
        progress = Progress(name, moves=not self.part)
        with self.log.open("a") as log:
            log.write(f"\n=== {name}: {' '.join(map(str, command))}\n")
            log.flush()
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder or ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # of its own, so that Ctrl-C reaches us alone and we can end it in good order
                start_new_session=True,
            )
            self.running.processes.append(process)
            if self.running.stopped:  # while this one was started
                end(process)
            try:
                with progress:
                    printed = self._follow(process, log, progress, show)
            except BaseException:
                end(process)
                raise
            finally:
                self.running.processes.remove(process)
        self.times[name] = time.monotonic() - begun
        if process.returncode != 0:
            raise Failure(self._failure(name, printed, process.returncode))
        say(f"  {name} … done in {duration(self.times[name])}")

    @staticmethod
    def _follow(
        process: subprocess.Popen[str], log: IO[str], progress: Progress, show: Callable[[str], str | None] | None
    ) -> list[str]:
        assert process.stdout is not None  # noqa: S101 - asked for above
        printed = []
        for line in process.stdout:
            log.write(SECRET.sub(r"\1…", line))
            log.flush()
            plain = COLOUR.sub("", line.rstrip())
            printed.append(plain)
            if match := TASK.match(plain):
                progress.now(match[1])
            if show and (shown := show(plain)) is not None:
                progress.interrupt(shown)
        process.wait()
        return printed

    def _failure(self, name: str, printed: list[str], status: int) -> str:
        task = ""
        reason: list[str] = []
        # the last that each host failed in; at the end Ansible counts those that it was not rescued from
        told: dict[str, str] = {}
        left: list[str] = []
        speaking = False  # a reason goes on over several lines until Ansible says where it comes from
        for line in printed:
            if match := TASK.match(line):
                task, speaking = match[1], False
            elif match := MESSAGE.match(line):
                reason, speaking = [match[1]], True
            elif match := FATAL.match(line):
                message = "\n    ".join(reason)
                told[match[1]] = f"the task {task!r} failed on {match[1]}: {message or 'no reason was given'}"
                speaking = False
            elif match := RECAP.match(line):
                left += [match[1]] if match[2] != "0" or match[3] != "0" else []
            elif speaking and line.strip() and not line.startswith(("Origin:", "<<<")):
                reason.append(line)
            else:
                speaking = False
        failed = [told[host] for host in (left or told) if host in told]
        if failed:
            what = "\n  and ".join(failed)
        else:
            last = [line for line in printed if line.strip()][-8:]
            what = f"it ended with status {status}, and its last words were:\n    " + "\n    ".join(last)
        return (
            f"`make {self.verb}` failed in its phase {name!r} "
            f"after {duration(time.monotonic() - self.started)}: {what}\n"
            f"The full log is {self.log.relative_to(ROOT)}. Mend the cause and run the same command again: "
            "what is done already is not done twice."
        )

    def finish(self) -> None:
        total = time.monotonic() - self.started
        (REPORTS / f"{self.verb}.json").write_text(
            json.dumps(
                {
                    "verb": self.verb,
                    "total": round(total, 1),
                    "phases": {name: round(took, 1) for name, took in self.times.items()},
                },
                indent=2,
            )
            + "\n"
        )
        say(f"{self.verb}: done in {duration(total)}")


def end(process: subprocess.Popen[str]) -> None:
    """Stop a phase with everything that it started, and wait until it is gone."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        # the group is asked even when its leader is gone: what a shell puts into the background ignores SIGINT
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)


class Progress:
    """One line that moves on a terminal; in a log file, a line when a phase begins and none between."""

    def __init__(self, name: str, *, moves: bool = True) -> None:
        self.name, self.doing = name, ""
        self.live = moves and sys.stdout.isatty()
        self.begun = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._turn, daemon=True)

    def __enter__(self) -> Progress:
        if self.live:
            self.thread.start()
        else:
            say(f"  {self.name} …")
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.live:
            self.thread.join()
            sys.stdout.write("\r\x1b[K")

    def now(self, doing: str) -> None:
        self.doing = doing

    def interrupt(self, line: str) -> None:
        sys.stdout.write(("\r\x1b[K" if self.live else "") + f"    {line}\n")
        sys.stdout.flush()

    def _turn(self) -> None:
        while not self.over.wait(0.5):
            text = f"  {self.name} … {duration(time.monotonic() - self.begun)}  {self.doing}"
            sys.stdout.write(f"\r\x1b[K{text[:110]}")
            sys.stdout.flush()


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


def say(text: str) -> None:
    print(text, flush=True)
