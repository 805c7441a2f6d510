"""The role `storage` and the static address of the role `host` on a booted host: set, read back, found by drift, there
after a boot, undone, and undone by the host itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import handover
from lab.machine import wait
from tests.chaos.release.conftest import Box

ROOT = Path(__file__).parents[3]
PLAY = """\
- hosts: llm_servers
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_role: {name: storage}
      when: network is not defined
    - ansible.builtin.include_role: {name: host, tasks_from: network}
      when: network is defined
      vars: {host__netplan: "{{ network }}"}
"""
CACHE = "/opt/cache/model_cache"
UNIT = "opt-cache-model_cache.mount"


class Play:
    def __init__(self, box: Box, folder: Path) -> None:
        handover.ssh_settings(box.machine.lab)
        self.box, self.folder = box, folder
        (folder / "play.yml").write_text(PLAY)
        (folder / "hosts").write_text(
            f"[llm_servers]\nbox ansible_ssh_common_args='-F {box.machine.lab.directory}/ssh_config'\n"
        )

    def __call__(self, *options: str, **variables: Any) -> dict[str, Any]:
        """The results of tasks by name."""
        (self.folder / "variables.json").write_text(json.dumps({"storage_cache_root": "/opt/cache", **variables}))
        program = Path(sys.executable).with_name("ansible-playbook")
        command: list[str | Path] = [program, "-i", self.folder / "hosts", self.folder / "play.yml"]
        done = subprocess.run(
            [*command, "-e", f"@{self.folder}/variables.json", *options],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.box.machine.lab.sockets),
                "ANSIBLE_TIMEOUT": "2",
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert "{" in done.stdout, done.stdout + done.stderr
        [play] = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])[0]["plays"]
        return {task["task"]["name"]: task["hosts"].get("box", {}) for task in play["tasks"]}

    def storage(self, *options: str, **variables: Any) -> dict[str, Any]:
        found: dict[str, Any] = self(*options, **variables)["storage : Disks and caches are mounted"]
        return found


@pytest.fixture
def play(box: Box, tmp_path: Path) -> Iterator[Play]:
    play = Play(box, tmp_path)
    yield play
    play.storage(storage_state="absent")


def mounted(box: Box) -> str:
    return box.run("findmnt", "-n", "-o", "FSTYPE,OPTIONS", CACHE, check=False).stdout.strip()


def test_a_cache_in_memory_comes_stays_over_a_boot_and_goes(box: Box, play: Play) -> None:
    wanted = {"storage_tmpfs": {"model_cache": 0.25}}
    assert play.storage("--check", **wanted)["changed"] and not mounted(box)
    assert play.storage(**wanted)["changed"]
    assert mounted(box).startswith("tmpfs ") and "size=262144k" in mounted(box) and "nodiratime" in mounted(box)
    assert not play.storage(**wanted)["changed"], "a second run has nothing to do"
    box.run("sh", "-c", f"echo kept > {CACHE}/file")
    assert play.storage(storage_tmpfs={"model_cache": 0.125})["changed"]
    assert "size=131072k" in mounted(box) and box.run("cat", f"{CACHE}/file").stdout == "kept\n"
    box.pull_the_plug()
    box.start()
    assert "size=131072k" in mounted(box), "a boot mounts it"
    box.run("mount", "-o", "remount,size=1m", CACHE)
    assert play.storage("--check", storage_tmpfs={"model_cache": 0.125})["changed"], "altered by hand"
    box.run("systemd-run", "--unit=user-of-it", f"--property=RequiresMountsFor={CACHE}", "sleep", "600")
    refused = play.storage(storage_state="absent")
    assert refused["failed"] and "user-of-it.service would end with it: stop that first" in refused["msg"]
    assert mounted(box) and box.run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
    box.run("systemctl", "stop", "user-of-it.service")
    assert play.storage(storage_state="absent")["changed"]
    assert not mounted(box) and not box.layout.inside(f"/etc/systemd/system/{UNIT}").exists()
    assert not play.storage(storage_state="absent")["changed"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"storage_tmpfs": {"model_cache": 10**6}}, "and the host has "),
        (
            {"storage_mounts": [{"path": "/opt/models", "device": "/dev/null", "format": True}]},
            "it is no block device: give a disk or a partition",
        ),
        (
            {"storage_mounts": [{"path": "/opt/models", "device": "/dev/nothing", "format": True}]},
            "there is no such device",
        ),
        ({"storage_mounts": [{"path": "/etc", "device": "/dev/one"}]}, "the folder has something in it"),
    ],
)
def test_what_can_not_be_had_is_refused_before_anything_is_changed(
    box: Box, play: Play, wanted: dict[str, Any], said: str
) -> None:
    refused = play.storage(**wanted)
    assert refused["failed"] and said in refused["msg"], refused
    assert not list(box.layout.inside("/etc/systemd/system").glob("opt-*.mount"))
    assert not box.layout.inside("/var/lib/citadel/declared/storage.json").exists()


# netplan is Ubuntu's: this one cuts the host off where the file says so, as a wrong gateway would
NETPLAN = """#!/bin/sh
[ "$1" = apply ] || exit 0
device=$(ls /sys/class/net | grep -v '^lo$')
if grep -qs 203.0.113.1 /etc/netplan/01-network-config.yaml
then echo "$(date +%s) cut" >> /tmp/netplan; ip link set "$device" down
else echo "$(date +%s) well" >> /tmp/netplan; ip link set "$device" up
fi
"""


def test_a_network_that_lets_nobody_in_is_undone_by_the_host_itself(box: Box, play: Play) -> None:
    box.run(
        "sh", "-c", f"cat > /usr/sbin/netplan <<'END'\n{NETPLAN}END\nchmod 755 /usr/sbin/netplan; rm -f /tmp/netplan"
    )
    try:
        device = box.run("sh", "-c", "ls /sys/class/net | grep -v '^lo$'").stdout.strip()
        text = f"network:\n  ethernets:\n    {device}:\n      addresses: [{box.address}/24]\n"
        kept = play(network=text, host_network_patience=20)
        assert kept["host : Keep it"].get("changed") is False, kept
        file = box.layout.inside("/etc/netplan/01-network-config.yaml")
        assert file.read_text() == text
        again = play(network=text)["host : The network is as it shall be, for a moment"]
        assert again["changed"] is False, "a second run has nothing to do"
        begun = time.monotonic()
        lost = play(network=text.replace("addresses", "# via 203.0.113.1\n      addresses"), host_network_patience=12)
        assert "let nobody in anew" in lost["host : Say that nobody came in"]["msg"]
        wait(lambda: file.read_text() == text, 30, "the host did not put its network back")
        said = box.layout.inside("/tmp/netplan").read_text().split()[1::2]
        wait(
            lambda: said[-1:] == ["well"] or box.run("ip", "-br", "link").stdout.count("UP") > 1, 10, "it is still cut"
        )
        assert said[:2] == ["well", "cut"] and time.monotonic() - begun < 60
        assert not box.layout.inside("/etc/systemd/system/host-network-revert.service").exists()
        assert play.storage()["changed"] is False, "and it can be reached"
    finally:
        box.run("sh", "-c", "rm -rf /usr/sbin/netplan /etc/netplan /var/lib/citadel/network")
