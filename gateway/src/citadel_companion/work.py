"""The work of one batch on the disk: its input, and the results so far.

A result is one line, on the disk before the next one is begun, so the results themselves say what is done. After a kill
the last line may be cut off: it goes, and its request is asked again.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from array import array
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from citadel_companion.config import Batches
from citadel_companion.lines import Asked, Line, LineError, asked, line_at, lines_of
from citadel_companion.shelf import synced

INPUT, OUTPUT, ERRORS = "input", "output", "errors"
_SAID = 100  # errors of an input that is of no use at all
_NUMBER = re.compile(rb'\{"id":"batch_req_[0-9a-f]+_(\d+)"')


class Unusable(Exception):
    """Nothing of this input can be run."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors


class Letter(NamedTuple):
    """A line that failed for good."""

    number: int
    told: dict[str, Any]


class Work:
    def __init__(self, folder: Path, ident: str, endpoint: str, bounds: Batches) -> None:
        self.folder = folder
        self._mark = ident.removeprefix("batch_")[:12]
        self._endpoint = endpoint
        self._bounds = bounds
        self._numbers, self._offsets = array("L"), array("Q")  # of the lines that are to be asked
        self._next = 0
        self._again: deque[int] = deque()
        self._written: set[int] = set()
        self._lock = threading.Lock()
        self._closed = False
        self.counts = {OUTPUT: 0, ERRORS: 0}
        self.total = 0
        self.size = 0  # of the results

    def begin(self, source: Path) -> None:
        """The input stays until the end, even where its owner deletes the file."""
        self.folder.mkdir(parents=True)
        os.link(source, self.folder / INPUT)
        synced(self.folder)
        synced(self.folder.parent)

    def load(self) -> None:
        """What is to be done, and what has been done before."""
        done = self._recovered(OUTPUT) | self._recovered(ERRORS)
        seen: set[str] = set()
        bad: list[tuple[int, LineError]] = []
        with (self.folder / INPUT).open("rb") as file:
            for line in lines_of(file, self._bounds.most_line_bytes):
                self.total += 1
                if self.total > self._bounds.most_lines:
                    told = f"A batch has at most {self._bounds.most_lines} lines."
                    raise Unusable([_error(LineError("too_many_lines", told), None)])
                try:
                    self._look(line, seen)
                except LineError as error:
                    bad.append((line.number, error))
                else:
                    if line.number not in done:
                        self._numbers.append(line.number)
                        self._offsets.append(line.offset)
        if not seen:
            nothing = LineError("empty_file", "The input has no line.")
            raise Unusable([_error(error, number) for number, error in bad[:_SAID]] or [_error(nothing, None)])
        wrong = [self._failure(number, error) for number, error in bad if number not in done]
        for failure in wrong:
            self._append(ERRORS, failure, sync=False)
        self._sync(ERRORS)

    def take(self) -> int | None:
        """The place of the next line that nobody has taken."""
        if self._again:
            return self._again.popleft()
        if self._next >= len(self._numbers):
            return None
        self._next += 1
        return self._next - 1

    def give_back(self, place: int) -> None:
        self._again.append(place)

    def read(self, place: int) -> Asked:
        with (self.folder / INPUT).open("rb") as file:
            return asked(line_at(file, self._offsets[place]), self._endpoint)

    def answer(self, place: int, custom_id: str, status: int, request_id: str, body: Any) -> None:
        told = {"status_code": status, "request_id": request_id, "body": body}
        line = self._line(self._numbers[place], custom_id, told, None)
        self._append(OUTPUT if status == 200 else ERRORS, line, place)

    def fail(self, place: int, custom_id: str, code: str, message: str, *, sync: bool = True) -> None:
        error = {"code": code, "message": message}
        self._append(ERRORS, self._line(self._numbers[place], custom_id, None, error), place, sync=sync)

    def fail_rest(self, code: str, message: str) -> None:
        """All that nobody has taken."""
        with (self.folder / INPUT).open("rb") as file:
            while (place := self.take()) is not None:
                custom_id = asked(line_at(file, self._offsets[place]), self._endpoint).custom_id
                try:
                    self.fail(place, custom_id, code, message, sync=False)
                except OSError:
                    self.give_back(place)
                    raise
        self._sync(ERRORS)

    def close(self) -> None:
        """What is still on its way into the results is no part of them any more."""
        with self._lock:
            self._closed = True

    def remove(self) -> None:
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _look(self, line: Line, seen: set[str]) -> None:
        if line.content is None:
            told = f"This line is longer than {self._bounds.most_line_bytes} bytes."
            raise LineError("line_too_long", told)
        request = asked(line.content, self._endpoint)
        if request.custom_id in seen:
            told = "An earlier line has the same custom_id."
            raise LineError("duplicate_custom_id", told, "custom_id", request.custom_id)
        seen.add(request.custom_id)

    def _failure(self, number: int, error: LineError) -> bytes:
        told = {"code": error.code, "message": error.message, "param": error.param, "line": number}
        return self._line(number, error.custom_id, None, told)

    def _line(self, number: int, custom_id: str | None, response: Any, error: Any) -> bytes:
        # the id is first: _NUMBER looks for it there
        told = {"id": f"batch_req_{self._mark}_{number}", "custom_id": custom_id, "response": response, "error": error}
        return orjson.dumps(told) + b"\n"

    def _append(self, name: str, line: bytes, place: int | None = None, *, sync: bool = True) -> None:
        """Once for each place: a result that was written while its asker was being stopped counts."""
        with self._lock:
            if self._closed or place in self._written:
                return
            path = self.folder / name
            is_new = not path.exists()
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                before = os.fstat(fd).st_size
                try:
                    _write(fd, line)
                    if sync:
                        os.fdatasync(fd)
                except OSError:
                    os.ftruncate(fd, before)
                    raise
            finally:
                os.close(fd)
            if is_new:
                synced(self.folder)
            self.counts[name] += 1
            self.size += len(line)
            if place is not None:
                self._written.add(place)

    def _sync(self, name: str) -> None:
        path = self.folder / name
        if path.exists():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())

    def _recovered(self, name: str) -> set[int]:
        path = self.folder / name
        done: set[int] = set()
        if not path.exists():
            return done
        whole = 0
        with path.open("r+b") as file:
            for line in file:
                found = _NUMBER.match(line)
                if found is None or not line.endswith(b"\n"):
                    break
                done.add(int(found[1]))
                whole += len(line)
            file.truncate(whole)
            os.fsync(file.fileno())
        self.counts[name] = len(done)
        self.size += whole
        return done


def letters(path: Path) -> list[Letter]:
    """Of a file of errors, whose last line may be half written."""
    found = []
    with path.open("rb") as file:
        for line in file:
            number = _NUMBER.match(line)
            if number is not None and line.endswith(b"\n"):
                found.append(Letter(int(number[1]), orjson.loads(line)))
    return found


def chosen(source: Path, numbers: set[int], into: Path, endpoint: str, most: int) -> int:
    """Those of these lines that are requests, as an input of their own: how many they are."""
    count = 0
    with source.open("rb") as file, into.open("wb") as out:
        for line in lines_of(file, most):
            if line.number not in numbers or line.content is None:
                continue
            with suppress(LineError):
                asked(line.content, endpoint)
                out.write(line.content.rstrip(b"\n") + b"\n")
                count += 1
    return count


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _error(error: LineError, line: int | None) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "param": error.param, "line": line}
