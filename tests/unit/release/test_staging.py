"""Releases as trees: what they are called, what they may hold, and that nothing in them changes unseen."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from citadel.release.failure import RefusedError
from citadel.release.manifest import read_manifest, tampering
from citadel.release.stage import Wish, manifest_of, stage
from citadel.release.transaction import Terms, activate
from tests.unit.release.world import World, release_files


def test_names_count_and_carry_the_digest(world: World) -> None:
    first = world.stage(release_files(alpha="a1"))
    assert first.id == f"0001-{first.digest[:8]}"
    assert world.stage(release_files(alpha="a1")).id == first.id
    assert world.stage(release_files(alpha="a2")).number == 2


def test_who_and_when_do_not_make_another_release(world: World) -> None:
    one = world.stage(release_files(alpha="a1"), source={"revision": "abc"})
    two = world.stage(release_files(alpha="a1"), source={"revision": "def"})
    assert one.digest == two.digest
    assert world.stage(release_files(alpha="a1"), environments={"vllm": "/opt/citadel/envs/other"}).digest != one.digest


@pytest.mark.parametrize("path", ["../etc/passwd", "units/../../x", "/etc/passwd", "manifest.json", "units//a", "file"])
def test_paths_that_leave_the_release_are_refused(world: World, path: str) -> None:
    with pytest.raises(RefusedError, match="cannot hold a file at"):
        world.stage({path: ""})


def test_wishes_that_cannot_be_meant_are_refused(world: World) -> None:
    with pytest.raises(RefusedError, match="Environment vllm is at 'envs/vllm'"):
        world.stage({}, environments={"vllm": "envs/vllm"})
    with pytest.raises(RefusedError, match="Model alpha has no revision"):
        world.stage({}, models={"alpha": {"path": "/opt/models/alpha/1"}})
    with pytest.raises(RefusedError, match=r"do not say port and served-model-name"):
        world.stage({"config/models/alpha.env": "CITADEL_DIGEST=a\n"})
    with pytest.raises(RefusedError, match="says port 99999"):
        world.stage(
            {
                "config/models/alpha.env": "CITADEL_DIGEST=a\n",
                "config/models/alpha.yml": "port: 99999\nserved-model-name: alpha\n",
            }
        )


def test_a_full_disk_leaves_no_half_release(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RefusedError, match="No room for release"):
        world.stage(release_files(alpha="a1"))
    assert list(world.layout.releases.iterdir()) == []


def test_every_kind_of_tampering_is_seen(world: World) -> None:
    manifest = world.stage(release_files(alpha="a1"), environments={"vllm": "/opt/citadel/envs/vllm-1"})
    release = world.layout.release(manifest.id)
    assert tampering(release, manifest) == []
    (release / "host/citadel/__pycache__").mkdir()
    (release / "host/citadel/__pycache__/x.pyc").touch()
    (release / "config/extra").touch()
    (release / "config/gateway.yml").unlink()
    (release / "env/vllm").unlink()
    (release / "env/vllm").symlink_to("/elsewhere")
    assert tampering(release, manifest) == [
        "config/extra was added",
        "config/gateway.yml is missing",
        "env/vllm does not lead to /opt/citadel/envs/vllm-1",
    ]
    text = (release / "manifest.json").read_text().replace(manifest.files["units/citadel-llm.target"], "0" * 64)
    (release / "manifest.json").chmod(0o644)
    (release / "manifest.json").write_text(text)
    assert "manifest.json does not match its own digest" in tampering(release, read_manifest(release))
    with pytest.raises(RefusedError, match="was altered"):
        world.stage(release_files(alpha="a1"), environments={"vllm": "/opt/citadel/envs/vllm-1"})


def test_staging_waits_for_nobody_and_touches_no_service(world: World) -> None:
    first = world.stage(release_files(alpha="a1"))
    activate(world.host(), first.id, Terms("tester"))
    world.systemd.acts.clear()

    def intrude(act: str) -> None:
        if act.startswith("restart"):
            wish = Wish(release_files(alpha="a3"), who="somebody else", at="now")
            with pytest.raises(RefusedError, match="has been busy with the activation"):
                stage(world.layout, wish, manifest_of(world.layout, wish, world.survey()))

    second = world.stage(release_files(alpha="a2"))
    assert world.systemd.acts == []
    world.systemd.before = intrude
    assert activate(world.host(), second.id, Terms("tester")).good


def test_files_are_read_only(world: World) -> None:
    release = world.layout.release(world.stage(release_files(alpha="a1")).id)
    assert {oct(path.stat().st_mode & 0o777) for path in release.rglob("*") if path.is_file()} == {"0o444"}


def test_files_of_somebody_else_are_not_replaced(world: World) -> None:
    manifest = world.stage(release_files(alpha="a1"))
    (world.layout.units / "citadel-llm.target").write_text("made by hand")
    (world.layout.home / "llm-server").mkdir()
    with pytest.raises(RefusedError) as refused:
        activate(world.host(), manifest.id, Terms("tester"))
    assert "citadel-llm.target is not of a release: move it away" in str(refused.value)
    assert "opt/citadel/llm-server is no link of ours" in str(refused.value)
    assert Path(world.layout.units / "citadel-llm.target").read_text() == "made by hand"


def test_a_release_of_an_earlier_version_says_more_and_is_read(world: World) -> None:
    manifest = world.stage(release_files(alpha="a1"))
    file = world.layout.release(manifest.id) / "manifest.json"
    file.chmod(0o644)
    file.write_text(json.dumps({**json.loads(file.read_text()), "capacity": {"fits": True}}))
    assert read_manifest(world.layout.release(manifest.id)) == manifest
    assert activate(world.host(), manifest.id, Terms("tester")).good
