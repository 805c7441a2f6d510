"""Make the host run one release: the one act behind deploy, rollback, return and recovery.

`move` brings up all that the release names beside what it replaces, and proves it; until then everything can
be taken back at once. `settle` then lets go of what is no longer wanted. Both look first at what runs, so
that doing them again after an interruption does only what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .failure import FailedError
from .host import Host
from .installed import Ours, dismantle, switch
from .manifest import Manifest
from .plan import LOAD, Action, Plan, plan
from .services import Service
from .survey import Live, gateways, listens, present_gateways, runs

Proof = list[dict[str, Any]]
RECOVERY = "citadel-recover.service"
FACE = "citadel-gateway.service"  # what people start and stop; until it was that, what the sockets would wake
KEEPER = "citadel-sockets.service"  # what the sockets would wake now


def move(host: Host, manifest: Manifest) -> Proof:
    """Bring up the release and prove every service of it."""
    live = host.survey()
    todo = plan(manifest, live, listens(host.layout, manifest))
    with step(host, "switch"):
        switch(host.layout, manifest, present_gateways(host.systemd), live.manifest)
        host.systemd.reload()
    _let_go_of_failed_gateways(host, manifest, live)
    loading = host.clock()
    if todo.together:
        with step(host, LOAD):
            for unit in todo.together:
                host.systemd.restart(unit, wait=False)
    proof: Proof = []
    for action in todo.actions:
        if action.verb in {"start", "restart", "replace"}:
            with step(host, f"{action.verb} {action.unit}"):
                proof.append(_bring_up(host, manifest, action, todo, loading))
    with step(host, "prove"):
        # Doors that an interrupted run left shut.
        for service in manifest.wanted():
            if service.kind == "model":
                host.gate.open(service.name)
        proof += _end_to_end(host, manifest)
    return proof


def settle(host: Host, manifest: Manifest) -> None:
    """Stop what the release does not name. Nothing here can spoil what was proven, so nothing here is undone."""
    wanted = {service.unit for service in manifest.wanted()}
    serving = _serving_gateway(host, manifest)
    for unit in host.survey().processes:
        if unit not in wanted | {serving} or (gateways([unit]) and unit != serving):
            with step(host, f"stop {unit}"):
                # A gateway drains for as long as its streams take, and nobody waits for that.
                host.systemd.stop(unit, wait=not gateways([unit]))
    for unit in _units(manifest, ".target", ".timer"):
        host.systemd.start(unit, wait=False)
    _show_face(host, manifest)
    switch(host.layout, manifest, present_gateways(host.systemd))
    host.systemd.reload()
    named = set(_units(manifest, ""))
    for kind in ("target", "timer", "socket"):
        for unit in host.systemd.matching(f"citadel-*.{kind}"):
            if unit not in named and host.systemd.show(unit).running:
                host.systemd.stop(unit, wait=False)


def line_up(host: Host, manifest: Manifest) -> None:
    """What `move` is at boot: links first, and the services of the release take the place of those of another
    in the queue of jobs. Waiting for them here would wait for itself."""
    with step(host, "line up"):
        wanted = {service.unit for service in manifest.wanted()}
        others = _runnable(host) - wanted - set(_units(manifest, ""))
        switch(host.layout, manifest, keep=set())
        host.systemd.reload()
        for unit in sorted(others):
            host.systemd.stop(unit, wait=False)
        live = host.survey()
        _show_face(host, manifest)
        for unit in _units(manifest, ".socket", ".timer"):
            host.systemd.start(unit, wait=False)
        for service in manifest.wanted():
            if not runs(live, service):
                host.systemd.restart(service.unit, wait=False)


def clear(host: Host, wait: bool = True) -> None:
    """The way back where there was no release before: nothing of ours runs, nothing is linked."""
    with step(host, "clear"):
        units = _runnable(host) | set(host.survey().processes)
        # Services first: one that is still to be started again would open its sockets anew.
        for unit in sorted(units, key=lambda name: name.endswith(".socket")):
            host.systemd.stop(unit, wait=wait)
        dismantle(host.layout)
        host.systemd.reload()


def _let_go_of_failed_gateways(host: Host, manifest: Manifest, live: Live) -> None:
    """Where the wanted gateway serves already, no other may take requests beside it while models load."""
    wanted = manifest.gateway()
    if wanted and runs(live, wanted):
        serving = _serving_gateway(host, manifest)
        for unit in gateways(live.processes):
            if unit != serving:
                host.systemd.stop(unit, wait=False)


def _bring_up(host: Host, manifest: Manifest, action: Action, todo: Plan, loading: float) -> dict[str, Any]:
    service = next(service for service in manifest.wanted() if service.unit == action.unit)
    begun = loading if service.unit in todo.together else host.clock()
    if service.kind == "gateway":
        proof = _gateway(host, manifest, service, todo)
    elif service.kind == "model":
        proof = _model(host, service, loads=service.unit in todo.together)
    else:
        host.systemd.restart(service.unit, wait=True)
        proof = _started(host, service)
    host.measured(service.measure, host.clock() - begun)
    return {"unit": service.unit, **proof}


def _model(host: Host, service: Service, loads: bool) -> dict[str, Any]:
    """Requests wait in the gateway while their model is away, and meet it again only when it is proven."""
    # Without a gateway behind it, systemd's socket would take the question and never answer.
    shut = bool(gateways(host.survey().processes)) and host.gate.shut(service.name)
    if not loads:
        host.systemd.restart(service.unit, wait=True)
    elif not host.systemd.show(service.unit).given_up:
        host.systemd.start(service.unit, wait=True)  # was asked for with the others, and is only awaited here
    started = _started(host, service)
    proof = host.prober.model(service)
    if shut:
        host.gate.open(service.name)
    return {**started, **proof}


def _gateway(host: Host, manifest: Manifest, service: Service, todo: Plan) -> dict[str, Any]:
    """Prove the new one aside, then let it share the listening sockets with the old one."""
    tried = host.prober.trial(manifest)
    if todo.sockets:
        # A socket that listens elsewhere cannot be shared: this is the one change that is seen from outside.
        for unit in gateways(host.survey().processes):
            host.systemd.stop(unit, wait=True)
        for unit in todo.sockets:
            host.systemd.stop(unit, wait=True)
    if host.systemd.show(FACE).sub == "exited":
        # An earlier release's keeper of the sockets. What is started below is part of the face, and would stop with it.
        host.systemd.stop(FACE, wait=True)
    if any(not host.systemd.show(unit).running for unit in _units(manifest, ".socket")):
        # systemd opens no socket while the service that it would wake is active.
        host.systemd.stop(KEEPER, wait=True)
    # It wants its sockets, so they open with it; by themselves they would close again, as long as nobody needs them.
    host.systemd.restart(service.unit, wait=True)
    started = _started(host, service)
    for unit in _units(manifest, ".socket"):
        if not host.systemd.show(unit).running:
            words = " | ".join(host.systemd.log(unit, 3)) or "none"
            raise FailedError(f"{unit} did not open with {service.unit}. Its last words: {words}")
    return {"trial": tried, **started}


def _show_face(host: Host, manifest: Manifest) -> None:
    """What people know as the gateway. Releases from before it was one have a keeper of that name, which is started by
    its sockets: there a face has no place any more."""
    unit = host.layout.release(manifest.id) / "units" / FACE
    if unit.is_file() and "RemainAfterExit" not in unit.read_text(encoding="utf-8"):
        host.systemd.start(FACE, wait=False)
    elif host.systemd.show(FACE).sub == "running":
        host.systemd.stop(FACE, wait=False)
        host.systemd.stop(KEEPER, wait=False)


def _started(host: Host, service: Service) -> dict[str, Any]:
    """It runs, and with what the release says: not with what was there before."""
    state = host.systemd.show(service.unit)
    if state.given_up:
        words = " | ".join(host.systemd.log(service.unit, 5)) or "none"
        raise FailedError(f"{service.unit} is {state.active} ({state.sub}) after its start. Its last words: {words}")
    digest = host.systemd.environment(state.pid).get("CITADEL_DIGEST", service.digest)
    if digest != service.digest:
        raise FailedError(f"{service.unit} was started with {digest[:12]} and not with {service.digest[:12]}")
    return {"process": state.pid, "digest": digest}


def _end_to_end(host: Host, manifest: Manifest) -> Proof:
    """Every model through the gateway; where there is no gateway, every model by itself."""
    wanted = manifest.gateway()
    if wanted is None:
        models = [service for service in manifest.wanted() if service.kind == "model"]
        return [{"unit": service.unit, **host.prober.model(service)} for service in models]
    serving = Service(**{**wanted.as_dict(), "unit": _serving_gateway(host, manifest)})
    return [{"unit": serving.unit, **host.prober.gateway(manifest, serving)}]


def _serving_gateway(host: Host, manifest: Manifest) -> str:
    """The release's own gateway, or an equal one that an earlier release started and nobody had to touch."""
    wanted = manifest.gateway()
    if wanted is None:
        return ""
    processes = host.survey().processes
    equal = [unit for unit in gateways(processes) if processes[unit].digest == wanted.digest]
    return wanted.unit if wanted.unit in equal or not equal else equal[-1]


def _runnable(host: Host) -> set[str]:
    """Units of ours on this host that can be stopped: all but templates and the recovery that may be asking."""
    names = {path.name for path in Ours(host.layout).there() if "@." not in path.name}
    return {name for name in names if name.endswith((".service", ".socket", ".timer")) and name != RECOVERY}


def _units(manifest: Manifest, *kinds: str) -> list[str]:
    """The release's own units of these kinds. Templates are none yet: something else makes units of them."""
    names = (path.removeprefix("units/") for path in sorted(manifest.files) if path.startswith("units/"))
    return [name for name in names if name.endswith(kinds) and "@." not in name]


@contextmanager
def step(host: Host, name: str) -> Iterator[None]:
    """On disk before it is done, and again when it is done."""
    host.journal.write("step", name=name, at=host.now())
    host.tell(name)
    begun = host.clock()
    yield
    host.journal.write("done", name=name, seconds=round(host.clock() - begun, 2))
