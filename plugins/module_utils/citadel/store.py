"""The model store: whole, verified revisions beside each other in /opt/models/<model>/<revision>.

A revision with a manifest is a whole model: the manifest is written when every file has been checked, and only then
does the folder get its name. The manifest has size, sha256 and time of change of each file; a file whose time is
another one is read again before it is trusted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .sources import CHUNK, MANIFEST, sha256_of


class StoreError(RuntimeError):
    """A model that is not stored or not to be trusted; the message says what to do."""


def git_sha1_of(path: Path) -> str:
    """The name that git gives to a file of this content."""
    whole = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            whole.update(chunk)
    return whole.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            f"{folder} has no {MANIFEST}: the model is not here or not whole; deploy again, which fetches it"
        ) from None
    except ValueError:
        raise StoreError(f"{folder / MANIFEST} is not JSON; deploy again, which fetches it anew") from None
    if not isinstance(manifest, dict) or not manifest.get("files"):
        raise StoreError(f"{folder / MANIFEST} names no files; deploy again, which fetches it anew")
    return manifest


def write_manifest(
    folder: Path, source: str, revision: str, checksums: Mapping[str, str], more: Mapping[str, Any]
) -> dict[str, Any]:
    files = {}
    for name, checksum in sorted(checksums.items()):
        path = folder / name
        path.chmod(0o444)
        status = path.stat()
        files[name] = {"size": status.st_size, "sha256": checksum, "changed": status.st_mtime_ns}
    manifest = {"source": source, "revision": revision, **more, "files": files}
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    temporary.chmod(0o444)
    temporary.replace(folder / MANIFEST)
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Names the contents: the same files have the same digest, wherever they came from."""
    contents = {name: one["sha256"] for name, one in manifest["files"].items()}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, deep: bool) -> dict[str, Any]:
    """The manifest, if the files are what it says; contents are read when asked, or when a file's time has changed."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise StoreError(f"{path} is missing; deploy again, which fetches it anew")
        status = path.stat()
        if status.st_size != expected["size"]:
            raise StoreError(
                f"{path} has {status.st_size} bytes instead of {expected['size']}; deploy again, which fetches it anew"
            )
        suspicious = status.st_mtime_ns != expected.get("changed")
        if (deep or suspicious) and sha256_of(path) != expected["sha256"]:
            raise StoreError(
                f"{path} was altered: its sha256 is not the manifest's; deploy again, which fetches it anew"
            )
    return manifest


def commit(
    partial: Path,
    target: Path,
    source: str,
    revision: str,
    checksums: Mapping[str, str],
    *,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Makes a finished folder the revision; before this moment the store does not know it."""
    manifest = write_manifest(partial, source, revision, checksums, more)
    for path in partial.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
        elif path.relative_to(partial).as_posix() not in {*checksums, MANIFEST}:
            path.unlink()
    partial.chmod(0o755)
    if target.exists():
        shutil.rmtree(target)
    partial.replace(target)
    return manifest
