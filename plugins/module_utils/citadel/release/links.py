"""The symbolic links that make a release the one that systemd and people see.

All of them follow from the release alone, so that setting them is the same whether a release comes or comes
back.
"""

from __future__ import annotations

from pathlib import Path

from .face import put_on, take_off
from .files import flush_folder, link
from .layout import Layout
from .manifest import Manifest
from .services import DROP_INS, GATEWAY_TEMPLATE, MANAGED, MODEL_TEMPLATE


def links_of(layout: Layout, manifest: Manifest) -> dict[Path, str]:
    """Units lead through `current`, except the gateway's: each release's gateway keeps its own definition,
    because two of them run side by side while one replaces the other."""
    links: dict[Path, str] = {}
    release = layout.release(manifest.id)
    for path in sorted(manifest.files):
        name = path.removeprefix("units/")
        folder, inside, _ = name.partition("/")
        if inside and DROP_INS.match(folder):
            links[layout.units / folder] = f"{layout.current}/units/{folder}"
        if name == path or not MANAGED.match(name):
            continue
        text = (release / path).read_text(encoding="utf-8")
        source = layout.units / name
        instances = [name]
        if name == GATEWAY_TEMPLATE:
            source = layout.units / f"citadel-gateway@{manifest.id}.service"
            instances = [source.name]
            links[source] = f"{release}/{path}"
        else:
            links[source] = f"{layout.current}/{path}"
        if name == MODEL_TEMPLATE:
            instances = [service.unit for service in manifest.services if service.kind == "model"]
        for wants in wanted_by(text):
            links |= {layout.units / wants / unit: str(source) for unit in instances}
    return links


def wanted_by(text: str) -> list[str]:
    """The folders that `systemctl enable` would put a unit into."""
    folders = []
    section = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("["):
            section = line
        elif section == "[Install]" and "=" in line:
            key, value = (part.strip() for part in line.split("=", 1))
            suffix = {"WantedBy": "wants", "RequiredBy": "requires"}.get(key)
            folders += [f"{target}.{suffix}" for target in value.split()] if suffix else []
    return folders


def our_links(layout: Layout) -> set[Path]:
    """Every unit link on the host that leads into a release, or to such a link."""
    if not layout.units.is_dir():
        return set()
    ours = set()
    for path in [
        *layout.units.glob("citadel-*"),
        *layout.units.glob("*.wants/citadel-*"),
        *layout.units.glob("*.requires/citadel-*"),
    ]:
        if path.is_symlink():
            target = str(path.readlink())
            if target.startswith((f"{layout.home}/", f"{layout.units}/citadel-")):
                ours.add(path)
    return ours


def switch(layout: Layout, manifest: Manifest, keep: set[str]) -> None:
    """Make `current` and every unit link be what the release says. Gateways in `keep` still run: their links
    stay."""
    link(layout.current, f"releases/{manifest.id}")
    put_on(layout, manifest)
    wanted = links_of(layout, manifest)
    for path, target in wanted.items():
        link(path, target)
    _drop(layout, our_links(layout) - wanted.keys() - {layout.units / unit for unit in keep})


def dismantle(layout: Layout) -> None:
    """The way back to an empty host, for a first deployment that failed."""
    _drop(layout, our_links(layout))
    take_off(layout)
    if layout.current.is_symlink():
        layout.current.unlink()
    flush_folder(layout.home)


def _drop(layout: Layout, stale: set[Path]) -> None:
    for path in sorted(stale):
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in stale}:
        if folder.name.startswith("citadel-") and not any(folder.iterdir()):
            folder.rmdir()
        else:
            flush_folder(folder)
