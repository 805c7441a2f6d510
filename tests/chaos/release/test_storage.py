"""The role `storage` and the static address of the role `host` on a booted host: set, read back, found by drift, there
after a boot, undone, and undone by the host itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.machine import wait
from tests.chaos.release.conftest import Box
from tests.chaos.release.plays import Controller

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


class Keeper(Controller):
    """Whoever keeps the host."""

    def storage(self, *options: str, **variables: Any) -> dict[str, Any]:
        given = {"storage_cache_root": "/opt/cache", **variables}
        return self.run(*options, **given).results["storage : Disks and caches are mounted"]

    def network(self, text: str, **variables: Any) -> dict[str, Any]:
        return self.run(**{"network": text, "ansible_ssh_timeout": 2, **variables}).results


@pytest.fixture
def keeper(box: Box, tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(box, tmp_path, PLAY)
    yield keeper
    keeper.storage(storage_state="absent")


def mounted(box: Box) -> str:
    return box.run("findmnt", "-n", "-o", "FSTYPE,OPTIONS", CACHE, check=False).stdout.strip()


def test_a_cache_in_memory_comes_stays_over_a_boot_and_goes(box: Box, keeper: Keeper) -> None:
    wanted = {"storage_tmpfs": {"model_cache": 0.25}}
    assert keeper.storage("--check", **wanted)["changed"] and not mounted(box)
    assert keeper.storage(**wanted)["changed"]
    assert mounted(box).startswith("tmpfs ") and "size=262144k" in mounted(box) and "nodiratime" in mounted(box)
    assert not keeper.storage(**wanted)["changed"], "a second run has nothing to do"
    box.run("sh", "-c", f"echo kept > {CACHE}/file")
    assert keeper.storage(storage_tmpfs={"model_cache": 0.125})["changed"]
    assert "size=131072k" in mounted(box) and box.run("cat", f"{CACHE}/file").stdout == "kept\n"
    box.pull_the_plug()
    box.start()
    assert "size=131072k" in mounted(box), "a boot mounts it"
    box.run("mount", "-o", "remount,size=1m", CACHE)
    assert keeper.storage("--check", storage_tmpfs={"model_cache": 0.125})["changed"], "altered by hand"
    box.run("systemd-run", "--unit=user-of-it", f"--property=RequiresMountsFor={CACHE}", "sleep", "600")
    refused = keeper.storage(storage_state="absent")
    assert refused["failed"] and "user-of-it.service would end with it: stop that first" in refused["msg"]
    assert mounted(box) and box.run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
    box.run("systemctl", "stop", "user-of-it.service")
    assert keeper.storage(storage_state="absent")["changed"]
    assert not mounted(box) and not box.layout.inside(f"/etc/systemd/system/{UNIT}").exists()
    assert not keeper.storage(storage_state="absent")["changed"]


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
    box: Box, keeper: Keeper, wanted: dict[str, Any], said: str
) -> None:
    refused = keeper.storage(**wanted)
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


def test_a_network_that_lets_nobody_in_is_undone_by_the_host_itself(box: Box, keeper: Keeper) -> None:
    box.run(
        "sh", "-c", f"cat > /usr/sbin/netplan <<'END'\n{NETPLAN}END\nchmod 755 /usr/sbin/netplan; rm -f /tmp/netplan"
    )
    try:
        device = box.run("sh", "-c", "ls /sys/class/net | grep -v '^lo$'").stdout.strip()
        text = f"network:\n  ethernets:\n    {device}:\n      addresses: [{box.address}/24]\n"
        kept = keeper.network(text, host_network_patience=20)
        assert kept["host : Keep it"].get("changed") is False, kept
        file = box.layout.inside("/etc/netplan/01-network-config.yaml")
        assert file.read_text() == text
        again = keeper.network(text)["host : The network is as it shall be, for a moment"]
        assert again["changed"] is False, "a second run has nothing to do"
        begun = time.monotonic()
        lost = keeper.network(text.replace("addresses", "# via 203.0.113.1\n      addresses"), host_network_patience=12)
        assert "let nobody in anew" in lost["host : Say that nobody came in"]["msg"]
        wait(lambda: file.read_text() == text, 30, "the host did not put its network back")
        said = box.layout.inside("/tmp/netplan").read_text().split()[1::2]
        wait(
            lambda: said[-1:] == ["well"] or box.run("ip", "-br", "link").stdout.count("UP") > 1, 10, "it is still cut"
        )
        assert said[:2] == ["well", "cut"] and time.monotonic() - begun < 60
        assert not box.layout.inside("/etc/systemd/system/host-network-revert.service").exists()
        assert keeper.storage()["changed"] is False, "and it can be reached"
    finally:
        box.run("sh", "-c", "rm -rf /usr/sbin/netplan /etc/netplan /var/lib/citadel/network")
