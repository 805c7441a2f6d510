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
from .installed import Ours, dismantle, switch
from .manifest import Manifest
from .plan import LOAD, Action, Plan, plan
from .server import Server
from .services import Service
from .survey import Live, gateways, listens, present_gateways, runs

Proof = list[dict[str, Any]]
RECOVERY = "citadel-recover.service"
FACE = "citadel-gateway.service"  # what people start and stop; until it was that, what the sockets would wake
KEEPER = "citadel-sockets.service"  # what the sockets would wake now


def move(server: Server, manifest: Manifest) -> Proof:
    """Bring up the release and prove every service of it."""
    live = server.survey()
    todo = plan(manifest, live, listens(server.layout, manifest))
    with step(server, "switch"):
        # systemd closes a socket as soon as it reads that it listens elsewhere: it hears of that when the way is clear.
        switch(server.layout, manifest, present_gateways(server.systemd), live.manifest, hold=todo.sockets)
        server.systemd.reload()
    _let_go_of_failed_gateways(server, manifest, live)
    loading = server.clock()
    if todo.together:
        with step(server, LOAD):
            for unit in todo.together:
                server.systemd.restart(unit, wait=False)
    proof: Proof = []
    for action in todo.actions:
        if action.verb in {"start", "restart", "replace"}:
            with step(server, f"{action.verb} {action.unit}"):
                proof.append(_bring_up(server, manifest, action, todo, loading))
    with step(server, "prove"):
        # Doors that an interrupted run left shut.
        for service in manifest.wanted():
            if service.kind == "model":
                server.gate.open(service.name)
        proof += _end_to_end(server, manifest)
    return proof


def settle(server: Server, manifest: Manifest) -> None:
    """Stop what the release does not name. Nothing here can spoil what was proven, so nothing here is undone."""
    wanted = {service.unit for service in manifest.wanted()}
    serving = _serving_gateway(server, manifest)
    for unit in server.survey().processes:
        if unit not in wanted | {serving} or (gateways([unit]) and unit != serving):
            with step(server, f"stop {unit}"):
                # A gateway drains for as long as its streams take, and nobody waits for that.
                server.systemd.stop(unit, wait=not gateways([unit]))
    # Whoever starts what is up already starts all that it wants, and that is a gateway by this release's name: a second
    # one, where an equal one of an earlier release serves.
    for unit in _units(manifest, ".target", ".timer"):
        if not server.systemd.show(unit).running:
            server.systemd.start(unit, wait=False)
    _show_face(server, manifest)
    switch(server.layout, manifest, present_gateways(server.systemd))
    server.systemd.reload()
    named = set(_units(manifest, ""))
    for kind in ("target", "timer", "socket"):
        for unit in server.systemd.matching(f"citadel-*.{kind}"):
            if unit not in named and server.systemd.show(unit).running:
                server.systemd.stop(unit, wait=False)


def line_up(server: Server, manifest: Manifest) -> None:
    """What `move` is at boot: links first, and the services of the release take the place of those of another
    in the queue of jobs. Waiting for them here would wait for itself."""
    with step(server, "line up"):
        wanted = {service.unit for service in manifest.wanted()}
        others = _runnable(server) - wanted - set(_units(manifest, ""))
        switch(server.layout, manifest, keep=set())
        server.systemd.reload()
        for unit in sorted(others):
            server.systemd.stop(unit, wait=False)
        live = server.survey()
        _show_face(server, manifest)
        for unit in _units(manifest, ".socket", ".timer"):
            server.systemd.start(unit, wait=False)
        for service in manifest.wanted():
            if not runs(live, service):
                server.systemd.restart(service.unit, wait=False)


def clear(server: Server, wait: bool = True) -> None:
    """The way back where there was no release before: nothing of ours runs, nothing is linked."""
    with step(server, "clear"):
        units = _runnable(server) | set(server.survey().processes)
        # Services first: one that is still to be started again would open its sockets anew.
        for unit in sorted(units, key=lambda name: name.endswith(".socket")):
            server.systemd.stop(unit, wait=wait)
        dismantle(server.layout)
        server.systemd.reload()


def _let_go_of_failed_gateways(server: Server, manifest: Manifest, live: Live) -> None:
    """Where the wanted gateway serves already, no other may take requests beside it while models load."""
    wanted = manifest.gateway()
    if wanted and runs(live, wanted):
        serving = _serving_gateway(server, manifest)
        for unit in gateways(live.processes):
            if unit != serving:
                server.systemd.stop(unit, wait=False)


def _bring_up(server: Server, manifest: Manifest, action: Action, todo: Plan, loading: float) -> dict[str, Any]:
    service = next(service for service in manifest.wanted() if service.unit == action.unit)
    begun = loading if service.unit in todo.together else server.clock()
    if service.kind == "gateway":
        proof = _gateway(server, manifest, service, todo)
    elif service.kind == "model":
        proof = _model(server, service, loads=service.unit in todo.together)
    else:
        server.systemd.restart(service.unit, wait=True)
        proof = _started(server, service)
    server.measured(service.measure, server.clock() - begun)
    return {"unit": service.unit, **proof}


def _model(server: Server, service: Service, loads: bool) -> dict[str, Any]:
    """Requests wait in the gateway while their model is away, and meet it again only when it is proven."""
    # Without a gateway behind it, systemd's socket would take the question and never answer.
    shut = bool(gateways(server.survey().processes)) and server.gate.shut(service.name)
    if not loads:
        server.systemd.restart(service.unit, wait=True)
    elif not server.systemd.show(service.unit).given_up:
        server.systemd.start(service.unit, wait=True)  # was asked for with the others, and is only awaited here
    started = _started(server, service)
    proof = server.prober.model(service)
    if shut:
        server.gate.open(service.name)
    return {**started, **proof}


def _gateway(server: Server, manifest: Manifest, service: Service, todo: Plan) -> dict[str, Any]:
    """Prove the new one aside, then let it share the listening sockets with the old one."""
    tried = server.prober.trial(manifest)
    if todo.sockets:
        # A socket that listens elsewhere cannot be shared: this is the one change that is seen from outside.
        for unit in gateways(server.survey().processes):
            server.systemd.stop(unit, wait=True)
        # All of them: a connection that waits at another one would wake the keeper, and with that no socket opens.
        for unit in _units(manifest, ".socket"):
            server.systemd.stop(unit, wait=True)
        switch(server.layout, manifest, present_gateways(server.systemd))
        server.systemd.reload()
    if server.systemd.show(FACE).sub == "exited":
        # An earlier release's keeper of the sockets. What is started below is part of the face, and would stop with it.
        server.systemd.stop(FACE, wait=True)
    if any(not server.systemd.show(unit).running for unit in _units(manifest, ".socket")):
        # systemd opens no socket while the service that it would wake is active.
        server.systemd.stop(KEEPER, wait=True)
    # It wants its sockets, so they open with it; by themselves they would close again, as long as nobody needs them.
    server.systemd.restart(service.unit, wait=True)
    started = _started(server, service)
    for unit in _units(manifest, ".socket"):
        if not server.systemd.show(unit).running:
            words = " | ".join(server.systemd.log(unit, 3)) or "none"
            raise FailedError(f"{unit} did not open with {service.unit}. Its last words: {words}")
    return {"trial": tried, **started}


def _show_face(server: Server, manifest: Manifest) -> None:
    """What people know as the gateway. Releases from before it was one have a keeper of that name, which is started by
    its sockets: there a face has no place any more."""
    unit = server.layout.release(manifest.id) / "units" / FACE
    if unit.is_file() and "RemainAfterExit" not in unit.read_text(encoding="utf-8"):
        if not server.systemd.show(FACE).running:
            server.systemd.start(FACE, wait=False)
    elif server.systemd.show(FACE).sub == "running":
        server.systemd.stop(FACE, wait=False)
        server.systemd.stop(KEEPER, wait=False)


def _started(server: Server, service: Service) -> dict[str, Any]:
    """It runs, and with what the release says: not with what was there before."""
    state = server.systemd.show(service.unit)
    if state.given_up:
        words = " | ".join(server.systemd.log(service.unit, 5)) or "none"
        raise FailedError(f"{service.unit} is {state.active} ({state.sub}) after its start. Its last words: {words}")
    digest = server.systemd.environment(state.pid).get("CITADEL_DIGEST", service.digest)
    if digest != service.digest:
        raise FailedError(f"{service.unit} was started with {digest[:12]} and not with {service.digest[:12]}")
    return {"process": state.pid, "digest": digest}


def _end_to_end(server: Server, manifest: Manifest) -> Proof:
    """Every model through the gateway; where there is no gateway, every model by itself."""
    wanted = manifest.gateway()
    if wanted is None:
        models = [service for service in manifest.wanted() if service.kind == "model"]
        return [{"unit": service.unit, **server.prober.model(service)} for service in models]
    serving = Service(**{**wanted.as_dict(), "unit": _serving_gateway(server, manifest)})
    return [{"unit": serving.unit, **server.prober.gateway(manifest, serving)}]


def _serving_gateway(server: Server, manifest: Manifest) -> str:
    """The release's own gateway, or an equal one that an earlier release started and nobody had to touch."""
    wanted = manifest.gateway()
    if wanted is None:
        return ""
    processes = server.survey().processes
    equal = [unit for unit in gateways(processes) if processes[unit].digest == wanted.digest]
    return wanted.unit if wanted.unit in equal or not equal else equal[-1]


def _runnable(server: Server) -> set[str]:
    """Units of ours on this host that can be stopped: all but templates and the recovery that may be asking."""
    names = {path.name for path in Ours(server.layout).there() if "@." not in path.name}
    return {name for name in names if name.endswith((".service", ".socket", ".timer")) and name != RECOVERY}


def _units(manifest: Manifest, *kinds: str) -> list[str]:
    """The release's own units of these kinds. Templates are none yet: something else makes units of them."""
    names = (path.removeprefix("units/") for path in sorted(manifest.files) if path.startswith("units/"))
    return [name for name in names if name.endswith(kinds) and "@." not in name]


@contextmanager
def step(server: Server, name: str) -> Iterator[None]:
    """On disk before it is done, and again when it is done."""
    server.journal.write("step", name=name, at=server.now())
    server.tell(name)
    begun = server.clock()
    yield
    server.journal.write("done", name=name, seconds=round(server.clock() - begun, 2))
