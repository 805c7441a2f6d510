"""Everything that can be known to be wrong before anything is touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import store
from .compiled import gateway_paths
from .installed import strangers
from .journal import set_reserve
from .layout import Layout
from .manifest import Manifest, tampering
from .services import GATEWAY_TEMPLATE
from .survey import Live, gateways
from .systemd import Systemd

FREE = 64 * 1024 * 1024  # what journals, reports and logs of one transaction may need
ROOM = 1024 * 1024  # the units, and those of the release before if it comes back
# whose configuration it is -> its unit, and what its program is asked
JUDGES = {
    "gateway": (GATEWAY_TEMPLATE, ["citadel_gateway", "check-config"]),
    "companion": ("citadel-companion.service", ["citadel_companion", "--check", "--config"]),
}

Run = Callable[[list[str], dict[str, str]], subprocess.CompletedProcess[str]]


def check(layout: Layout, systemd: Systemd, manifest: Manifest, live: Live, run: Run | None = None) -> list[str]:
    """All objections at once: who has to change three things should not need three runs."""
    release = layout.release(manifest.id)
    return [
        *(f"the release was altered after it was staged: {line}" for line in tampering(release, manifest)),
        *_parts(layout, manifest),
        *strangers(layout, manifest, live.manifest),
        *_disk(layout),
        *_ports(layout, systemd, manifest, live),
        *(f"unit: {line}" for line in systemd.verify(_unit_files(release, manifest))),
        *_configurations(layout, manifest, run or _run),
    ]


def _parts(layout: Layout, manifest: Manifest) -> list[str]:
    missing = [
        f"environment {name} is not at {path}: run the deployment, which builds it"
        for name, path in sorted(manifest.environments.items())
        if not layout.inside(path).is_dir()
    ]
    missing += [
        f"model {name} revision {model['revision']} is not at {model['path']}: run the deployment, which fetches it"
        for name, model in sorted(manifest.models.items())
        if not layout.inside(model["path"]).is_dir()
    ]
    return missing + [line for name, model in sorted(manifest.models.items()) if (line := _model(layout, name, model))]


def _model(layout: Layout, name: str, model: Mapping[str, str]) -> str:
    """The store's own record of the files, against the one that the release was made for."""
    folder = layout.inside(model["path"])
    if not model.get("digest") or not folder.is_dir():
        return ""  # releases of an early version name none
    try:
        found = store.digest_of(store.read_manifest(folder))
    except store.StoreError as error:
        return f"model {name}: {error}"
    if found == model["digest"]:
        return ""
    return (
        f"model {name} at {model['path']} is not the one that the release names: its files are {found[:12]} and not "
        f"{model['digest'][:12]}. Move the folder away and run the deployment, which fetches it"
    )


def _disk(layout: Layout) -> list[str]:
    free = shutil.disk_usage(layout.home).free
    if free < FREE:
        return [f"{layout.home} has {free // 2**20} MiB free and {FREE // 2**20} MiB are needed: make room first"]
    units = shutil.disk_usage(layout.units).free
    if units < ROOM:
        return [f"{layout.units} has {units // 1024} KiB free and {ROOM // 1024} KiB are needed: make room first"]
    try:
        set_reserve(layout)
    except OSError as error:
        return [f"{layout.state} cannot take a write ({error.strerror}): make room first"]
    return []


def _ports(layout: Layout, systemd: Systemd, manifest: Manifest, live: Live) -> list[str]:
    """A port is fine if nobody listens on it or a service or socket of ours does."""
    listening = listening_ports(layout)
    before = live.manifest
    ours = {service.port for service in (before.services if before else ())}
    wanted = {
        service.port: service.served
        for service in manifest.services
        if service.kind == "model" and service.unit not in live.processes
    }
    for unit, port in _sockets(layout, manifest).items():
        wanted.setdefault(port, f"the gateway ({unit})")
    for unit, port in (_sockets(layout, before) if before else {}).items():
        if systemd.show(unit).running:
            ours.add(port)
    if gateways(live.processes):
        ours |= set(_sockets(layout, before).values()) if before else set()
    return [
        f"port {port} of {whose} is taken by {_program(layout, listening[port])}, which is not ours: stop it or choose "
        "another port"
        for port, whose in sorted(wanted.items())
        if port in listening and port not in ours
    ]


def _sockets(layout: Layout, manifest: Manifest) -> dict[str, int]:
    """The ports that the sockets of a release listen on."""
    found = {}
    for path in manifest.files:
        if path.startswith("units/") and path.endswith(".socket"):
            text = (layout.release(manifest.id) / path).read_text(encoding="utf-8")
            stream = re.search(r"^ListenStream=(?:\S*:)?(\d+)$", text, re.MULTILINE)
            if stream:
                found[path.removeprefix("units/")] = int(stream.group(1))
    return found


def listening_ports(layout: Layout) -> dict[int, str]:
    """Ports that somebody listens on, and the number of the socket."""
    ports = {}
    for table in ("tcp", "tcp6"):
        path = layout.root / "proc/net" / table
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == "0A":
                ports[int(fields[1].rpartition(":")[2], 16)] = fields[9] if len(fields) > 9 else ""
    return ports


def _program(layout: Layout, socket: str) -> str:
    """Who holds a socket, as far as /proc tells."""
    for descriptor in (layout.root / "proc").glob("[0-9]*/fd/*") if socket else ():
        try:
            if str(descriptor.readlink()) == f"socket:[{socket}]":
                process = descriptor.parents[1]
                return f"{(process / 'comm').read_text(encoding='utf-8').strip()} (process {process.name})"
        except OSError:
            continue
    return "a process"


def _unit_files(release: Path, manifest: Manifest) -> list[Path]:
    return [release / path for path in sorted(manifest.files) if re.match(r"^units/[^/]+\.\w+$", path)]


def _configurations(layout: Layout, manifest: Manifest, run: Run) -> list[str]:
    """Each judged by the program that will read it."""
    environment = manifest.environments.get("gateway")
    if not environment:
        return []
    release = layout.release(manifest.id)
    python = [f"{layout.inside(environment)}/bin/python", "-B", "-P", "-m"]
    told = []
    for name, (unit, words) in JUDGES.items():
        file = release / f"config/{name}.yml"
        if f"units/{unit}" not in manifest.files or not file.is_file():
            continue
        try:
            done = run([*python, *words, str(file)], gateway_paths(release))
        except OSError as error:
            told.append(f"{name} environment: {error}")
            continue
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            told += [f"{name} configuration: {line}" for line in lines[-8:]]
    return told


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
        timeout=120,
    )
