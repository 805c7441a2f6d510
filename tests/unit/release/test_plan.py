"""The plan is arithmetic on what is wanted and what runs."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from citadel.release.manifest import Manifest, sha256
from citadel.release.plan import Plan, plan
from citadel.release.services import listening, services_of
from citadel.release.survey import Live, Process
from tests.unit.release.world import release_files


def manifest(number: int = 1, /, **content: str) -> Manifest:
    files = release_files(**content)
    digests = {path: sha256(text.encode()) for path, text in files.items()}
    return Manifest(f"{number:04d}-00000000", "", digests, {}, {}, tuple(services_of(files)))


def running(desired: Manifest) -> Live:
    processes = {service.unit: Process(service.unit, service.digest) for service in desired.wanted()}
    return Live(desired.id, desired, processes, {"alpha": 41.2})


def verbs(todo: Plan) -> dict[str, str]:
    return {action.unit.split("@")[-1]: action.verb for action in todo.actions}


def test_on_a_fresh_host_everything_starts() -> None:
    todo = plan(manifest(alpha="a1"), Live(), {})
    assert verbs(todo) == {"alpha.service": "start", "0001-00000000.service": "start"}
    assert todo.lines()[0] == "From an empty host to 0001-00000000:"
    assert "(a guess)" in "\n".join(todo.lines())


def test_what_runs_as_it_should_is_kept() -> None:
    desired = manifest(alpha="a1")
    todo = plan(desired, running(desired), {})
    assert set(verbs(todo).values()) == {"keep"}
    assert not todo.changes
    assert todo.lines() == ["Release 0001-00000000 is live and everything it names runs: nothing to do."]


def test_a_measured_start_is_told_and_summed() -> None:
    todo = plan(manifest(2, alpha="a2"), running(manifest(alpha="a1")), {})
    assert verbs(todo) == {"alpha.service": "restart", "0002-00000000.service": "keep"}
    assert "  restart citadel-llm@alpha.service: runs with something else, about 41 s" in todo.lines()
    assert todo.seconds == 41.2


def test_models_that_load_together_take_as_long_as_the_slowest() -> None:
    live = Live(load_seconds={"alpha": 41.2, "beta": 30.0, "citadel-gateway": 5.0})
    todo = plan(manifest(alpha="a1", beta="b1"), live, {})
    assert todo.seconds == 46.2
    assert todo.lines()[-1].endswith("about 46 s, new models together, what serves one at a time.")


def test_the_gateway_is_measured_too() -> None:
    live = Live(load_seconds={"citadel-gateway": 4.4})
    assert "about 4 s" in "\n".join(plan(manifest(alpha="a1"), live, {}).lines()).splitlines()[-2]


def test_a_socket_that_listens_otherwise_is_announced() -> None:
    unit = "[Unit]\nStopWhenUnneeded=yes\n[Socket]\nListenStream=8000\nService=one.service\n[Install]\nWantedBy=two\n"
    live = dataclasses.replace(running(manifest(alpha="a1")), listens=listening({"units/citadel-a.socket": unit}))
    elsewhere = listening({"units/citadel-a.socket": unit.replace("8000", "8001")})
    todo = plan(manifest(2, alpha="a1"), live, elsewhere)
    assert todo.sockets == ("citadel-a.socket",)
    assert any("refused for a moment" in line for line in todo.lines())
    # who is woken by it, and when it is closed, systemd reads anew without that
    other = unit.replace("one", "three").replace("StopWhenUnneeded=yes", "Description=x").replace("two", "four")
    assert plan(manifest(2, alpha="a1"), live, listening({"units/citadel-a.socket": other})).sockets == ()


def test_a_plan_survives_being_written_down() -> None:
    todo = plan(manifest(2, alpha="a2", beta="b1"), running(manifest(alpha="a1", gone="x1")), {})
    assert Plan.of(todo.as_dict()) == todo


names = st.sampled_from(["alpha", "beta", "gamma", "delta"])
contents = st.dictionaries(names, st.sampled_from(["d1", "d2", "d3"]), max_size=4)


@given(before=contents, after=contents, dead=st.sets(names))
def test_every_service_is_planned_once_and_rightly(
    before: dict[str, str], after: dict[str, str], dead: set[str]
) -> None:
    live = running(manifest(**before))
    alive = {u: p for u, p in live.processes.items() if u.split("@")[1].removesuffix(".service") not in dead}
    todo = plan(manifest(2, **after), Live(live.release, live.manifest, alive), {})
    found = {action.unit: action.verb for action in todo.actions if action.kind == "model"}
    assert len(todo.actions) == len({action.unit for action in todo.actions})
    for name in {*before, *after}:
        unit = f"citadel-llm@{name}.service"
        up = name in before and name not in dead
        expected = {
            (True, True): "keep" if before.get(name) == after.get(name) else "restart",
            (True, False): "start",
            (False, True): "stop",
            (False, False): None,
        }[(name in after, up)]
        assert found.get(unit) == expected
