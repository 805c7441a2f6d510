"""What runs on the host right now, read from systemd and from the processes themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .failure import RefusedError
from .files import read_json
from .history import live_release
from .installed import Findings, look
from .layout import Layout
from .manifest import Manifest, read_manifest
from .services import GATEWAY_PREFIX, Service, listening
from .systemd import Systemd


@dataclass(frozen=True)
class Process:
    unit: str
    digest: str  # what it was started with


@dataclass(frozen=True)
class Live:
    """The host before a transaction. Empty on a host where nothing of ours was ever installed."""

    release: str | None = None
    manifest: Manifest | None = None
    processes: Mapping[str, Process] = field(default_factory=dict)
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    listens: Mapping[str, str] = field(default_factory=dict)  # socket -> where and how
    units: Findings = field(default_factory=Findings)


def survey(layout: Layout, systemd: Systemd, units: bool = False) -> Live:
    """What a plan for people says of the units costs a look at every release, so it is asked for."""
    release = live_release(layout)
    manifest = read_manifest(layout.release(release)) if release else None
    return Live(
        release,
        manifest,
        _processes(layout, systemd, manifest),
        load_seconds(layout),
        listens(layout, manifest) if manifest else {},
        look(layout, manifest) if units else Findings(),
    )


def listens(layout: Layout, manifest: Manifest) -> dict[str, str]:
    release = layout.release(manifest.id)
    paths = [path for path in manifest.files if path.endswith(".socket")]
    return listening({path: (release / path).read_text(encoding="utf-8") for path in paths})


def _processes(layout: Layout, systemd: Systemd, manifest: Manifest | None) -> dict[str, Process]:
    units = {*systemd.matching("citadel-llm@*.service"), *systemd.matching(f"{GATEWAY_PREFIX}*.service")}
    units |= {service.unit for service in (manifest.wanted() if manifest else [])}
    found = {}
    for unit in sorted(units):
        state = systemd.show(unit)
        if state.running:
            digest = systemd.environment(state.pid).get("CITADEL_DIGEST", "")
            found[unit] = Process(unit, digest or _digest_by_name(layout, unit))
    return found


def _digest_by_name(layout: Layout, unit: str) -> str:
    """A gateway without a digest in its environment still carries its release in its name."""
    if not unit.startswith(GATEWAY_PREFIX):
        return ""
    name = unit.removeprefix(GATEWAY_PREFIX).removesuffix(".service")
    try:
        gateway = read_manifest(layout.release(name)).gateway()
    except RefusedError:
        return ""
    return gateway.digest if gateway else ""


def load_seconds(layout: Layout) -> dict[str, float]:
    measured = read_json(layout.load_seconds, {})
    return {name: float(seconds) for name, seconds in measured.items()} if isinstance(measured, dict) else {}


def gateways(units: Iterable[str]) -> list[str]:
    return [unit for unit in units if unit.startswith(GATEWAY_PREFIX)]


def present_gateways(systemd: Systemd) -> set[str]:
    """Gateways that serve or still drain. One that drains needs its unit file: without it, systemd would fall back to
    its default patience and cut long streams."""
    units = systemd.matching(f"{GATEWAY_PREFIX}*.service")
    return {unit for unit in units if systemd.show(unit).active not in {"inactive", "failed"}}


def runs(live: Live, service: Service) -> bool:
    """Does a process run that was started with exactly this? For the gateway any release's process will do."""
    if service.kind == "gateway":
        return any(live.processes[unit].digest == service.digest for unit in gateways(live.processes))
    process = live.processes.get(service.unit)
    return process is not None and process.digest == service.digest
