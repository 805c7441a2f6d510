"""What makes a release the one that systemd and people see: `current`, its units, and what their [Install] asks for.

Units are files of their own, so that `systemctl edit` and a boot work whatever is mounted when. What is ours follows
from the releases on the host: a file or link is ours if one of them brings exactly that. So there is no record that a
crash could leave behind the files, and setting everything right is the same whether a release comes or comes back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..declarations import declared_units
from . import files
from .face import faces, put_on, take_off
from .failure import RefusedError
from .files import flush_folder, link
from .layout import Layout
from .manifest import NAME, Manifest, read_manifest
from .services import DROP_INS, GATEWAY_PREFIX, GATEWAY_TEMPLATE, MANAGED, MODEL_TEMPLATE

_KEYS = {"WantedBy": "{}.wants", "RequiredBy": "{}.requires", "Alias": ""}
# A gateway that drains may outlive the release that brought its unit; nobody else has such a name.
_GATEWAY = re.compile(rf"^{re.escape(GATEWAY_PREFIX)}{NAME.pattern[1:-1]}\.service$")


@dataclass(frozen=True)
class Parts:
    """What a release has below /etc/systemd/system."""

    texts: dict[Path, str] = field(default_factory=dict)
    links: dict[Path, str] = field(default_factory=dict)

    @property
    def paths(self) -> set[Path]:
        return {*self.texts, *self.links}


@dataclass(frozen=True)
class Findings:
    """What differs from the live release, in sentences: what any activation heals, and what it leaves alone."""

    healed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def parts_of(layout: Layout, manifest: Manifest) -> Parts:
    """Each release's gateway has a unit of its own, because two of them run side by side while one replaces the
    other."""
    parts = Parts()
    for path in sorted(manifest.files):
        name = path.removeprefix("units/")
        folder, inside, _ = name.partition("/")
        if name == path or not (DROP_INS if inside else MANAGED).match(folder):
            continue
        text = (layout.release(manifest.id) / path).read_text(encoding="utf-8")
        if name == GATEWAY_TEMPLATE:
            name = f"{GATEWAY_PREFIX}{manifest.id}.service"
        unit = layout.units / name
        parts.texts[unit] = text
        if inside:
            continue
        instances = [name]
        if name == MODEL_TEMPLATE:
            instances = [service.unit for service in manifest.services if service.kind == "model"]
        for where in installed_as(text):
            for instance in instances if "/" in where else [""]:
                parts.links[layout.units / where / instance] = str(unit)
    return parts


def installed_as(text: str) -> list[str]:
    """The folders (they end in a slash) and names that `systemctl enable` would give a unit."""
    found = []
    section = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("["):
            section = line
        elif section == "[Install]" and "=" in line:
            key, value = (part.strip() for part in line.split("=", 1))
            for name in value.split() if key in _KEYS else []:
                found.append(f"{_KEYS[key].format(name)}/" if _KEYS[key] else name)
    return found


class Ours:
    """Everything that some release on this host would put there."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._texts: dict[Path, set[str]] = {}
        self._links: dict[Path, set[str]] = {}
        for release in layout.releases.iterdir() if layout.releases.is_dir() else ():
            try:
                parts = parts_of(layout, read_manifest(release)) if NAME.match(release.name) else Parts()
            except (RefusedError, OSError):
                continue  # what a damaged release brought is told as foreign, and stays
            for path, text in parts.texts.items():
                self._texts.setdefault(path, set()).add(text)
            for path, target in parts.links.items():
                self._links.setdefault(path, set()).add(target)

    def has(self, path: Path) -> bool:
        if _GATEWAY.match(path.name):
            return True
        if path.is_symlink():
            target = str(path.readlink())
            # releases of an earlier version of this program were linked
            return target.startswith(f"{self._layout.home}/") or target in self._links.get(path, ())
        return path.is_file() and text_of(path) in self._texts.get(path, ())

    def there(self) -> set[Path]:
        return {path for path in present(self._layout) if self.has(path)}


def present(layout: Layout) -> list[Path]:
    """Everything below /etc/systemd/system that has our name, by whoever it is."""
    found: list[Path] = []
    for path in sorted(layout.units.glob("citadel-*")):
        if path.is_dir() and not path.is_symlink():
            found += sorted(inside for inside in path.iterdir() if not inside.name.startswith("."))
        else:
            found.append(path)
    folders = [layout.units.glob(f"*.{kind}/citadel-*") for kind in ("wants", "requires")]
    return found + sorted(path for folder in folders for path in folder if path not in found)


def look(layout: Layout, live: Manifest | None) -> Findings:
    ours = Ours(layout)
    parts = parts_of(layout, live) if live else Parts()
    healed = []
    for path in sorted(parts.texts):
        if not path.exists() and not path.is_symlink():
            healed.append(f"{name_of(layout, path)} is gone: it is put back")
        elif not ours.has(path):
            healed.append(
                f"{name_of(layout, path)} was altered by hand: the release's own takes its place, and the altered "
                f"one is kept in {kept_in(layout)}"
            )
    for path in sorted(parts.links):
        if not path.is_symlink():
            healed.append(f"{name_of(layout, path)} is gone, as `systemctl disable` does it: it is put back")
    known = declared_units(layout.root)
    foreign = [
        path for path in present(layout) if path not in parts.paths and path.name not in known and not ours.has(path)
    ]
    return Findings(tuple(healed), tuple(f"{name_of(layout, path)} is not of a release: it stays" for path in foreign))


def strangers(layout: Layout, manifest: Manifest, live: Manifest | None) -> list[str]:
    """What somebody else put where our units belong is not for us to replace; what was masked cannot start."""
    ours = Ours(layout)
    parts = parts_of(layout, manifest)
    before = parts_of(layout, live).paths if live else set()
    found = [
        f"{path} is not of a release: move it away, the release brings its own"
        for path, text in parts.texts.items()
        if path not in before and (path.exists() or path.is_symlink()) and not ours.has(path) and text_of(path) != text
    ]
    found += [
        f"{path} is no link of ours: move it away, the release brings its own"
        for path in [*parts.links, *faces(layout, manifest)]
        if path.exists() and not path.is_symlink()
    ]
    units = sorted({path.name for path in parts.texts} | {service.unit for service in manifest.wanted()})
    masked = [unit for unit in units if (layout.units / unit).is_symlink() and _leads(layout.units / unit, "/dev/null")]
    return found + [f"{unit} is masked: `systemctl unmask {unit}`" for unit in masked]


def switch(
    layout: Layout,
    manifest: Manifest,
    keep: Iterable[str],
    before: Manifest | None = None,
    hold: Iterable[str] = (),
) -> None:
    """Make `current` and every unit be what the release says, but for those that are put on hold. Gateways in `keep`
    still run: their units stay.

    First everything is written aside: a disk that is full then has changed nothing. The rest are renames.
    """
    ours = Ours(layout)
    wanted = parts_of(layout, manifest)
    stale = ours.there() | (parts_of(layout, before).paths if before else set())
    stale -= wanted.paths | {layout.units / unit for unit in keep}
    for leftover in layout.units.glob(".citadel-*.new"):
        leftover.unlink()
    held = {layout.units / unit for unit in hold}
    changed = {path: text for path, text in wanted.texts.items() if not _is(path, text) and path not in held}
    try:
        asides = {path: files.aside(_beside(layout, path), text) for path, text in changed.items()}
    except OSError:
        for leftover in layout.units.glob(".citadel-*.new"):
            leftover.unlink()
        raise
    link(layout.current, f"releases/{manifest.id}")
    put_on(layout, manifest)
    for path, aside in asides.items():
        _keep_altered(layout, ours, path)
        if path.parent.is_symlink():
            path.parent.unlink()
        path.parent.mkdir(exist_ok=True)
        files.place(aside, path)
    for path, target in wanted.links.items():
        link(path, target)
    _drop(layout, ours, stale)


def dismantle(layout: Layout) -> None:
    """The way back to an empty host, for a first deployment that failed."""
    ours = Ours(layout)
    _drop(layout, ours, ours.there())
    take_off(layout)
    if layout.current.is_symlink():
        layout.current.unlink()
    flush_folder(layout.home)


def text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def name_of(layout: Layout, path: Path) -> str:
    return str(path.relative_to(layout.units))


def kept_in(layout: Layout) -> Path:
    return layout.state / "altered"


def _is(path: Path, text: str) -> bool:
    return not path.is_symlink() and not path.parent.is_symlink() and text_of(path) == text


def _leads(path: Path, target: str) -> bool:
    return str(path.readlink()) == target


def _beside(layout: Layout, path: Path) -> Path:
    """On the same file system, but never in a folder that may be a link into a release."""
    return layout.units / f".{name_of(layout, path).replace('/', '+')}.new"


def _keep_altered(layout: Layout, ours: Ours, path: Path) -> None:
    """Somebody's work is not thrown away; but no transaction fails for it."""
    if path.is_file() and not path.parent.is_symlink() and not ours.has(path):
        with contextlib.suppress(OSError):
            files.write(kept_in(layout) / name_of(layout, path), text_of(path) or "")


def _drop(layout: Layout, ours: Ours, stale: set[Path]) -> None:
    folders = {path.parent for path in stale if path.parent.is_dir()}
    for path in sorted(stale):
        if path.parent.is_symlink() or (path.is_dir() and not path.is_symlink()):
            continue  # a folder of drop-ins that is a link, and among the stale itself; or was one until now
        _keep_altered(layout, ours, path)
        path.unlink(missing_ok=True)
    for folder in sorted(folders - {layout.units}):
        if folder.is_dir() and not folder.is_symlink() and folder.name.startswith("citadel-"):
            with contextlib.suppress(OSError):  # somebody's own drop-in is in it
                folder.rmdir()
    for folder in folders | {layout.units}:
        if folder.is_dir():
            flush_folder(folder)
