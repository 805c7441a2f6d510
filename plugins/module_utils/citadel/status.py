"""Says whether everything that the live release names is well: units, gateway, models, neighbours, room."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .release.failure import FailedError, RefusedError
from .release.history import live_release
from .release.layout import Layout
from .release.manifest import Manifest, read_manifest
from .release.probe import Connection
from .release.server import now
from .release.services import GATEWAY_PREFIX, environment_of
from .release.systemd import Systemctl, Systemd
from .topology import GIB, read_meminfo

SETTINGS = "config/citadel.env"
NEIGHBOUR = "_ADDRESS"  # a setting of that name is `host:port` of a server that the estate has
LEAST_FREE = 0.05  # of a disk
PATIENCE = 3.0


@dataclass(frozen=True)
class Check:
    name: str
    good: bool
    said: str

    def __str__(self) -> str:
        return f"{'✓' if self.good else '✗'} {self.name}: {self.said}"


def checks(layout: Layout, systemd: Systemd) -> Iterator[Check]:
    try:
        release = live_release(layout)
        manifest = read_manifest(layout.release(release)) if release else None
    except RefusedError as error:
        yield Check("release", False, str(error))
        manifest = None
    else:
        yield Check("release", manifest is not None, release or "none is live: `make deploy` makes one")
    if manifest:
        yield from of_units(systemd, manifest)
        yield from of_gateway(health_port(layout, manifest))
        yield from of_neighbours(neighbours(layout))
    yield from of_host(layout)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return False
    return True


def of_units(systemd: Systemd, manifest: Manifest, listens: Callable[[int], bool] = listens) -> Iterator[Check]:
    """What systemd says; a model that it calls active may still load, and what the gateway knows of it may be old."""
    for service in manifest.wanted():
        units = [service.unit]
        if service.kind == "gateway":  # an equal one that an earlier release started will do
            units += [unit for unit in systemd.matching(f"{GATEWAY_PREFIX}*.service") if unit != service.unit]
        states = {unit: systemd.show(unit) for unit in units}
        unit = next((unit for unit, state in states.items() if state.active == "active"), service.unit)
        active, said = states[unit].active == "active", f"{states[unit].active} ({states[unit].sub})"
        if active and service.kind == "model" and not listens(service.port):
            yield Check(unit, False, f"{said}, and loads: nothing listens on port {service.port} yet")
        else:
            yield Check(unit, active, said)


def of_gateway(port: int) -> Iterator[Check]:
    try:
        with Connection(port) as connection:
            _, health = connection.ask("/health")
        status = str(health.get("status"))
        yield Check("gateway", status == "healthy", f"{status} on port {port}")
        for name, model in sorted(health.get("models", {}).items()):
            yield Check(name, model.get("status") == "ready", str(model.get("status")))
        busy = sum(float(line.split()[-1]) for line in figures(port) if line.startswith("llm_active_requests"))
        yield Check(
            "requests", True, f"{busy:.0f} in flight" + (", which a stop would have to wait for" if busy else "")
        )
    except (FailedError, OSError) as error:
        yield Check("gateway", False, str(error))


def figures(port: int) -> list[str]:
    """The gateway's metrics, line by line."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as response:
        return list(response.read().decode().splitlines())


def settings(layout: Layout) -> dict[str, str]:
    try:
        return environment_of((layout.current / SETTINGS).read_text(encoding="utf-8"))
    except OSError:
        return {}


def health_port(layout: Layout, manifest: Manifest) -> int:
    """Open to whoever is on this host, in every profile; a release without one has its health on the clients' port."""
    gateway = manifest.gateway()
    return int(settings(layout).get("HEALTH_PORT") or (gateway.port if gateway else 0))


def neighbours(layout: Layout) -> dict[str, str]:
    return {
        name.removesuffix(NEIGHBOUR).lower(): value
        for name, value in settings(layout).items()
        if name.endswith(NEIGHBOUR) and value
    }


def of_neighbours(addresses: dict[str, str]) -> Iterator[Check]:
    for name, address in addresses.items():
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
            yield Check(name, True, f"{address} answers")
        except (OSError, ValueError) as error:
            yield Check(name, False, f"{address}: {error}")


def of_host(layout: Layout) -> Iterator[Check]:
    memory = read_meminfo((layout.root / "proc/meminfo").read_text(encoding="ascii"))
    free, whole = memory["MemAvailable"], memory["MemTotal"]
    yield Check("memory", free > whole * LEAST_FREE, f"{free / GIB:.1f} of {whole / GIB:.1f} GiB available")
    seen = set()
    for path in (layout.root, layout.home, layout.models, layout.inside("/var/log")):
        if not path.exists() or path.stat().st_dev in seen:
            continue
        seen.add(path.stat().st_dev)
        disk = shutil.disk_usage(path)
        room = f"{disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free"
        yield Check(f"disk of {path}", disk.free > disk.total * LEAST_FREE, room)
    yield Check("load", True, " ".join(f"{figure:.2f}" for figure in os.getloadavg()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", type=Path, help="append to this file too")


def run(arguments: argparse.Namespace) -> int:
    found = list(checks(Layout(), Systemctl()))
    wrong = [check for check in found if not check.good]
    verdict = f"DEGRADED: {len(wrong)} of {len(found)} checks failed" if wrong else f"HEALTHY: {len(found)} checks"
    lines = [*(str(check) for check in found), verdict]
    print("\n".join(lines))
    if arguments.log:
        try:
            append(arguments.log, "".join(f"[{now()}] {line}\n" for line in lines))
        except OSError as error:
            print(f"{arguments.log}: {error.strerror}", file=sys.stderr)
            return 1
    return 1 if wrong else 0


def append(path: Path, text: str) -> None:
    """The file belongs to whom its folder belongs, whoever ran this first."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)
        owner = path.parent.stat()
        with contextlib.suppress(PermissionError):
            os.fchmod(stream.fileno(), 0o640)
            os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
