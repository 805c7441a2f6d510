"""The model store: complete, verified revisions beside each other in /opt/models/<model>/<revision>.

A revision is built in a hidden folder next to its place and moved there when every file has been checked, so that
a folder with a manifest is a whole model. The manifest holds size and sha256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "citadel-manifest.json"
CHUNK = 1 << 20


class StoreError(RuntimeError):
    """A model that cannot be stored or trusted; the message says what to do."""


@dataclass(frozen=True)
class Entry:
    """One file of a model as its source describes it; `sha256` is empty where the source knows none."""

    path: str
    size: int
    sha256: str = ""


Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


def sha256_of(path: Path, seen: Callable[[int], None] | None = None) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            if seen:
                seen(len(chunk))
    return whole.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{folder} has no {MANIFEST}: the model is not here or not complete; fetch it") from None
    except ValueError:
        raise StoreError(f"{folder / MANIFEST} is not JSON; fetch the model again") from None
    if not isinstance(manifest, dict) or not manifest.get("files"):
        raise StoreError(f"{folder / MANIFEST} names no files; fetch the model again")
    return manifest


def write_manifest(folder: Path, source: str, revision: str, files: Iterable[Entry]) -> dict[str, Any]:
    listed = {entry.path: {"size": entry.size, "sha256": entry.sha256} for entry in files}
    manifest = {"source": source, "revision": revision, "files": dict(sorted(listed.items()))}
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()


def verify(folder: Path, deep: bool) -> dict[str, Any]:
    """The manifest, if the files are as it says: sizes always, checksums when `deep`."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise StoreError(f"{path} is missing; fetch the model again")
        size = path.stat().st_size
        if size != expected["size"]:
            raise StoreError(f"{path} has {size} bytes instead of {expected['size']}; fetch the model again")
        if deep and sha256_of(path) != expected["sha256"]:
            raise StoreError(f"{path} was altered: its sha256 is not the manifest's; fetch the model again")
    return manifest


def adopt_directory(source: Path, target: Path, revision: str, progress: Progress | None = None) -> dict[str, Any]:
    """Copies a folder into the store; a second reading proves that what was written is what was read."""
    if not source.is_dir():
        raise StoreError(f"source {source} is no directory on this host; mount it, or choose another source")
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.name != MANIFEST)
    total = sum(path.stat().st_size for path in files)
    target.parent.mkdir(parents=True, exist_ok=True)
    need_room(target.parent, total)
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    entries, done = [], 0
    for path in files:
        name = path.relative_to(source).as_posix()
        copy = partial / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        checksum = sha256_of(path)
        if sha256_of(copy) != checksum:
            raise StoreError(f"{copy} differs from {path} after the copy; check the disk")
        entries.append(Entry(name, path.stat().st_size, checksum))
        done += path.stat().st_size
        if progress:
            progress(name, done, total)
    return commit(partial, target, f"directory {source}", revision, entries)


def commit(partial: Path, target: Path, source: str, revision: str, entries: Iterable[Entry]) -> dict[str, Any]:
    """Makes a finished folder the revision; before this moment the store does not know it."""
    manifest = write_manifest(partial, source, revision, entries)
    for path in partial.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)
    partial.chmod(0o755)
    if target.exists():
        shutil.rmtree(target)
    partial.replace(target)
    return manifest


def need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StoreError(
            f"{folder} has {free / 1e9:.1f} GB free and the model takes {size / 1e9:.1f} GB; free the rest"
        )
