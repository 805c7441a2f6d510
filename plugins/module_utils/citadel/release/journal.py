"""The journal of one transaction: each step is on disk before it is done.

A full disk must not keep a transaction from being undone, so a reserve is set aside at the beginning and
given back when the first write fails.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import flush_folder
from .layout import Layout

RESERVE = 512 * 1024


def set_reserve(layout: Layout) -> None:
    """Raises OSError where not even this little is left, which is the time to refuse."""
    layout.state.mkdir(parents=True, exist_ok=True)
    if layout.reserve.is_file() and layout.reserve.stat().st_size == RESERVE:
        return
    descriptor = os.open(layout.reserve, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, b"\0" * RESERVE)
        os.fsync(descriptor)
    except OSError:
        layout.reserve.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def free_reserve(layout: Layout) -> None:
    layout.reserve.unlink(missing_ok=True)


class Journal:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def write(self, event: str, **details: Any) -> None:
        line = json.dumps({"event": event, **details}, sort_keys=True) + "\n"
        try:
            self._append(line)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not self._layout.reserve.exists():
                raise
            free_reserve(self._layout)
            self._append(line)

    def close(self, name: str) -> None:
        """Put the finished journal beside the others; its absence says that no transaction is open."""
        self._layout.journals.mkdir(parents=True, exist_ok=True)
        self._layout.journal.replace(self._layout.journals / f"{name}.jsonl")
        flush_folder(self._layout.state)

    def _append(self, line: str) -> None:
        new = not self._layout.journal.exists()
        with self._layout.journal.open("a+b") as stream:
            # A line that a crash or a full disk cut short must not swallow the one after it.
            if stream.tell() and not _ends_whole(stream.fileno(), stream.tell()):
                line = "\n" + line
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            flush_folder(self._layout.state)


def _ends_whole(descriptor: int, size: int) -> bool:
    return os.pread(descriptor, 1, size - 1) == b"\n"


@dataclass
class Story:
    """What a journal tells of its transaction."""

    target: str = ""
    previous: str | None = None
    number: int = 0
    who: str = ""
    began: str = ""
    step: str = ""
    proven: bool = False
    returning: str = ""
    ended: str = ""
    proof: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def plan(self) -> dict[str, Any]:
        return next((dict(event["plan"]) for event in self.events if event.get("event") == "begin"), {})

    def steps(self) -> list[dict[str, Any]]:
        """The steps that were completed, with their length."""
        done = (event for event in self.events if event.get("event") == "done")
        return [{"name": event["name"], "seconds": event["seconds"]} for event in done]

    @property
    def begun(self) -> bool:
        return bool(self.target)


def read_story(layout: Layout, path: Path | None = None) -> Story | None:
    """The open transaction, or the one in another journal; None if there is none.

    Lines that were cut short are as good as not written.
    """
    try:
        lines = (path or layout.journal).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    story = Story()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        story.events.append(event)
        match event.get("event"):
            case "begin":
                story.target, story.previous = event["target"], event["previous"]
                story.number, story.who = event["number"], event["who"]
                story.began = event["at"]
            case "step" if not story.returning:
                story.step = event["name"]
            case "proven":
                story.proven, story.proof = True, event.get("proof", [])
            case "returning":
                story.returning = event["reason"]
            case "end":
                story.ended = event["outcome"]
    return story
