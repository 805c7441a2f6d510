"""Writes that survive a power cut: written aside, flushed, renamed, and the folder flushed too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place(aside(path.with_name(f".{path.name}.new"), text, mode), path)


def aside(path: Path, text: str, mode: int = 0o644) -> Path:
    """A file that is on the disk as a whole, and only waits for its name."""
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        path.chmod(mode)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def place(aside: Path, path: Path) -> None:
    try:
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, default: Any) -> Any:
    """The file's value; the default where there is none or a crash left half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return default


def link(path: Path, target: str) -> bool:
    """Point a symbolic link somewhere else in one step; True if it pointed elsewhere before."""
    if path.is_symlink() and str(path.readlink()) == target:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(path)
    flush_folder(path.parent)
    return True
