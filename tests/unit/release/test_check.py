"""What the check before an activation finds on the host itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from citadel import store
from citadel.release.failure import RefusedError
from citadel.release.transaction import Terms, activate
from tests.unit.release.world import World, release_files

LISTENS = "  0: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0 0 4711 1 0 100\n"


def listen(world: World, port: int, program: str = "") -> None:
    table = world.layout.root / "proc/net/tcp"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("head\n" + LISTENS.format(port=port))
    if program:
        process = world.layout.root / "proc/4242"
        (process / "fd").mkdir(parents=True)
        (process / "comm").write_text(f"{program}\n")
        (process / "fd/3").symlink_to("socket:[4711]")


def refused(world: World, release: str) -> str:
    before = list(world.systemd.acts)
    with pytest.raises(RefusedError) as refusal:
        activate(world.host(), release, Terms("tester"))
    assert world.systemd.acts == before, "something was touched"
    return str(refusal.value)


def test_a_stranger_on_the_gateways_port_is_named(world: World) -> None:
    manifest = world.stage(release_files(alpha="a1"))
    listen(world, 8000, "nginx")
    said = refused(world, manifest.id)
    assert "port 8000 of the gateway (citadel-gateway.socket) is taken by nginx (process 4242)" in said


def test_a_stranger_whom_nobody_can_name(world: World) -> None:
    manifest = world.stage(release_files(alpha="a1"))
    listen(world, 11400)
    assert "port 11400 of alpha is taken by a process, which is not ours" in refused(world, manifest.id)


def test_our_own_socket_is_no_stranger(world: World) -> None:
    first = world.stage(release_files(alpha="a1"))
    assert activate(world.host(), first.id, Terms("tester")).good
    listen(world, 8000, "systemd")
    second = world.stage(release_files(alpha="a1", gateway="g2"))
    assert activate(world.host(), second.id, Terms("tester")).good


def stored(folder: Path, content: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": {"sha256": content, "size": 1}}
    (folder / "citadel-manifest.json").write_text(json.dumps({"files": files}))
    return store.digest_of(store.read_manifest(folder))


def test_a_folder_with_other_files_than_the_release_names_is_refused(world: World) -> None:
    folder = world.layout.models / "alpha/r1"
    digest = stored(folder, "one")
    model = {"alpha": {"revision": "r1", "path": "/opt/models/alpha/r1", "digest": digest}}
    manifest = world.stage(release_files(alpha="a1"), models=model)
    stored(folder, "another")
    assert "model alpha at /opt/models/alpha/r1 is not the one that the release names" in refused(world, manifest.id)
    (folder / "citadel-manifest.json").unlink()
    assert "has no citadel-manifest.json" in refused(world, manifest.id)
    stored(folder, "one")
    assert activate(world.host(), manifest.id, Terms("tester")).good


def test_each_configuration_is_judged_by_the_program_that_will_read_it(world: World) -> None:
    python = world.layout.inside("/opt/citadel/envs/gateway-1") / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor file; do :; done\ngrep -q wrong "$file" || exit 0\necho "$4: no" >&2\nexit 2\n')
    python.chmod(0o755)
    files = {
        **release_files(alpha="a1", gateway="wrong"),
        "config/companion.yml": "days: wrong\n",
        "units/citadel-companion.service": "[Service]\nExecStart=/bin/companion\n",
    }
    environments = {"gateway": "/opt/citadel/envs/gateway-1"}
    said = refused(world, world.stage(files, environments=environments).id)
    assert "gateway configuration: citadel_gateway: no" in said
    assert "companion configuration: citadel_companion: no" in said
    files |= {"config/gateway.yml": "which: g1\n", "config/companion.yml": "days: 30\n"}
    assert activate(world.host(), world.stage(files, environments=environments).id, Terms("tester")).good
