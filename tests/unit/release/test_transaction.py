"""The good path and the ways in which it is left, without injected faults: those are in test_faults.py."""

from __future__ import annotations

import pytest

from citadel.release.failure import RefusedError
from citadel.release.manifest import read_manifest
from citadel.release.transaction import Terms, activate, rollback
from tests.unit.release.world import World, release_files


def deploy(world: World, **content: str) -> str:
    manifest = world.stage(release_files(**content))
    outcome = activate(world.host(), manifest.id, Terms("tester"))
    assert outcome.outcome == "committed", outcome.said
    return manifest.id


def test_first_deployment_serves_everything(world: World) -> None:
    first = deploy(world, alpha="a1", beta="b1")
    assert world.live == first
    assert world.serving() == {
        "citadel-llm@alpha.service": "a1",
        "citadel-llm@beta.service": "b1",
        "gateway": "g1",
    }
    assert not world.layout.journal.exists()
    assert world.host().histories.of(first).state == "good"


def test_one_model_alone_can_be_deployed(world: World) -> None:
    files = {path: text for path, text in release_files(alpha="a1").items() if "gateway" not in path}
    manifest = world.stage(files)
    assert activate(world.host(), manifest.id, Terms("tester")).good
    assert world.serving() == {"citadel-llm@alpha.service": "a1"}


def test_models_that_nobody_uses_yet_load_side_by_side(world: World) -> None:
    deploy(world, alpha="a1")
    world.systemd.acts.clear()
    deploy(world, alpha="a2", beta="b1", gamma="c1")
    models = [act for act in world.systemd.acts if "citadel-llm@" in act]
    beta, gamma = "citadel-llm@beta.service", "citadel-llm@gamma.service"
    assert models[:2] == [f"restart {beta}", f"restart {gamma}"]  # asked for, and not awaited
    assert models[2:] == ["restart citadel-llm@alpha.service", f"start {beta}", f"start {gamma}"]


def test_one_of_several_new_models_that_dies_is_not_started_again(world: World) -> None:
    first = deploy(world, alpha="a1")
    world.systemd.crash = {"c1"}
    manifest = world.stage(release_files(alpha="a1", beta="b1", gamma="c1"))
    outcome = activate(world.host(), manifest.id, Terms("tester"))
    assert outcome.outcome == "returned" and "last words of citadel-llm@gamma" in outcome.said
    assert world.live == first and set(world.serving()) == {"citadel-llm@alpha.service", "gateway"}
    assert world.systemd.acts.count("restart citadel-llm@gamma.service") == 1
    assert "start citadel-llm@gamma.service" not in world.systemd.acts


def test_only_what_differs_is_touched(world: World) -> None:
    deploy(world, alpha="a1", beta="b1")
    world.systemd.acts.clear()
    deploy(world, alpha="a1", beta="b2")
    touched = [act for act in world.systemd.acts if act.split()[0] in {"restart", "stop"}]
    assert touched == ["restart citadel-llm@beta.service"]
    assert len(world.gateways()) == 1


def test_a_gateway_is_replaced_by_one_of_its_own_release(world: World) -> None:
    first = deploy(world, alpha="a1")
    second = deploy(world, alpha="a1", gateway="g2")
    assert world.gateways() == [f"citadel-gateway@{second}.service"]
    acts = world.systemd.acts
    assert acts.index(f"restart citadel-gateway@{second}.service") < acts.index(f"stop citadel-gateway@{first}.service")
    assert world.proofs.tried == [first, second]


def test_a_release_that_keeps_the_gateway_starts_no_second_one(world: World) -> None:
    first = deploy(world, alpha="a1")
    second = deploy(world, alpha="a1", host="h2")
    assert second != first
    assert world.gateways() == [f"citadel-gateway@{first}.service"]


def test_a_gateway_that_drains_keeps_its_unit_until_it_is_gone(world: World) -> None:
    world.systemd.slow = True
    first = deploy(world, alpha="a1")
    deploy(world, alpha="a1", gateway="g2")
    unit = world.layout.units / f"citadel-gateway@{first}.service"
    assert world.systemd.draining == {unit.name} and unit.is_file()
    assert world.layout.release(first).is_dir()
    world.systemd.draining.clear()
    deploy(world, alpha="a2", gateway="g2")
    assert not unit.exists()


def test_the_same_content_again_does_nothing(world: World) -> None:
    first = deploy(world, alpha="a1")
    world.systemd.acts.clear()
    manifest = world.stage(release_files(alpha="a1"))
    assert manifest.id == first
    assert activate(world.host(), first, Terms("tester")).outcome == "unchanged"
    assert world.systemd.acts == []


def test_a_service_that_died_is_healed_by_the_same_content(world: World) -> None:
    first = deploy(world, alpha="a1", beta="b1")
    before = world.serving()
    del world.systemd.running["citadel-llm@beta.service"]
    assert activate(world.host(), first, Terms("tester")).outcome == "committed"
    assert world.serving() == before


def test_a_model_that_is_not_named_any_more_is_stopped_last(world: World) -> None:
    deploy(world, alpha="a1", beta="b1")
    deploy(world, alpha="a1", gateway="g2")
    assert "citadel-llm@beta.service" not in world.serving()
    assert not list(world.layout.units.glob("*.wants/citadel-llm@beta.service"))
    world.systemd.boot()
    assert world.serving() == {"citadel-llm@alpha.service": "a1", "gateway": "g2"}


def test_after_any_deployment_a_boot_starts_the_same(world: World) -> None:
    deploy(world, alpha="a1")
    deploy(world, alpha="a2")
    before = world.serving()
    world.systemd.boot()
    assert world.serving() == before


def test_rollback_goes_to_the_release_before_and_then_further(world: World) -> None:
    ids = [deploy(world, alpha=f"a{number}") for number in range(3)]
    assert rollback(world.host(), None, Terms("tester")).release == ids[1]
    assert rollback(world.host(), None, Terms("tester")).release == ids[0]
    assert world.serving()["citadel-llm@alpha.service"] == "a0"
    with pytest.raises(RefusedError, match=r"no earlier good release"):
        rollback(world.host(), None, Terms("tester"))
    assert rollback(world.host(), ids[2], Terms("tester")).good
    assert world.live == ids[2]


def test_a_bad_release_is_kept_and_refused(world: World) -> None:
    first = deploy(world, alpha="a1")
    world.proofs.wrong["a2"] = "answers nonsense"
    bad = world.stage(release_files(alpha="a2"))
    outcome = activate(world.host(), bad.id, Terms("tester"))
    assert (outcome.outcome, outcome.live) == ("returned", first)
    assert "answers nonsense" in outcome.said
    assert world.layout.release(bad.id).is_dir()
    for attempt in (activate, rollback):
        with pytest.raises(RefusedError, match=r"marked bad: in step 'restart citadel-llm@alpha.service'"):
            attempt(world.host(), bad.id, Terms("tester"))
    world.proofs.wrong.clear()
    assert activate(world.host(), bad.id, Terms("tester", force=True)).good


def test_the_same_bad_content_deployed_again_is_a_new_attempt(world: World) -> None:
    deploy(world, alpha="a1")
    world.proofs.wrong["a2"] = "answers nonsense"
    bad = world.stage(release_files(alpha="a2"))
    activate(world.host(), bad.id, Terms("tester"))
    again = world.stage(release_files(alpha="a2"))
    assert again.id != bad.id and again.digest == bad.digest


def test_a_failed_first_deployment_leaves_an_empty_host(world: World) -> None:
    world.proofs.wrong["g1"] = "does not come up"
    manifest = world.stage(release_files(alpha="a1"))
    assert activate(world.host(), manifest.id, Terms("tester")).outcome == "returned"
    assert world.serving() == {}
    assert world.live is None
    assert list(world.layout.units.rglob("citadel-*")) == []


def test_refusals_touch_nothing(world: World) -> None:
    first = deploy(world, alpha="a1")
    world.systemd.acts.clear()
    broken = world.stage({**release_files(alpha="a2"), "units/citadel-other.service": "[Broken]\n"})
    with pytest.raises(RefusedError, match=r"citadel-other.service: bad"):
        activate(world.host(), broken.id, Terms("tester"))
    tampered = world.stage(release_files(alpha="a3"))
    path = world.layout.release(tampered.id) / "config/gateway.yml"
    path.chmod(0o644)
    path.write_text("which: another\n")
    with pytest.raises(RefusedError, match=r"config/gateway.yml was changed"):
        activate(world.host(), tampered.id, Terms("tester"))
    missing = world.stage(release_files(alpha="a4"), environments={"vllm": "/opt/citadel/envs/vllm-0"})
    with pytest.raises(RefusedError, match=r"environment vllm is not at /opt/citadel/envs/vllm-0"):
        activate(world.host(), missing.id, Terms("tester"))
    with pytest.raises(RefusedError, match=rf"no release 9999-00000000 on this host.*{first}"):
        activate(world.host(), "9999-00000000", Terms("tester"))
    assert world.systemd.acts == []
    assert world.live == first


def test_a_current_link_that_leads_nowhere_is_refused_and_can_be_forced(world: World) -> None:
    first = deploy(world, alpha="a1")
    world.layout.current.unlink()
    world.layout.current.symlink_to("releases/0042-00000000")
    with pytest.raises(RefusedError, match=r"points to releases/0042-00000000, which is no release"):
        rollback(world.host(), first, Terms("tester"))
    assert rollback(world.host(), first, Terms("tester", force=True)).good
    assert world.live == first


def test_who_comes_second_is_told_who_holds_the_lock(world: World) -> None:
    first = deploy(world, alpha="a1")
    second = world.stage(release_files(alpha="a2"))
    refusals: list[str] = []

    def intrude(act: str) -> None:
        if act.startswith("restart") and not refusals:
            with pytest.raises(RefusedError) as refused:
                activate(world.host(), first, Terms("somebody else"))
            refusals.append(str(refused.value))

    world.systemd.before = intrude
    assert activate(world.host(), second.id, Terms("hana@desk")).good
    assert f"hana@desk has been busy with the activation of {second.id} since 2026-" in refusals[0]


def test_a_rollback_by_the_digest_that_equal_hosts_share(world: World) -> None:
    first = deploy(world, alpha="a1")
    deploy(world, alpha="a2")
    digest = read_manifest(world.layout.release(first)).digest
    assert rollback(world.host(), digest, Terms("tester")).release == first
    deploy(world, alpha="a3")
    assert rollback(world.host(), digest[:10], Terms("tester")).release == first
    with pytest.raises(RefusedError, match="digest begins with 00000000"):
        rollback(world.host(), "00000000", Terms("tester"))
    with pytest.raises(RefusedError, match=r"no release nonsense on this host"):
        rollback(world.host(), "nonsense", Terms("tester"))


def test_of_several_attempts_with_one_content_the_good_one_is_meant(world: World) -> None:
    deploy(world, alpha="a1")
    world.proofs.wrong["a2"] = "answers nonsense"
    bad = world.stage(release_files(alpha="a2"))
    activate(world.host(), bad.id, Terms("tester"))
    world.proofs.wrong.clear()
    good = deploy(world, alpha="a2")
    deploy(world, alpha="a3")
    assert good != bad.id and rollback(world.host(), bad.digest[:8], Terms("tester")).release == good


@pytest.mark.parametrize("ends", ["well", "on trial", "at its start"])
def test_a_socket_that_shall_listen_elsewhere_does_so_or_listens_as_before(world: World, ends: str) -> None:
    """systemd closes it as soon as it hears of the other address, so it hears of that when the way is clear."""
    first = deploy(world, alpha="a1")
    socket, here, there = "citadel-gateway.socket", "8000", "127.0.0.1:8000"
    assert world.systemd.opened == {socket: here}
    files = release_files(gateway="g2", alpha="a1")
    files[f"units/{socket}"] = files[f"units/{socket}"].replace(here, there)
    if ends == "on trial":
        world.proofs.wrong["g2"] = "no answer"
    elif ends == "at its start":
        world.systemd.crash.add("g2")
    assert activate(world.host(), world.stage(files).id, Terms("tester")).good is (ends == "well")
    assert world.systemd.opened == {socket: there if ends == "well" else here}
    if ends == "well":
        assert rollback(world.host(), first, Terms("tester")).good
    assert world.systemd.opened == {socket: here}
    assert world.serving()["gateway"] == "g1"
