"""The role `tuning` on a booted host: told, set, read back, there after a reboot, found when altered, and put back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.release.conftest import Box
from tests.chaos.release.plays import Controller, roles

DRIFT = "- {hosts: llm_servers, gather_facts: false, become: true, tasks: [citadel_drift: {}]}\n"
# of the network namespace, so that they are this host's own
NETWORK = {"net.core.somaxconn": 2048, "net.ipv4.tcp_max_syn_backlog": 4096, "net.ipv4.tcp_rmem": "4096 131072 8388608"}
TASK = "tuning : The kernel is as it shall be"


class Keeper(Controller):
    """Whoever keeps the host."""

    def tune(self, *options: str, **variables: Any) -> dict[str, Any]:
        return self.run(*options, **variables).results[TASK]

    def drift(self) -> list[dict[str, str]]:
        [found] = [result for result in self.run(play=DRIFT).results.values() if "findings" in result]
        return [one for one in found["findings"] if one["state"] == "drifted"]


@pytest.fixture
def keeper(box: Box, tmp_path: Path) -> Iterator[Keeper]:
    box.clear()
    keeper = Keeper(box, tmp_path, roles("tuning"))
    yield keeper
    keeper.tune(tuning_state="absent")


def value(box: Box, name: str) -> str:
    return " ".join(box.run("cat", f"/proc/sys/{name.replace('.', '/')}").stdout.split())


def configuration(box: Box) -> str:
    """Every file and link below /etc: mode, owner, content."""
    files = "find /etc -type f -printf '%p %m %u %g ' -exec sha256sum {} ';'; find /etc -type l -printf '%p %l\\n'"
    # what a boot writes anew is nobody's setting
    lines = box.run("sh", "-c", files).stdout.splitlines()
    return "\n".join(sorted(line for line in lines if "/etc/machine-id" not in line))


def test_from_the_first_plan_over_a_reboot_to_the_undo(box: Box, keeper: Keeper) -> None:
    fresh, values = configuration(box), {name: value(box, name) for name in NETWORK}
    wanted = {"vm.swappiness": 1, **NETWORK}

    planned = keeper.tune("--check", tuning_sysctl=wanted)
    assert configuration(box) == fresh, "check mode touched something"
    done = keeper.tune(tuning_sysctl=wanted)
    assert done["told"] == planned["told"], "the plan is the deed"
    assert any("read-only here and belongs to the machine" in line and "vm.swappiness" in line for line in done["told"])
    assert {name: value(box, name) for name in NETWORK} == {name: str(one) for name, one in NETWORK.items()}
    assert not keeper.tune(tuning_sysctl=wanted)["changed"]
    assert keeper.drift() == []

    box.machine.stop()
    box.start()
    assert {name: value(box, name) for name in NETWORK} == {name: str(one) for name, one in NETWORK.items()}
    assert box.run("systemctl", "is-active", "citadel-tuning.service", check=False).stdout.strip() == "active"
    assert box.run("systemctl", "--failed", "--no-legend").stdout == ""
    assert keeper.drift() == [] and not keeper.tune(tuning_sysctl=wanted)["changed"]

    box.run(
        "sh",
        "-c",
        "echo net.core.somaxconn = 1024 > /etc/sysctl.d/95-other.conf; sysctl -qp /etc/sysctl.d/95-other.conf",
    )
    box.run("sh", "-c", "echo >> /etc/udev/rules.d/65-citadel-llm.rules; systemctl disable citadel-tuning.service")
    found = {one["item"]: one for one in keeper.drift()}
    assert {one["owner"] for one in found.values()} == {"tuning"}
    assert found["sysctl net.core.somaxconn"]["found"] == "1024"
    assert found["sysctl net.core.somaxconn"]["cause"] == "/etc/sysctl.d/95-other.conf sets it to that"
    assert found["unit citadel-tuning.service"]["found"] == "disabled active"
    assert "it was changed at " in found["file /etc/udev/rules.d/65-citadel-llm.rules"]["cause"]
    assert len(found) == 3
    box.run("rm", "/etc/sysctl.d/95-other.conf")
    assert keeper.tune(tuning_sysctl=wanted)["changed"] and keeper.drift() == []

    assert keeper.tune(tuning_state="absent")["changed"]
    assert configuration(box) == fresh
    assert {name: value(box, name) for name in NETWORK} == values
    assert not keeper.tune(tuning_state="absent")["changed"]


def test_what_is_impossible_changes_nothing(box: Box, keeper: Keeper) -> None:
    fresh = configuration(box)
    told = keeper.tune(tuning_hugepages=10**9)
    assert told["failed"] and "sysctl vm.nr_hugepages cannot be '1000000000': that is " in told["msg"]
    assert configuration(box) == fresh


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="the kernel is this machine's own: only where CI=true")
def test_the_machines_own_kernel_is_tuned_and_put_back(box: Box, keeper: Keeper) -> None:
    """On a machine that is thrown away, the host may write to what belongs to it."""
    names = ("vm.swappiness", "vm.max_map_count", "vm.nr_hugepages")
    values = {name: value(box, name) for name in names}
    box.run("mount", "-o", "remount,bind,rw", "/proc/sys")
    try:
        wanted = {"vm.swappiness": 3, "vm.max_map_count": 262144}
        keeper.tune(tuning_sysctl=wanted, tuning_hugepages=int(values["vm.nr_hugepages"]) + 4)
        here = {name: Path("/proc/sys", name.replace(".", "/")).read_text().strip() for name in names}
        assert here == {
            "vm.swappiness": "3",
            "vm.max_map_count": "262144",
            "vm.nr_hugepages": str(int(values["vm.nr_hugepages"]) + 4),
        }
        keeper.tune(tuning_state="absent")
        assert {name: value(box, name) for name in names} == values
    finally:
        for name, was in values.items():
            Path("/proc/sys", name.replace(".", "/")).write_text(was)
        box.run("mount", "-o", "remount,bind,ro", "/proc/sys")
