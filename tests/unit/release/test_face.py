"""What people see of the live release: links that follow it, and configuration that an archive really holds."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from citadel.release.transaction import Terms, activate, rollback
from tests.unit.release.world import World, release_files


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def deploy(world: World, face: dict[str, str], **models: str) -> str:
    files = {**release_files(**models), "host/face.json": json.dumps(face)}
    manifest = world.stage(files)
    assert activate(world.host(), manifest.id, Terms("tester")).good
    return manifest.id


def test_links_come_and_go_with_their_release(world: World) -> None:
    home = world.layout.home
    deploy(world, {"/opt/citadel/docs": "current/docs", "/opt/models/Alpha": "alpha/1"}, alpha="a1")
    deploy(world, {"/opt/citadel/docs": "current/docs", "/opt/models/Beta": "beta/1"}, beta="b1")
    assert str((home / "docs").readlink()) == "current/docs"
    assert [path.name for path in world.layout.models.iterdir()] == ["Beta"]
    assert rollback(world.host(), None, Terms("tester")).good
    assert [path.name for path in world.layout.models.iterdir()] == ["Alpha"]


def test_an_archive_of_the_configuration_holds_it(world: World, tmp_path: Path) -> None:
    deploy(world, {"/opt/citadel/config/alpha.env": "models/alpha.env"}, alpha="a1", gone="g1")
    deploy(world, {"/opt/citadel/config/alpha.env": "models/alpha.env"}, alpha="a2")
    archive = tmp_path / "config.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(world.layout.home / "config", "config")
    with tarfile.open(archive) as tar:
        stored = {name for name in tar.getnames() if not name.endswith(("config", "models"))}
        kept = tar.extractfile("config/models/alpha.env")
        assert kept and kept.read() == b"CITADEL_DIGEST=a2\n"
    assert stored == {
        "config/alpha.env",
        "config/gateway.yml",
        "config/models/alpha.env",
        "config/models/alpha.yml",
    }


def test_an_earlier_releases_link_makes_room_for_the_folder(world: World) -> None:
    (world.layout.home / "config").parent.mkdir(parents=True, exist_ok=True)
    (world.layout.home / "config").symlink_to("current/config")
    live = deploy(world, {}, alpha="a1")
    assert not (world.layout.home / "config").is_symlink()
    assert (world.layout.release(live) / "config/gateway.yml").is_file()


def test_what_somebody_else_put_beside_it_stays(world: World) -> None:
    deploy(world, {}, alpha="a1")
    notes = world.layout.home / "config/notes.txt"
    notes.write_text("mine")
    copy = world.layout.home / "config/gateway.yml"
    copy.write_text("edited, without effect")
    deploy(world, {}, alpha="a2")
    assert notes.read_text() == "mine"
    assert copy.read_text() == "which: g1\n"


def test_scripts_can_be_run_and_the_models_environment_is_the_environment(world: World) -> None:
    files = {**release_files(alpha="a1"), "scripts/status.sh": "#!/bin/sh\n"}
    environment = world.layout.environments / "vllm-1"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/activate").write_text("# here\n")
    manifest = world.stage(files, environments={"vllm": str(environment)})
    release = world.layout.release(manifest.id)
    assert (release / "scripts/status.sh").stat().st_mode & 0o777 == 0o555
    assert (release / "env/bin/activate").read_text() == "# here\n"
