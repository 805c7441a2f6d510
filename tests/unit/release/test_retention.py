"""What goes and what stays, and that nothing goes which somebody needs."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from citadel.release.history import BAD, GOOD, History
from citadel.release.retention import Keep, collect, surplus
from citadel.release.transaction import Terms, activate, rollback
from tests.unit.release.world import World, release_files


@given(
    states=st.lists(st.sampled_from([GOOD, BAD, "interrupted", "withdrawn"]), max_size=12),
    good=st.integers(1, 5),
    other=st.integers(0, 3),
    live=st.integers(0, 11),
)
def test_never_the_live_one_and_never_too_few(states: list[str], good: int, other: int, live: int) -> None:
    histories = [History(f"{n:04d}-00000000", state, last=n) for n, state in enumerate(states, 1)]
    protected = {f"{live:04d}-00000000"}
    gone = set(surplus(histories, protected, Keep(good, other)))
    assert not gone & protected
    left = [history for history in histories if history.id not in gone]
    assert sum(history.state == GOOD for history in left) >= min(good, states.count(GOOD))
    newest = [history.id for history in histories if history.state == GOOD][-good:]
    assert not gone & set(newest)
    assert sum(history.state != GOOD and history.id not in protected for history in left) <= other


def environment(world: World, name: str) -> str:
    folder = world.layout.environments / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "complete").touch()
    return f"/opt/citadel/envs/{name}"


def revision(world: World, model: str, name: str) -> dict[str, str]:
    folder = world.layout.models / model / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "citadel-manifest.json").write_text("{}")
    return {"revision": name, "path": f"/opt/models/{model}/{name}"}


def deploy(world: World, number: int, terms: Terms) -> str:
    manifest = world.stage(
        release_files(alpha=f"a{number}", gateway=f"g{number}"),
        environments={"vllm": environment(world, f"vllm-{number}")},
        models={"alpha": revision(world, "alpha", f"r{number}")},
    )
    assert activate(world.host(), manifest.id, terms).good
    return manifest.id


def test_environments_and_revisions_go_with_the_last_release_that_names_them(world: World) -> None:
    foreign = revision(world, "of-somebody-else", "r0")
    (world.layout.environments / "vllm-being-built").mkdir(parents=True)
    ids = [deploy(world, number, Terms("tester", keep=Keep(2, 1))) for number in range(4)]
    assert sorted(path.name for path in world.layout.releases.iterdir()) == ids[2:]
    assert sorted(path.name for path in world.layout.environments.iterdir()) == ["vllm-2", "vllm-3", "vllm-being-built"]
    assert sorted(path.name for path in (world.layout.models / "alpha").iterdir()) == ["r2", "r3"]
    assert Path(f"{world.layout.root}{foreign['path']}").is_dir()
    assert rollback(world.host(), None, Terms("tester")).good


def test_as_many_revisions_stay_as_the_disk_was_planned_for(world: World) -> None:
    """What is too much is the release, so that none stays which names a revision that is gone."""
    ids = [deploy(world, number, Terms("tester", keep=Keep(5, 2, revisions=2))) for number in range(4)]
    assert sorted(path.name for path in (world.layout.models / "alpha").iterdir()) == ["r2", "r3"]
    assert sorted(path.name for path in world.layout.releases.iterdir()) == ids[2:]


def test_a_revision_that_a_bad_release_brought_makes_no_good_one_go() -> None:
    histories = [
        History("0001-00000000", GOOD, last=1),
        History("0002-00000000", BAD),
        History("0003-00000000", GOOD, last=2),
    ]
    models = {"0001-00000000": {"alpha": "r1"}, "0002-00000000": {"alpha": "r2"}, "0003-00000000": {"alpha": "r3"}}
    assert surplus(histories, {"0003-00000000"}, Keep(), models) == ["0002-00000000"]


def test_a_release_whose_gateway_still_runs_stays(world: World) -> None:
    first = world.stage(release_files(alpha="a0"))
    activate(world.host(), first.id, Terms("tester"))
    for number in range(1, 4):
        manifest = world.stage(release_files(alpha=f"a{number}"))
        assert activate(world.host(), manifest.id, Terms("tester", keep=Keep(1, 0))).good
    assert world.gateways() == [f"citadel-gateway@{first.id}.service"]
    assert sorted(path.name for path in world.layout.releases.iterdir()) == [first.id, manifest.id]


def test_what_a_process_has_mapped_stays(world: World) -> None:
    used = environment(world, "vllm-used")
    maps = world.layout.root / "proc/1234/maps"
    maps.parent.mkdir(parents=True)
    maps.write_text(f"7f00-7f01 r-xp 0 00:00 1 {world.layout.inside(used)}/lib/libtorch.so\n")
    deploy(world, 1, Terms("tester"))
    assert world.layout.inside(used).is_dir()
    maps.unlink()
    assert collect(world.layout, world.systemd, Keep()) == [str(world.layout.inside(used))]


def test_an_unreadable_release_keeps_what_it_may_need(world: World) -> None:
    first = deploy(world, 1, Terms("tester"))
    deploy(world, 2, Terms("tester"))
    path = world.layout.release(first) / "manifest.json"
    path.chmod(0o644)
    path.write_text("half of")
    environment(world, "vllm-unnamed")
    assert collect(world.layout, world.systemd, Keep()) == []
