"""Bytes of files on the disk: a folder for each owner, in it a file for each id."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple


class Held(NamedTuple):
    files: int
    size: int


class Shelf:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, owner: str) -> Path:
        """An owner's name may hold anything; its digest is a name of a folder."""
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def path(self, owner: str, ident: str) -> Path:
        return self.of(owner) / ident

    def put(self, owner: str, ident: str, source: IO[bytes]) -> None:
        """Whole and on the disk, or not there."""
        folder = self._made(owner)
        part = folder / f".{ident}"
        try:
            with part.open("wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / ident)
            synced(folder)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def take(self, owner: str, ident: str, path: Path) -> None:
        """A file of the same disk, which is written whole."""
        folder = self._made(owner)
        path.replace(folder / ident)
        synced(folder)

    def drop(self, owner: str, ident: str) -> None:
        self.path(owner, ident).unlink(missing_ok=True)
        with suppress(OSError):
            self.of(owner).rmdir()

    def forget(self, owner: str) -> int:
        """How many files those were."""
        folder = self.of(owner)
        count = sum(1 for _ in folder.iterdir()) if folder.exists() else 0
        shutil.rmtree(folder, ignore_errors=True)
        return count

    def held(self, owner: str | None = None) -> Held:
        """By an owner, or by all of them."""
        count = size = 0
        for path in self._paths(self.of(owner).name if owner is not None else "*"):
            with suppress(FileNotFoundError):
                size += path.stat().st_size
                count += 1
        return Held(count, size)

    def stale(self, known: set[str], seconds: float) -> list[Path]:
        """Bytes that nothing is known of, and that nobody has just put there."""
        before = time.time() - seconds
        found = []
        for path in self._paths("*"):
            with suppress(FileNotFoundError):
                if path.name not in known and path.stat().st_ctime < before:
                    found.append(path)
        return found

    def _made(self, owner: str) -> Path:
        folder = self.of(owner)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _paths(self, folder: str) -> Iterator[Path]:
        return self._folder.glob(f"{folder}/*")


def synced(folder: Path) -> None:
    """What was renamed into it stays so."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
