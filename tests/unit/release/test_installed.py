"""Units as files of their own: what is ours, what was altered, and what somebody else put there."""

from __future__ import annotations

import pytest

from citadel.release import files
from citadel.release.failure import RefusedError
from citadel.release.installed import installed_as, look
from citadel.release.manifest import read_manifest
from citadel.release.plan import plan
from citadel.release.transaction import Terms, activate
from tests.unit.release.world import World, release_files

ALIAS = {
    "units/citadel-gateway.service": "[Service]\nExecStart=/bin/face\n[Install]\nAlias=citadel-llm-gateway.service\n"
}


def deploy(world: World, extra: dict[str, str] | None = None, **content: str) -> str:
    manifest = world.stage({**release_files(**content), **(extra or {})})
    outcome = activate(world.host(), manifest.id, Terms("tester"))
    assert outcome.outcome == "committed", outcome.said
    return manifest.id


def lines(world: World) -> str:
    assert world.live
    manifest = read_manifest(world.layout.release(world.live))
    return "\n".join(plan(manifest, world.host().survey(units=True), {}).lines())


def test_units_are_files_and_only_what_install_asks_for_is_linked(world: World) -> None:
    deploy(world, ALIAS, alpha="a1")
    units = world.layout.units
    for path in units.rglob("*"):
        assert not str(path.resolve()).startswith(str(world.layout.home)), path
    assert (units / "citadel-llm-gateway.service").readlink() == units / "citadel-gateway.service"
    wants = units / "citadel-models.target.wants/citadel-llm@alpha.service"
    assert wants.readlink() == units / "citadel-llm@.service"
    deploy(world, alpha="a2")
    assert not (units / "citadel-llm-gateway.service").is_symlink(), "the release names it no more"
    assert list(units.glob(".*")) == []


def test_what_enable_would_do() -> None:
    text = "[Unit]\nWantedBy=nobody\n[Install]\nWantedBy=a.target b.target\nRequiredBy = c.service\nAlias=d.service\n"
    assert installed_as(text) == ["a.target.wants/", "b.target.wants/", "c.service.requires/", "d.service"]


def test_what_was_altered_by_hand_is_told_healed_and_kept(world: World) -> None:
    live = deploy(world, alpha="a1")
    unit = world.layout.units / "citadel-llm@.service"
    right = unit.read_text()
    unit.write_text(right + "# by hand\n")
    (world.layout.units / "multi-user.target.wants/citadel-llm.target").unlink()
    (world.layout.units / "citadel-llm.target").unlink()
    said = lines(world)
    assert "heal    citadel-llm@.service was altered by hand" in said
    assert "heal    citadel-llm.target is gone" in said and "as `systemctl disable` does it" in said
    assert activate(world.host(), live, Terms("tester")).outcome == "committed"
    assert unit.read_text() == right
    assert (world.layout.state / "altered/citadel-llm@.service").read_text() == right + "# by hand\n"
    assert "nothing to do" in lines(world)


def test_a_drop_in_of_somebody_else_stays(world: World) -> None:
    deploy(world, alpha="a1", beta="b1")
    override = world.layout.units / "citadel-llm@beta.service.d/override.conf"
    override.write_text("[Service]\nNice=5\n")
    foreign = world.layout.units / "citadel-backup.timer"
    foreign.write_text("[Timer]\n")
    assert "kept    citadel-llm@beta.service.d/override.conf is not of a release" in lines(world)
    deploy(world, alpha="a1")
    assert override.is_file() and foreign.is_file()
    assert not override.with_name("plan.conf").exists()
    assert "kept    citadel-backup.timer" in lines(world)


def test_a_masked_unit_is_refused(world: World) -> None:
    deploy(world, alpha="a1")
    (world.layout.units / "citadel-llm@alpha.service").symlink_to("/dev/null")
    manifest = world.stage(release_files(alpha="a2"))
    with pytest.raises(RefusedError, match=r"citadel-llm@alpha.service is masked: `systemctl unmask"):
        activate(world.host(), manifest.id, Terms("tester"))


def linked(world: World) -> None:
    """As an earlier version of this program left it: links into the live release, folders of drop-ins too."""
    for path in sorted(world.layout.units.glob("citadel-*")):
        if path.name.endswith(".wants"):
            continue
        where = f"{world.layout.current}/units/{path.name}"
        if path.name.startswith("citadel-gateway@"):
            where = f"{world.layout.release(world.live or '')}/units/citadel-gateway@.service"
        if path.is_dir():
            for inside in path.iterdir():
                inside.unlink()
            path.rmdir()
        else:
            path.unlink()
        path.symlink_to(where)


def test_a_host_with_linked_units_is_taken_over(world: World) -> None:
    first = deploy(world, alpha="a1", beta="b1")
    linked(world)
    live = read_manifest(world.layout.release(first))
    assert look(world.layout, live).kept == ()
    before = (world.layout.release(first) / "units/citadel-llm@alpha.service.d/plan.conf").read_text()
    deploy(world, alpha="a2", gateway="g2")
    units = world.layout.units
    assert (units / "citadel-llm@alpha.service.d/plan.conf").is_file()
    assert not (units / "citadel-llm@alpha.service.d").is_symlink()
    assert not (units / "citadel-llm@beta.service.d").is_symlink()
    for path in units.glob("citadel-*"):
        assert not path.is_symlink(), path
    assert (world.layout.release(first) / "units/citadel-llm@alpha.service.d/plan.conf").read_text() == before


def test_a_full_disk_below_etc_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = deploy(world, alpha="a1")
    manifest = world.stage(release_files(alpha="a2", gateway="g2", beta="b1"))
    before = {path: path.read_text() for path in world.layout.units.rglob("*") if path.is_file()}
    inner = files.aside
    count = 0

    def full(path: object, *rest: object) -> object:
        nonlocal count
        if str(path).startswith(str(world.layout.units)):
            count += 1
            if count > 1:
                raise OSError(28, "No space left on device")
        return inner(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "aside", full)
    outcome = activate(world.host(), manifest.id, Terms("tester"))
    assert (outcome.outcome, outcome.live) == ("returned", first), outcome.said
    assert {path: path.read_text() for path in world.layout.units.rglob("*") if path.is_file()} == before
