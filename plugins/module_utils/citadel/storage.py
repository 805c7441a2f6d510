"""File systems of a host as items of a declaration: disks that get one, mount units, caches in memory, wished room.

A mount unit and not a line of fstab: it is one file that comes and goes, and a disk that is missing at boot leaves the
host reachable, without what needs that disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .kinds import Item, Mounted
from .topology import GIB

PLACE = re.compile(r"(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)+")
NAME = re.compile(r"[a-z][a-z0-9_-]*")
OPTIONS = "noatime,nodiratime"
KNOWN = {"path", "device", "options", "format", "large_files"}


class StorageError(ValueError):
    """What was said, where, and what it takes."""


def items(
    mounts: Sequence[Mapping[str, Any]], caches: Mapping[str, Any], root: str, space: Mapping[str, Any]
) -> list[dict[str, Any]]:
    places = [place_of(mount) for mount in mounts]
    if len(set(places)) != len(places):
        raise StorageError("storage_mounts: two of them have the same path: give each one of its own")
    wished = {f"{root}/{cache_name(name)}": size(f"storage_tmpfs.{name}", gib) for name, gib in caches.items()}
    whole = sum(wished.values())
    return [
        *(item for mount in sorted(mounts, key=place_of) for item in disk(mount)),
        *(item for path, amount in wished.items() for item in cache(path, amount, whole)),
        *(
            {
                "kind": "space",
                "name": place(f"storage_space.{path}", path),
                "desired": size(f"storage_space.{path}", gib) / GIB,
            }
            for path, gib in space.items()
        ),
    ]


def places(caches: Mapping[str, Any], root: str) -> dict[str, str]:
    """Each cache in memory, and where units find it: their /tmp is their own, so it is bound there."""
    return {f"{root}/{cache_name(name)}": f"/tmp/{name}" for name in caches}  # noqa: S108 - inside of the unit's own


def gib(caches: Mapping[str, Any]) -> float:
    return sum(size(f"storage_tmpfs.{name}", amount) for name, amount in caches.items()) / GIB


def disk(mount: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    path, device = place_of(mount), str(mount["device"])
    if mount.get("format", False):
        large = {"large_files": True} if mount.get("large_files", False) else {}
        yield {"kind": "filesystem", "name": device, "desired": "ext4", **large}
    yield from mounted(path, device, "auto", str(mount.get("options", OPTIONS)))


def cache(path: str, amount: int, whole: int) -> Iterator[dict[str, Any]]:
    # as open as /tmp, which is what a tmpfs is where nobody says otherwise
    options = f"size={amount // 1024}k,nosuid,nodev,{OPTIONS}"
    for item in mounted(path, "tmpfs", "tmpfs", options):
        yield {**item, "memory": whole} if item["kind"] == "mounted" else item


def mounted(path: str, source: str, kind: str, options: str) -> Iterator[dict[str, Any]]:
    """The unit, that a boot starts it, and that it is mounted so."""
    name = Mounted().unit(Item("mounted", path, options))
    yield {
        "kind": "file",
        "name": f"/etc/systemd/system/{name}",
        "desired": "content",
        "content": unit(path, source, kind, options),
        "then": [["systemctl", "daemon-reload"]],
    }
    yield {"kind": "unit", "name": name, "desired": "enabled -"}
    yield {"kind": "mounted", "name": path, "desired": options, "source": source}


def unit(path: str, source: str, kind: str, options: str) -> str:
    return f"""\
# Ansible managed
[Unit]
Description=citadel-llm storage, {path}
Before=local-fs.target

[Mount]
What={source}
Where={path}
Type={kind}
Options={options}

[Install]
# wanted, not required: without it the host boots all the same
WantedBy=local-fs.target
"""


def place_of(mount: Mapping[str, Any]) -> str:
    path = place("storage_mounts", mount.get("path"))
    if unknown := set(mount) - KNOWN:
        raise StorageError(f"storage_mounts: {path} has {sorted(unknown)[0]!r}; known are {', '.join(sorted(KNOWN))}")
    device = str(mount.get("device", ""))
    if not device.startswith("/dev/") or not re.fullmatch(PLACE, device):
        raise StorageError(
            f"storage_mounts: {path} has device = {device!r}: give a disk or a partition, such as /dev/disk/by-id/…"
        )
    if not re.fullmatch(r"[A-Za-z0-9_=.:/,-]+", str(mount.get("options", OPTIONS))):
        raise StorageError(f"storage_mounts: {path} has options = {mount['options']!r}: give a list such as {OPTIONS}")
    return path


def place(where: str, path: object) -> str:
    if path == "/" and where.startswith("storage_space"):
        return "/"
    if not re.fullmatch(PLACE, str(path)) or {".", ".."} & set(str(path).split("/")):
        raise StorageError(f"{where}: {path!r} is no place: give an absolute path without `..`")
    return str(path)


def cache_name(name: object) -> str:
    if not re.fullmatch(NAME, str(name)):
        raise StorageError(f"storage_tmpfs: {name!r} is no name: give small letters, digits, `-` and `_`")
    return str(name)


def size(where: str, amount: object) -> int:
    """GiB as bytes."""
    try:
        found = float(str(amount))
    except ValueError:
        found = 0.0
    if not 0 < found < 2**30:
        raise StorageError(f"{where} = {amount!r}: give a size in GiB, more than 0")
    return round(found * GIB)
