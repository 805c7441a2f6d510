"""The kernel of a lab's host: set where it is the host's own, found by drift when it was altered, and put back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testinfra.host import Host

from lab.settings import ROOT
from tests.lab.plays import play, tried

# of the network namespace; everything else belongs to the machine that carries the lab
OWN = {"net.core.somaxconn": 4096, "net.ipv4.tcp_max_syn_backlog": 8192}
# as site.yml has it, without a deployment around it
TUNED = {"tuning_state": "present", "tuning_hugepages": 0}


@pytest.mark.parametrize(("name", "value"), OWN.items())
def test_a_setting_of_the_host_is_what_the_role_says(name: str, value: int, llm: Host) -> None:
    assert llm.sysctl(name) == value
    assert f"{name} = {value}\n" in llm.file("/etc/sysctl.d/90-citadel-llm.conf").content_string


def test_settings_of_the_machine_are_named_and_left(llm: Host) -> None:
    declared = json.loads(llm.file("/var/lib/citadel/declared/tuning.json").content_string)
    left = {item["name"]: item["left"] for item in declared if "left" in item}
    assert "read-only here" in left["vm.swappiness"]
    assert not OWN.keys() & left.keys()


def test_what_is_altered_by_hand_is_found_with_its_owner(llm: Host) -> None:
    play("playbooks/drift.yml")
    llm.check_output("sysctl -w net.core.somaxconn=1000")
    try:
        told, status = tried("playbooks/drift.yml")
    finally:
        llm.check_output("sysctl -w net.core.somaxconn=4096")
    assert status != 0 and "1 of " in told
    found = json.loads(Path(ROOT, "reports/llm-01-drift.json").read_text())
    [drifted] = [one for one in found if one["state"] == "drifted"]
    assert (drifted["owner"], drifted["item"]) == ("tuning", "sysctl net.core.somaxconn")
    assert (drifted["desired"], drifted["found"]) == ("4096", "1000")


def test_untune_puts_back_what_was_there(llm: Host) -> None:
    try:
        play("playbooks/untune.yml")
        assert llm.sysctl("net.ipv4.tcp_max_syn_backlog") != 8192
        assert not llm.file("/etc/sysctl.d/90-citadel-llm.conf").exists
        assert not llm.file("/etc/systemd/system/citadel-tuning.service").exists
    finally:
        play("playbooks/untune.yml", **TUNED)
    assert llm.sysctl("net.ipv4.tcp_max_syn_backlog") == 8192
    told, status = tried("playbooks/untune.yml", **TUNED)
    assert status == 0 and "llm-01" in told and "changed=0" in told


def test_a_lab_is_warned_of_and_not_refused() -> None:
    told, status = tried("playbooks/validate.yml")
    assert status == 0, told[-3000:]
    assert "| This host can carry the product: " in told
    assert "ours: " in told, "the gateway's ports are held by the gateway"
    assert "PostgreSQL of data-01" in told
