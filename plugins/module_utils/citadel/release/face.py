"""The live release as people see it: the paths around it that lead into it, and its configuration as real files.

Nothing runs by these. A release names its own in `host/face.json`, so they come and go back with it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from . import files
from .failure import RefusedError
from .files import flush_folder, link
from .layout import Layout
from .manifest import Manifest, read_manifest

FACE = "host/face.json"
EVERY = {"env": "current/env", "llm-server": "current"}  # what every release has, of whatever age
COPIED = "config/"  # not a link, since `tar` would store just that


def faces(layout: Layout, manifest: Manifest) -> dict[Path, str]:
    """Every link around this release, and where it leads."""
    links = {layout.home / name: target for name, target in EVERY.items()}
    if FACE in manifest.files:
        told: dict[str, str] = json.loads((layout.release(manifest.id) / FACE).read_text(encoding="utf-8"))
        links |= {layout.inside(path): target for path, target in told.items()}
    return links


def put_on(layout: Layout, manifest: Manifest) -> None:
    """Links first lead where this release says, then what only others had is gone."""
    wanted = faces(layout, manifest)
    _make_folder(layout.home / COPIED)
    for path, target in wanted.items():
        link(path, target)
    # copies may be late when the disk is full, since nothing reads them; the next switch makes up for it
    with contextlib.suppress(OSError):
        _copy(layout, manifest)
    _drop(layout, keep={*wanted, *_copies(layout, manifest)})


def take_off(layout: Layout) -> None:
    _drop(layout, keep=set())
    with contextlib.suppress(OSError):
        (layout.home / COPIED).rmdir()


def _copies(layout: Layout, manifest: Manifest) -> set[Path]:
    return {layout.home / path for path in manifest.files if path.startswith(COPIED)}


def _copy(layout: Layout, manifest: Manifest) -> None:
    release = layout.release(manifest.id)
    for path in sorted(_copies(layout, manifest)):
        text = (release / path.relative_to(layout.home)).read_text(encoding="utf-8")
        if path.is_symlink() or not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            files.write(path, text)


def _make_folder(folder: Path) -> None:
    """Earlier releases had a link here."""
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(mode=0o755, exist_ok=True)


def _drop(layout: Layout, keep: set[Path]) -> None:
    """What some release of this host put here, and nothing else."""
    stale = {path for path in _known(layout) if path not in keep}
    for path in stale:
        path.unlink(missing_ok=True)
    for folder in sorted({path.parent for path in stale}, reverse=True):
        if not folder.is_dir():
            continue
        flush_folder(folder)
        if folder.is_relative_to(layout.home / COPIED) and not any(folder.iterdir()):
            folder.rmdir()


def _known(layout: Layout) -> Iterator[Path]:
    for folder in sorted(layout.releases.glob("[0-9]*")) if layout.releases.is_dir() else []:
        try:
            manifest = read_manifest(folder)
            links = faces(layout, manifest)
        except (RefusedError, OSError, ValueError):
            continue
        yield from (path for path, target in links.items() if path.is_symlink() and str(path.readlink()) == target)
        yield from (path for path in _copies(layout, manifest) if path.is_file())
