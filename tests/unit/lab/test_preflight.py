"""What a lab asks of a machine: one sentence each, before anything has changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from lab import machine, network, preflight, settings, shell
from lab.settings import ROOT, Lab, LabError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    monkeypatch.setenv("LAB_PREFIX", "unittest")
    monkeypatch.setenv("LAB_NETWORK", "10.77.40")
    monkeypatch.setenv("FLEET", "")
    monkeypatch.setenv("CITADEL_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(preflight, "succeeds", lambda *command: True)
    monkeypatch.setattr(network, "run", lambda *command: "[]")
    return Lab.from_environment()


def test_a_machine_that_has_everything(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MEMORY_GIB", 0)
    monkeypatch.setattr(preflight, "DISK_GIB", 0)
    preflight.check(lab)
    assert not lab.directory.exists(), "looking must not leave anything behind"


def test_without_root(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root: run the same command with sudo"):
        preflight.check(lab)


def test_missing_programs_are_named_by_their_packages(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program in {"nft", "mmdebstrap"} else "x")
    with pytest.raises(LabError, match="apt-get install mmdebstrap nftables"):
        preflight.check(lab)


def test_without_network_namespaces(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "succeeds", lambda *command: command[0] != "unshare")
    with pytest.raises(LabError, match="does not allow network namespaces"):
        preflight.check(lab)


def test_too_little_disk_says_how_much(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 5 * 2**30))
    with pytest.raises(LabError, match=r"has 5\.0 GiB free: make 20\.0 GiB of space"):
        preflight.check(lab)


def test_too_little_memory_says_how_much(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "DISK_GIB", 0)
    monkeypatch.setattr(preflight, "MEMORY_GIB", 10**6)
    with pytest.raises(LabError, match=r"needs 1000000 GiB of memory and [\d.]+ GiB are available"):
        preflight.check(lab)


def test_a_second_llm_server_needs_room_of_its_own(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET", "1")
    monkeypatch.setattr(preflight, "DISK_GIB", 0)
    monkeypatch.setattr(preflight, "FLEET_DISK_GIB", 0)
    monkeypatch.setattr(preflight, "FLEET_MEMORY_GIB", 10**6)
    with pytest.raises(LabError, match=r"needs 1000012 GiB of memory .* stop something, leave FLEET away, or destroy"):
        preflight.check(Lab.from_environment())


def test_hosts_that_stand_have_their_room_already(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    for name in ("DISK_GIB", "MEMORY_GIB"):
        monkeypatch.setattr(preflight, name, 10**6)
    lab.directory.mkdir(parents=True)
    lab.record.write_text(json.dumps({"network": "10.77.40.0/24", "hosts": [host.name for host in lab.hosts]}))
    preflight.room(lab)
    monkeypatch.setenv("FLEET", "1")
    monkeypatch.setattr(preflight, "FLEET_MEMORY_GIB", 10**6)
    with pytest.raises(LabError, match="needs 1000000 GiB of memory"):
        preflight.room(Lab.from_environment())


def test_a_range_that_is_taken(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [{"dst": "default", "dev": "eth0"}, {"dst": "10.77.0.0/16", "dev": "vpn0"}]
    monkeypatch.setattr(network, "run", lambda *command: json.dumps(routes))
    with pytest.raises(LabError, match=r"10\.77\.40\.0/24 is taken.*10\.77\.0\.0/16 through vpn0"):
        preflight.check(lab)


def test_a_lab_of_another_checkout_is_left_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ["systemd-nspawn", "--directory=/other/.lab/unittest/hosts/llm-01/root", "--machine=unittest-llm-01"]
    monkeypatch.setattr(machine, "running", lambda: iter([(1, elsewhere)]))
    with pytest.raises(LabError, match=r"'unittest' runs already .* another checkout \(/other/.lab/unittest"):
        preflight.check(lab)


def test_hosts_of_other_labs_are_no_obstacle(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ["systemd-nspawn", f"--directory={lab.directory}/hosts/llm-01/root", "--machine=unittest-llm-01"]
    others = ["systemd-nspawn", "--directory=/other/root", "--machine=other-llm-01"]
    monkeypatch.setattr(machine, "running", lambda: iter([(1, ours), (2, others)]))
    machine.refuse_foreign(lab)


def test_our_own_bridge_does_not_take_the_range(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "run", lambda *command: json.dumps([{"dst": "10.77.40.0/24", "dev": lab.bridge}]))
    network.refuse_taken_range(lab)


def test_a_lab_that_stands_elsewhere(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "room", lambda lab: None)
    monkeypatch.setattr(Lab, "saved", lambda self: {"network": "10.9.9.0/24"})
    with pytest.raises(
        LabError, match=r"'unittest' stands on 10\.9\.9\.0/24 and LAB_NETWORK asks for 10\.77\.40\.0/24"
    ):
        preflight.check(lab)


def test_a_program_that_is_not_there_is_a_sentence() -> None:
    assert not shell.succeeds("no-such-program-at-all")
    with pytest.raises(LabError, match="`no-such-program-at-all` is not installed"):
        shell.run("no-such-program-at-all")


def test_a_host_is_found_by_whatever_path_nspawn_was_started_with(tmp_path: Path) -> None:
    """A scope of systemd's starts it by its whole path."""
    fake = tmp_path / "systemd-nspawn"
    fake.symlink_to("/bin/sh")
    words = [str(fake), "-c", "echo; read x", "--directory=/somewhere"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # a process has its words only a moment after it has begun
        found = dict(machine.running())
        process.kill()
    assert "--directory=/somewhere" in found[process.pid]


def test_only_one_run_at_a_time_and_a_killed_one_holds_nothing(lab: Lab) -> None:
    holder = (
        "from lab import preflight\nfrom lab.settings import Lab\n"
        "with preflight.only_one(Lab.from_environment()):\n    print('held', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LabError, match=f"in use by process {process.pid}"), preflight.only_one(lab):
            pass
        process.kill()
        process.wait()
    with preflight.only_one(lab):
        pass
