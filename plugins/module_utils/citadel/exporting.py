"""Writes what node exporter cannot know of this product into its folder of texts: units, releases, plan, drift."""

from __future__ import annotations

import argparse
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .observed import load_seconds
from .release.failure import RefusedError
from .release.history import BAD, GOOD, INTERRUPTED, Histories, live_release
from .release.layout import Layout
from .release.manifest import Manifest, read_manifest
from .release.services import GATEWAY_PREFIX, environment_of

FILE = "citadel.prom"
UNIFIED = "/sys/fs/cgroup/cgroup.controllers"
KEPT_KILLS = "/var/lib/citadel-metrics/oom-kills.json"
DRIFT = "drift.json"
SPOOL = "/var/lib/citadel-usage"
STATES = ("active", "activating", "failed", "inactive")
GATEWAY = "citadel-gateway.service"
PROPERTIES = ("Id", "ActiveState", "NRestarts", "Result", "MemoryMax", "ControlGroup")
CERTIFICATE = "certificate: "
# systemd's own message for a process of a unit that the kernel killed for its memory; on cgroup v2 alone
KILLED = "fe6faa94e7774663a0da52717891d8ef"
Ask = Callable[[Sequence[str]], str]
Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True)
class Family:
    name: str
    kind: str  # gauge or counter
    about: str
    samples: tuple[Sample, ...]

    def lines(self) -> Iterator[str]:
        if self.samples:
            yield f"# HELP {self.name} {self.about}"
            yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            told = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
            yield f"{self.name}{{{told}}} {value:.17g}" if told else f"{self.name} {value:.17g}"


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@dataclass(frozen=True)
class Unit:
    """A unit that the live release names, under a name that lasts over releases."""

    name: str  # as systemd has it
    label: str
    model: str
    shown: Mapping[str, str]
    memory: int | None

    @property
    def labels(self) -> dict[str, str]:
        return {"unit": self.label, "model": self.model}

    @property
    def state(self) -> str:
        active = self.shown.get("ActiveState", "inactive")
        return {"reloading": "active", "deactivating": "inactive"}.get(active, active)


def asked(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10, errors="replace").stdout


class Export:
    """Everything that is known now. A part that cannot be read is absent, and the rest is there."""

    def __init__(self, layout: Layout, ask: Ask = asked, clock: Callable[[], float] = time.time) -> None:
        self._layout, self._ask, self._clock = layout, ask, clock

    def text(self) -> str:
        families: list[Family] = []
        manifest = self._live()
        for part in (self._units, self._releases, self._plan, self._certificate, self._spool, self._drift):
            try:
                families += part(manifest)
            except (OSError, ValueError, KeyError, RefusedError, subprocess.SubprocessError):
                continue
        about = "When these figures were written"
        families.append(Family("citadel_metrics_written_timestamp_seconds", "gauge", about, (({}, self._clock()),)))
        return "".join(f"{line}\n" for family in families for line in family.lines())

    def _live(self) -> Manifest | None:
        try:
            release = live_release(self._layout)
            return read_manifest(self._layout.release(release)) if release else None
        except RefusedError:
            return None

    def _units(self, manifest: Manifest | None) -> Iterator[Family]:
        if manifest is None:
            return
        units = self._shown(manifest)
        yield Family(
            "citadel_unit_state",
            "gauge",
            "Whether a unit is in a state",
            tuple(({**unit.labels, "state": state}, float(unit.state == state)) for unit in units for state in STATES),
        )
        yield Family(
            "citadel_unit_gave_up",
            "gauge",
            "Whether systemd no longer starts a unit by itself",
            tuple((unit.labels, float(unit.state == "failed")) for unit in units),
        )
        yield Family(
            "citadel_unit_restarts_total",
            "counter",
            "Restarts by systemd since somebody started the unit",
            tuple((unit.labels, float(unit.shown.get("NRestarts") or 0)) for unit in units),
        )
        yield Family(
            "citadel_unit_memory_bytes",
            "gauge",
            "Memory in use, without what is only cached",
            tuple((unit.labels, float(unit.memory)) for unit in units if unit.memory is not None),
        )
        yield Family(
            "citadel_unit_memory_max_bytes",
            "gauge",
            "The most memory that a unit may take",
            tuple((unit.labels, float(most)) for unit in units if (most := unit.shown.get("MemoryMax", "")).isdigit()),
        )
        kills = self._kills(units)
        yield Family(
            "citadel_unit_oom_kills_total",
            "counter",
            "Processes that the kernel killed for the memory of their unit",
            tuple((unit.labels, float(kills.get(unit.label, 0))) for unit in units if kills is not None),
        )

    def _shown(self, manifest: Manifest) -> list[Unit]:
        wanted = manifest.wanted()
        # a release that changes nothing of the gateway leaves the one of an earlier release serving
        names = [service.unit for service in wanted if service.kind != "gateway"]
        told = self._ask(
            ["systemctl", "show", f"--property={','.join(PROPERTIES)}", *names, f"{GATEWAY_PREFIX}*.service"]
        )
        blocks = [
            dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in told.split("\n\n")
        ]
        by_name = {block["Id"]: block for block in blocks if "Id" in block}
        gateways = [block for name, block in by_name.items() if name.startswith(GATEWAY_PREFIX)]
        serving = next(
            (one for one in gateways if one.get("ActiveState") == "active"), gateways[-1] if gateways else {}
        )
        units = []
        for service in wanted:
            gateway = service.kind == "gateway"
            shown = serving if gateway else by_name.get(service.unit, {})
            label = GATEWAY if gateway else service.unit
            units.append(Unit(service.unit, label, service.served, shown, self._memory(shown.get("ControlGroup", ""))))
        return units

    def _memory(self, group: str) -> int | None:
        """Of processes alone: files that the kernel keeps for them go when somebody needs the room."""
        if not group:
            return None
        for root, key in (("sys/fs/cgroup", "anon"), ("sys/fs/cgroup/memory", "total_rss")):
            try:
                text = self._layout.inside(f"/{root}{group}/memory.stat").read_text(encoding="ascii")
            except OSError:
                continue
            for line in text.splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
        return None

    def _kills(self, units: Iterable[Unit]) -> dict[str, int] | None:
        """From the journal, since a unit's group goes with it; the count outlives journal and restarts in a file. On
        cgroup v1 systemd does not hear of it, and nothing is better than a zero."""
        if not self._layout.inside(UNIFIED).exists():
            return None
        place = self._layout.inside(KEPT_KILLS)
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {"cursor": "", "units": {}}
        after = [f"--after-cursor={kept['cursor']}"] if kept["cursor"] else ["--boot"]
        told = self._ask(["journalctl", "--quiet", "--output=json", "--no-pager", *after, f"MESSAGE_ID={KILLED}"])
        names = {unit.name: unit.label for unit in units}
        found = [json.loads(line) for line in told.splitlines()]
        for entry in found:
            name = str(entry.get("UNIT", ""))
            label = GATEWAY if name.startswith(GATEWAY_PREFIX) else names.get(name, name)
            kept["units"][label] = kept["units"].get(label, 0) + 1
            kept["cursor"] = entry["__CURSOR"]
        if found:
            replace(place, json.dumps(kept))
        return {str(name): int(count) for name, count in kept["units"].items()}

    def _releases(self, manifest: Manifest | None) -> Iterator[Family]:
        histories = Histories(self._layout)
        all_of_them = histories.all()
        yield Family("citadel_release_total", "gauge", "Releases on this host", (({}, float(len(all_of_them))),))
        failed = [moment(history.at) for history in all_of_them if history.state in (BAD, INTERRUPTED)]
        if failed:
            about = "When a release was last found to be bad"
            yield Family("citadel_release_failed_timestamp_seconds", "gauge", about, (({}, max(failed)),))
        if manifest is None:
            return
        version = str(manifest.source.get("revision") or "")[:12]
        told = {"release": manifest.id, "content": manifest.digest[:8], "version": version}
        yield Family("citadel_release_info", "gauge", "The release that is live", ((told, 1.0),))
        history = histories.of(manifest.id)
        if history.state == GOOD:
            about = "When the live release was proven"
            yield Family("citadel_release_activated_timestamp_seconds", "gauge", about, (({}, moment(history.at)),))

    def _plan(self, manifest: Manifest | None) -> Iterator[Family]:
        if manifest is None:
            return
        memory: list[Sample] = []
        cache: list[Sample] = []
        for service in manifest.wanted():
            if service.kind != "model":
                continue
            path = self._layout.release(manifest.id) / "config" / "models" / f"{service.name}.env"
            planned = environment_of(path.read_text(encoding="utf-8"))
            labels = {"model": service.served, "replica": service.name}
            memory.append((labels, float(planned["CITADEL_RUNNING_BYTES"])))
            cache.append((labels, float(planned["CITADEL_CACHE_BYTES"])))
        yield Family("citadel_plan_memory_bytes", "gauge", "What the plan expects a replica to use", tuple(memory))
        yield Family("citadel_plan_kv_cache_bytes", "gauge", "Of that, the cache of keys and values", tuple(cache))
        loads = load_seconds(self._layout.state)
        replicas = {service.name: service.served for service in manifest.wanted() if service.kind == "model"}
        samples = tuple(
            ({"model": model, "replica": name}, loads[name]) for name, model in replicas.items() if name in loads
        )
        yield Family("citadel_model_load_seconds", "gauge", "How long the last start took", samples)

    def _certificate(self, manifest: Manifest | None) -> Iterator[Family]:
        if manifest is None:
            return
        text = (self._layout.release(manifest.id) / "config" / "gateway.yml").read_text(encoding="utf-8")
        lines = (line.partition(CERTIFICATE)[2] for line in text.splitlines() if CERTIFICATE in line)
        path = next(lines, "").strip("'\" ")
        if path:
            ends = expires(self._layout.inside(path))
            about = "When the certificate of the clients' port expires"
            yield Family("citadel_certificate_expires_timestamp_seconds", "gauge", about, (({"path": path}, ends),))

    def _spool(self, _: Manifest | None) -> Iterator[Family]:
        """A segment that is written now is a minute old at most; an older one waits for its database."""
        begun = [path.name[:20] for path in self._layout.inside(SPOOL).glob("*.usage")]
        oldest = min((int(name) / 1e9 for name in begun if name.isdigit()), default=0.0)
        if oldest:
            about = "When the oldest usage was recorded that no database has"
            yield Family("citadel_spool_oldest_timestamp_seconds", "gauge", about, (({}, oldest),))

    def _drift(self, _: Manifest | None) -> Iterator[Family]:
        told = json.loads((self._layout.state / DRIFT).read_text(encoding="utf-8"))
        samples = tuple(({"owner": owner}, float(count)) for owner, count in sorted(told["owners"].items()))
        yield Family("citadel_drift_items", "gauge", "Items that are not as their owner declared them", samples)
        about = "When that was looked at"
        yield Family("citadel_drift_checked_timestamp_seconds", "gauge", about, (({}, float(told["at"])),))


def moment(at: str) -> float:
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def expires(path: Path) -> float:
    # the one way to read a certificate that the standard library has, which its own tests use
    told: dict[str, Any] = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    return float(ssl.cert_time_to_seconds(told["notAfter"]))


def replace(path: Path, text: str) -> None:
    """So that nobody ever reads a half of it."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.chmod(0o644)
    aside.replace(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of node exporter's texts")
    parser.add_argument("--every", type=float, default=0.0, help="seconds; once, if it is left out")


def run(arguments: argparse.Namespace) -> int:
    export, before = Export(Layout(Path("/"))), ""
    while True:
        try:
            replace(arguments.folder / FILE, export.text())
            trouble = ""
        except OSError as error:
            trouble = f"{arguments.folder} takes nothing: {error.strerror}"
        if trouble != before:
            print(trouble or f"{arguments.folder} takes figures again", file=sys.stderr, flush=True)
        if not arguments.every:
            return 1 if trouble else 0
        before = trouble
        time.sleep(arguments.every)
