"""Everything that can be known to be wrong before anything is touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from .compiled import gateway_paths
from .face import faces
from .journal import set_reserve
from .layout import Layout
from .links import links_of
from .manifest import Manifest, tampering
from .services import GATEWAY_TEMPLATE
from .survey import Live
from .systemd import Systemd

FREE = 64 * 1024 * 1024  # what journals, reports and logs of one transaction may need

Run = Callable[[list[str], dict[str, str]], subprocess.CompletedProcess[str]]


def check(layout: Layout, systemd: Systemd, manifest: Manifest, live: Live, run: Run | None = None) -> list[str]:
    """All objections at once: who has to change three things should not need three runs."""
    release = layout.release(manifest.id)
    return [
        *(f"the release was altered after it was staged: {line}" for line in tampering(release, manifest)),
        *_parts(layout, manifest),
        *_strangers(layout, manifest),
        *_disk(layout),
        *_capacity(manifest),
        *_ports(layout, manifest, live),
        *(f"unit: {line}" for line in systemd.verify(_unit_files(release, manifest))),
        *_gateway(layout, manifest, run or _run),
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
    return missing


def _strangers(layout: Layout, manifest: Manifest) -> list[str]:
    """What somebody else put where our links belong is not for us to replace."""
    return [
        f"{path} is no link of ours: move it away, the release brings its own"
        for path in [*links_of(layout, manifest), *faces(layout, manifest)]
        if path.exists() and not path.is_symlink()
    ]


def _disk(layout: Layout) -> list[str]:
    free = shutil.disk_usage(layout.home).free
    if free < FREE:
        return [f"{layout.home} has {free // 2**20} MiB free and {FREE // 2**20} MiB are needed: make room first"]
    try:
        set_reserve(layout)
    except OSError as error:
        return [f"{layout.state} cannot take a write ({error.strerror}): make room first"]
    return []


def _capacity(manifest: Manifest) -> list[str]:
    if manifest.capacity.get("fits", True):
        return []
    return [f"the capacity plan says that it does not fit: {manifest.capacity.get('why', 'run make capacity')}"]


def _ports(layout: Layout, manifest: Manifest, live: Live) -> list[str]:
    """A port is fine if nobody listens on it or a service of ours does."""
    listening = listening_ports(layout)
    ours = {service.port for service in (live.manifest.services if live.manifest else ())}
    return [
        f"port {service.port} of {service.served} is taken by a process that is not ours: stop it or "
        "choose another port"
        for service in manifest.services
        if service.kind == "model"
        and service.port in listening
        and service.port not in ours
        and service.unit not in live.processes
    ]


def listening_ports(layout: Layout) -> set[int]:
    ports = set()
    for table in ("tcp", "tcp6"):
        path = layout.root / "proc/net" / table
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == "0A":
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def _unit_files(release: Path, manifest: Manifest) -> list[Path]:
    return [release / path for path in sorted(manifest.files) if re.match(r"^units/[^/]+\.\w+$", path)]


def _gateway(layout: Layout, manifest: Manifest, run: Run) -> list[str]:
    """The configuration, judged by the program that will read it."""
    environment = manifest.environments.get("gateway")
    configuration = layout.release(manifest.id) / "config/gateway.yml"
    if not environment or f"units/{GATEWAY_TEMPLATE}" not in manifest.files or not configuration.is_file():
        return []
    command = [
        f"{layout.inside(environment)}/bin/python",
        "-B",
        "-P",
        "-m",
        "citadel_gateway",
        "check-config",
        str(configuration),
    ]
    try:
        done = run(command, gateway_paths(layout.release(manifest.id)))
    except OSError as error:
        return [f"gateway environment: {error}"]
    if done.returncode == 0:
        return []
    return [f"gateway configuration: {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-8:]]


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
