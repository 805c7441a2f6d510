"""What may go: releases beyond those that are kept, then environments and model revisions that no other names."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .failure import RefusedError
from .files import flush_folder
from .history import GOOD, Histories, History, live_release
from .journal import read_story
from .layout import Layout
from .manifest import NAME, Manifest, read_manifest
from .services import GATEWAY_PREFIX
from .survey import present_gateways
from .systemd import Systemd


@dataclass(frozen=True)
class Keep:
    good: int = 5  # the live one included
    other: int = 2  # bad, withdrawn, interrupted, never activated: for study
    revisions: int = 2  # of each model, as the capacity plan counts them when it looks at the disk


def surplus(
    histories: Iterable[History],
    protected: set[str],
    keep: Keep,
    models: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> list[str]:
    """The releases to remove, of which `models` has the revision of each model. Pure; the order is that of activations
    and numbers, never of file times."""
    good: list[History] = []
    other: list[History] = []
    for history in histories:
        (good if history.state == GOOD else other).append(history)
    good.sort(key=lambda history: history.last)
    other.sort(key=lambda history: int(history.id.split("-")[0]))
    old = good[: max(len(good) - keep.good, 0)] + other[: max(len(other) - keep.other, 0)]
    gone = [history.id for history in old if history.id not in protected]
    stay = [history.id for history in [*reversed(good), *reversed(other)] if history.id not in gone]
    kept: dict[str, set[str]] = {}
    for name in sorted(stay, key=lambda name: name not in protected):
        wanted = models.get(name, {}).items()
        if name not in protected and any(len(kept.get(m, set()) | {rev}) > keep.revisions for m, rev in wanted):
            gone.append(name)  # the disk was planned for fewer revisions than this one would keep
            continue
        for model, revision in wanted:
            kept.setdefault(model, set()).add(revision)
    return gone


def collect(layout: Layout, systemd: Systemd, keep: Keep) -> list[str]:
    """Remove what is surplus, and say what that was."""
    histories = Histories(layout)
    models: dict[str, dict[str, str]] = {}
    for history in histories.all():
        with contextlib.suppress(RefusedError):
            named = read_manifest(layout.release(history.id)).models
            models[history.id] = {model: entry["revision"] for model, entry in named.items()}
    gone = surplus(histories.all(), in_use(layout, systemd), keep, models)
    for name in gone:
        _remove(layout.release(name))
        histories.forget(name)
    for leftover in layout.releases.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    manifests = []
    for history in histories.all():
        try:
            manifests.append(read_manifest(layout.release(history.id)))
        except RefusedError:
            # It cannot be read, so nobody knows what it needs: then everything else stays as well.
            return gone
    for folder in [*_environments(layout, manifests), *_revisions(layout, manifests)]:
        if not _mapped(layout, folder):
            _remove(folder)
            gone.append(str(folder))
    return gone


def in_use(layout: Layout, systemd: Systemd) -> set[str]:
    """The live release, those whose gateway still runs or drains, the engine's, and those of an open transaction."""
    units = present_gateways(systemd)
    used = {unit.removeprefix(GATEWAY_PREFIX).removesuffix(".service") for unit in units}
    with contextlib.suppress(RefusedError):
        used.add(live_release(layout) or "")
    with contextlib.suppress(OSError):
        used.add(layout.engine.readlink().parent.name)
    story = read_story(layout)
    if story:
        used |= {story.target, story.previous or ""}
    return {name for name in used if NAME.match(name)}


def _environments(layout: Layout, manifests: list[Manifest]) -> list[Path]:
    """Whole environments that no release names; what is being built is not whole yet."""
    named = {layout.inside(path) for manifest in manifests for path in manifest.environments.values()}
    if not layout.environments.is_dir():
        return []
    return sorted(path for path in layout.environments.iterdir() if (path / "complete").is_file() and path not in named)


def _revisions(layout: Layout, manifests: list[Manifest]) -> list[Path]:
    """Revisions in the store that no release names. A model of which no release knows is somebody else's."""
    named = {layout.inside(model["path"]) for manifest in manifests for model in manifest.models.values()}
    ours = {path.parent for path in named}
    return sorted(
        found.parent for folder in ours for found in folder.glob("*/citadel-manifest.json") if found.parent not in named
    )


def _mapped(layout: Layout, folder: Path) -> bool:
    """Does any process have files of the folder open as its program or libraries?"""
    prefix = f"{folder}/"
    for process in (layout.root / "proc").glob("[0-9]*"):
        try:
            if prefix in (process / "maps").read_text(encoding="utf-8", errors="replace"):
                return True
        except OSError:
            continue
    return False


def _remove(folder: Path) -> None:
    """Renamed first: a removal that is interrupted leaves nothing that looks whole."""
    condemned = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(condemned, ignore_errors=True)
    folder.replace(condemned)
    flush_folder(folder.parent)
    shutil.rmtree(condemned, ignore_errors=True)
