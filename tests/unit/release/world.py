"""A host in a temporary folder: real files and links, and a systemd that does what systemd would do with
them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from citadel.release.failure import FailedError
from citadel.release.layout import Layout
from citadel.release.manifest import Manifest
from citadel.release.move import FACE
from citadel.release.server import Server
from citadel.release.services import GATEWAY_PREFIX, Service
from citadel.release.stage import Wish, manifest_of, stage
from citadel.release.survey import Live
from citadel.release.systemd import UnitState


class Killed(BaseException):
    """The process is gone: nothing catches it, nothing cleans up after it."""


class SimulatedSystemd:
    """Starts a unit with what its links lead to at that moment, and refuses what systemd would refuse."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.running: dict[str, dict[str, str]] = {}
        self.acts: list[str] = []
        self.crash: set[str] = set()  # digests that die at once
        self.slow = False  # do gateways drain for longer than anybody looks?
        self.draining: set[str] = set()
        self.opened: dict[str, str] = {}  # sockets, and where each listens: nowhere, after a change behind its back
        self.before: Callable[[str], None] = lambda act: None

    def show(self, unit: str) -> UnitState:
        if unit.endswith(".socket"):  # they open with the gateway, which wants them
            opened = any(name.startswith(GATEWAY_PREFIX) for name in self.running)
            return UnitState("active", "running", 0) if opened else UnitState("inactive", "dead", 0)
        if unit in self.running:
            return UnitState("active", "running", 1 + list(self.running).index(unit))
        if unit in self.draining:
            return UnitState("deactivating", "stop-sigterm", 0)
        return UnitState("inactive", "dead", 0)

    def matching(self, pattern: str) -> list[str]:
        head, tail = pattern.split("*")
        return sorted(unit for unit in {*self.running, *self.draining} if unit.startswith(head) and unit.endswith(tail))

    def environment(self, pid: int) -> Mapping[str, str]:
        return list(self.running.values())[pid - 1] if pid else {}

    def reload(self) -> None:
        """A socket that is open, and by its unit listens elsewhere, is closed by that; it is called running all the
        same."""
        self._act("reload")
        for name in self.opened:
            if self._address(name) != self.opened[name]:
                self.opened[name] = "nowhere"

    def start(self, unit: str, *, wait: bool) -> None:
        self._act(f"start {unit}")
        if unit not in self.running:
            self._run(unit)
        self._pull_in(unit)

    def _pull_in(self, unit: str) -> None:
        """Who starts a unit starts what it wants, whether it runs already or not."""
        folder = self._layout.units / f"{unit}.wants"
        for link in sorted(folder.iterdir()) if folder.is_dir() else []:
            if link.name.startswith(GATEWAY_PREFIX) and link.name not in self.running:
                self._run(link.name)
            elif link.name.endswith((".service", ".target")) and "@" not in link.name:
                self._pull_in(link.name)

    def restart(self, unit: str, *, wait: bool) -> None:
        self._act(f"restart {unit}")
        self._run(unit)

    def stop(self, unit: str, *, wait: bool) -> None:
        self._act(f"stop {unit}")
        self.opened.pop(unit, None)
        if self.running.pop(unit, None) and self.slow and not wait:
            self.draining.add(unit)
        for other in [name for name in self.running if f"PartOf={unit}" in (self._text(name) or "")]:
            self.running.pop(other)

    def verify(self, units: Iterable[Path]) -> list[str]:
        return [f"{path.name}: bad" for path in units if "[Broken]" in path.read_text()]

    def log(self, unit: str, lines: int) -> list[str]:
        return [f"last words of {unit}"]

    def boot(self, recovery: Callable[[], object] = lambda: None) -> None:
        """Everything stops, the recovery has its turn, and what the links want is started."""
        self.running.clear()
        self.opened.clear()
        recovery()
        for path in sorted(self._layout.units.glob("*.wants/*.service")):
            if path.name not in self.running:
                self._run(path.name)

    def _run(self, unit: str) -> None:
        if "@." in unit:
            raise FailedError(f"Unit name {unit} is missing the instance name.")
        digest = self._digest(unit)
        self.running.pop(unit, None)
        if digest not in self.crash:
            self.running[unit] = {"CITADEL_DIGEST": digest}
        if unit.startswith(GATEWAY_PREFIX):
            for path in self._layout.units.glob("*.socket"):
                self.opened.setdefault(path.name, self._address(path.name))

    def _address(self, socket: str) -> str:
        found = re.search(r"^ListenStream=(.*)$", self._read(self._layout.units / socket) or "", re.MULTILINE)
        return found[1] if found else ""

    def _text(self, unit: str) -> str | None:
        template = re.sub(r"@.*\.", "@.", unit)
        return self._read(self._layout.units / unit) or self._read(self._layout.units / template)

    def _digest(self, unit: str) -> str:
        text = self._text(unit)
        if text is None:
            raise FailedError(f"Unit {unit} not found.")
        if unit.startswith("citadel-llm@"):
            name = unit.removeprefix("citadel-llm@").removesuffix(".service")
            text = self._read(self._layout.current / f"config/models/{name}.env") or ""
        found = re.search(r"CITADEL_DIGEST=(\w+)", text)
        return found.group(1) if found else ""

    def _read(self, path: Path) -> str | None:
        return path.read_text() if path.exists() else None

    def _act(self, what: str) -> None:
        self.before(what)
        self.acts.append(what)


class SimulatedProofs:
    """Proves what runs, unless a digest is known to answer nonsense or never."""

    def __init__(self, systemd: SimulatedSystemd) -> None:
        self._systemd = systemd
        self.wrong: dict[str, str] = {}  # digest -> what is wrong with it
        self.tried: list[str] = []

    def model(self, service: Service) -> dict[str, Any]:
        return self._prove(service.unit)

    def gateway(self, manifest: Manifest, service: Service) -> dict[str, Any]:
        for model in (service for service in manifest.wanted() if service.kind == "model"):
            self._prove(model.unit)
        return self._prove(service.unit)

    def trial(self, manifest: Manifest) -> dict[str, Any]:
        self._systemd.before("trial")
        self.tried.append(manifest.id)
        gateway = manifest.gateway()
        assert gateway
        if gateway.digest in self.wrong:
            raise FailedError(self.wrong[gateway.digest])
        return {"tried": manifest.id}

    def _prove(self, unit: str) -> dict[str, Any]:
        self._systemd.before(f"prove {unit}")
        process = self._systemd.running.get(unit)
        if process is None:
            raise FailedError(f"{unit} is dead")
        if process["CITADEL_DIGEST"] in self.wrong:
            raise FailedError(self.wrong[process["CITADEL_DIGEST"]])
        return {"answer": "hello"}


class SimulatedGate:
    """Remembers which doors are shut."""

    def __init__(self) -> None:
        self.closed: set[str] = set()

    def shut(self, instance: str) -> bool:
        self.closed.add(instance)
        return True

    def open(self, instance: str) -> bool:
        self.closed.discard(instance)
        return True


class World:
    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.home.mkdir(parents=True)
        self.layout.units.mkdir(parents=True)
        self.systemd = SimulatedSystemd(self.layout)
        self.proofs = SimulatedProofs(self.systemd)
        self.gate = SimulatedGate()
        self.told: list[str] = []
        self.tick = 0

    def host(self) -> Server:
        """As a new process sees the host: nothing is remembered but what is on disk and what runs."""
        return Server(
            self.layout,
            self.systemd,
            self.proofs,
            self.gate,
            tell=self.told.append,
            now=self._now,
            clock=lambda: 0.0,
        )

    def _now(self) -> str:
        self.tick += 1
        return f"2026-01-01T00:{self.tick // 60 % 60:02d}:{self.tick % 60:02d}Z"

    def stage(self, files: Mapping[str, str], tell: Callable[[str], None] = lambda line: None, **more: Any) -> Manifest:
        wish = Wish(files, who="tester", at=self._now(), **more)
        manifest = manifest_of(self.layout, wish, self.survey())
        stage(self.layout, wish, manifest, tell)
        return manifest

    def survey(self) -> Live:
        return self.host().survey()

    @property
    def live(self) -> str | None:
        return self.layout.current.readlink().name if self.layout.current.is_symlink() else None

    def serving(self) -> dict[str, str]:
        """What clients meet: every model's and the gateway's digest, the gateway without its release."""
        return {
            "gateway" if unit.startswith(GATEWAY_PREFIX) else unit: process["CITADEL_DIGEST"]
            for unit, process in self.systemd.running.items()
            if unit.endswith(".service") and unit != FACE
        }

    def gateways(self) -> list[str]:
        return [unit for unit in self.systemd.running if unit.startswith(GATEWAY_PREFIX)]


LLM = """\
[Unit]
PartOf=citadel-models.target
[Service]
ExecStart=/bin/true
EnvironmentFile=/opt/citadel/current/config/models/%i.env
[Install]
WantedBy=citadel-models.target
"""
GATEWAY = """\
[Unit]
PartOf=citadel-gateway.service
[Service]
Environment=CITADEL_DIGEST={digest}
ExecStart=/bin/serve %i
[Install]
WantedBy=citadel-gateway.service
"""


def release_files(gateway: str = "g1", host: str = "h1", **models: str) -> dict[str, str]:
    """A small release: models by name and digest, and a gateway."""
    files = {
        "units/citadel-llm@.service": LLM,
        "units/citadel-llm.target": "[Unit]\nDescription=all\n[Install]\nWantedBy=multi-user.target\n",
        "units/citadel-models.target": "[Unit]\nPartOf=citadel-llm.target\n[Install]\nWantedBy=citadel-llm.target\n",
        "units/citadel-revive@.timer": "[Timer]\nOnActiveSec=300\n",
        "units/citadel-gateway@.service": GATEWAY.format(digest=gateway),
        "units/citadel-gateway.socket": "[Socket]\nListenStream=8000\n[Install]\nWantedBy=citadel-gateway.service\n",
        "units/citadel-gateway.service": "[Service]\nExecStart=/bin/face\n[Install]\nWantedBy=citadel-llm.target\n",
        "config/gateway.yml": f"which: {gateway}\n",
        "host/citadel/__init__.py": f"# {host}\n",
    }
    for port, (name, digest) in enumerate(sorted(models.items()), 11400):
        files[f"config/models/{name}.env"] = f"CITADEL_DIGEST={digest}\n"
        files[f"config/models/{name}.yml"] = f"port: {port}\nserved-model-name: {name}\n"
        files[f"units/citadel-llm@{name}.service.d/plan.conf"] = "[Service]\nTimeoutStartSec=60\n"
    files["host/face.json"] = json.dumps({f"/opt/citadel/config/{name}.env": f"models/{name}.env" for name in models})
    return files
