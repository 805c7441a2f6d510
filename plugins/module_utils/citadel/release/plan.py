"""What a transaction will do, as a value: printed by `make plan`, carried out by `make deploy`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .manifest import Manifest
from .services import MODEL_TEMPLATE, Service
from .survey import Live, gateways, runs

# Seconds assumed until the host has measured its own.
GUESS = {"model": 120.0, "gateway": 5.0, "other": 2.0}


LOAD = "load models that nobody uses yet"


@dataclass(frozen=True)
class Action:
    verb: str  # start, restart, replace, stop, keep
    unit: str
    kind: str
    why: str
    seconds: float = 0.0
    measured: bool = False

    def sentence(self) -> str:
        length = "" if not self.seconds else f", about {self.seconds:.0f} s" + ("" if self.measured else " (a guess)")
        return f"{self.verb:8}{self.unit}: {self.why}{length}"


@dataclass(frozen=True)
class Plan:
    release: str
    previous: str | None
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[str, ...]  # environments and model revisions that are others than before
    sockets: tuple[str, ...]  # listening sockets that have to be opened anew
    actions: tuple[Action, ...]
    healed: tuple[str, ...] = ()  # what was changed by hand in our units, and what becomes of it
    kept: tuple[str, ...] = ()  # units and drop-ins of somebody else

    @property
    def acts(self) -> tuple[Action, ...]:
        return tuple(action for action in self.actions if action.verb != "keep")

    @property
    def changes(self) -> bool:
        return self.release != self.previous or bool(self.acts) or bool(self.healed)

    @property
    def together(self) -> tuple[str, ...]:
        """Models that nobody is served by yet load side by side; what serves is taken away one at a time."""
        return tuple(action.unit for action in self.acts if action.verb == "start" and action.kind == "model")

    @property
    def seconds(self) -> float:
        together = max((action.seconds for action in self.acts if action.unit in self.together), default=0.0)
        return together + sum(action.seconds for action in self.acts if action.unit not in self.together)

    @property
    def steps(self) -> list[str]:
        """The steps that its execution writes into the journal until everything is proven."""
        load = [LOAD] if self.together else []
        return ["switch", *load, *(f"{act.verb} {act.unit}" for act in self.acts if act.verb != "stop"), "prove"]

    @property
    def _manner(self) -> str:
        return "new models together, what serves one at a time" if len(self.together) > 1 else "one at a time"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Plan:
        """A plan that was written down."""
        keys = ("added", "changed", "removed", "moved", "sockets", "healed", "kept")
        lists = {key: tuple(value.get(key, ())) for key in keys}
        actions = tuple(Action(**action) for action in value["actions"])
        return cls(**{**value, **lists, "actions": actions})

    def lines(self) -> list[str]:
        """The plan as people read it."""
        if not self.changes:
            kept = [f"  kept    {line}" for line in self.kept]
            return [f"Release {self.release} is live and everything it names runs: nothing to do.", *kept]
        lines = [f"From {self.previous or 'an empty host'} to {self.release}:"]
        for title, paths in (("new", self.added), ("changed", self.changed), ("gone", self.removed)):
            lines += [f"  {title:8}{entry}" for entry in _by_folder(paths)]
        lines += [f"  moved   {entry}" for entry in self.moved]
        lines += [f"  heal    {line}" for line in self.healed]
        lines += [f"  kept    {line}" for line in self.kept]
        lines += [f"  reopen  {unit}: connections to every port are refused for a moment" for unit in self.sockets]
        lines += [f"  {action.sentence()}" for action in self.actions]
        lines.append(f"  {len(self.acts)} services touched, about {self.seconds:.0f} s, {self._manner}.")
        return lines


def plan(desired: Manifest, live: Live, listens: Mapping[str, str]) -> Plan:
    """Pure: the same desired release, with sockets that listen so, and the same host give the same plan."""
    before = live.manifest.files if live.manifest else {}
    return Plan(
        release=desired.id,
        previous=live.release,
        added=tuple(sorted(desired.files.keys() - before.keys())),
        changed=tuple(sorted(p for p in desired.files.keys() & before.keys() if desired.files[p] != before[p])),
        removed=tuple(sorted(before.keys() - desired.files.keys())),
        moved=tuple(_moved(desired, live.manifest)),
        sockets=tuple(sorted(u for u in listens.keys() & live.listens.keys() if listens[u] != live.listens[u])),
        actions=tuple(_actions(desired, live)),
        healed=live.units.healed,
        kept=live.units.kept,
    )


def _actions(desired: Manifest, live: Live) -> list[Action]:
    wanted = desired.wanted()
    actions = [_action(service, live) for service in wanted]
    named = {service.unit for service in wanted}
    keeps_gateway = any(service.kind == "gateway" for service in wanted)
    for unit in sorted(live.processes.keys() - named):
        # Gateways of other releases are the business of the replacement, as long as there is one.
        if unit in gateways([unit]) and keeps_gateway:
            continue
        kind = "gateway" if gateways([unit]) else "model" if unit.startswith(MODEL_TEMPLATE.split("@")[0]) else "other"
        actions.append(Action("stop", unit, kind, "the release does not name it"))
    return actions


def _action(service: Service, live: Live) -> Action:
    if runs(live, service):
        return Action("keep", service.unit, service.kind, "runs with what it needs")
    measured = service.measure in live.load_seconds
    seconds = live.load_seconds.get(service.measure, GUESS[service.kind])
    if service.kind == "gateway" and gateways(live.processes):
        return Action("replace", service.unit, "gateway", "differs from the one that runs", seconds, measured)
    if service.unit in live.processes:
        return Action("restart", service.unit, service.kind, "runs with something else", seconds, measured)
    return Action("start", service.unit, service.kind, "does not run", seconds, measured)


def _moved(desired: Manifest, before: Manifest | None) -> list[str]:
    old_environments = before.environments if before else {}
    old_models = before.models if before else {}
    lines = [
        f"environment {name}: {old_environments.get(name, 'none')} to {path}"
        for name, path in sorted(desired.environments.items())
        if old_environments.get(name) != path
    ]
    for name, model in sorted(desired.models.items()):
        old = old_models.get(name, {}).get("revision", "none")
        if old != model["revision"]:
            lines.append(f"model {name}: revision {old} to {model['revision']}")
    return lines


def _by_folder(paths: tuple[str, ...]) -> list[str]:
    """A folder with many files is one line."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    lines = []
    for folder, members in sorted(folders.items()):
        lines += members if len(members) <= 4 else [f"{folder}/ ({len(members)} files)"]
    return lines
