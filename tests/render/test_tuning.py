"""The role `tuning`: what it writes for the kernel, udev and systemd, read by them; and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel import tuning
from citadel.declarations import item_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = {
    name.removeprefix("tuning_"): value
    for name, value in yaml.safe_load((ROOT / "roles/tuning/defaults/main.yml").read_text()).items()
    if name != "tuning_state"
}


def items(**given: Any) -> list[dict[str, Any]]:
    return tuning.items({**DEFAULTS, **given})


def content(found: list[dict[str, Any]], path: str) -> str:
    [text] = [str(one["content"]) for one in found if one["name"] == path]
    return text


def test_it_is_as_it_was() -> None:
    """Whoever changes what the kernel is told changes the file beside this one, and sees in the diff what follows."""
    found = items(hugepages=1024, noatime=["/opt/models"], irq_cpus="0-1")
    texts = [f"==> {one['name']}\n{one['content']}" for one in found if one["kind"] == "file"]
    rest = [f"{one['kind']} {one['name']} = {one['desired']}\n" for one in found if one["kind"] != "file"]
    assert "".join([*texts, "==> set and read back\n", *rest]) == (ROOT / "tests/render/tuning.golden").read_text()


def test_every_item_is_one_that_can_be_declared() -> None:
    assert all(item_of(one) for one in items(hugepages=8, noatime=["/srv"], irq_cpus="0"))


def test_what_is_only_compared_is_written_for_a_boot_all_the_same() -> None:
    found = items(apply=False)
    assert {one.get("apply", True) for one in found if one["kind"] == "file"} == {True}
    assert {one["apply"] for one in found if one["kind"] != "file"} == {False}


def test_nothing_wanted_is_nothing_set() -> None:
    nothing = {"sysctl": {}, "transparent_hugepages": "", "governor": "", "scheduler": "", "read_ahead": 0}
    assert items(**nothing) == []


def test_named_disks_alone() -> None:
    found = items(disks=["nvme0n1", "sda"])
    assert 'KERNEL=="nvme0n1|sda"' in content(found, tuning.UDEV_FILE)
    assert [one["disks"] for one in found if one["kind"] == "disk"] == [["nvme0n1", "sda"]] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sysctl": {"vm.swappiness": -1}}, "tuning_sysctl['vm.swappiness'] = -1: give 0 to 200"),
        ({"sysctl": {"vm.swappiness": "little"}}, "tuning_sysctl['vm.swappiness'] = 'little': give a whole number"),
        ({"sysctl": {"vm.overcommit_memory": 3}}, "= 3: give 0 to 2"),
        ({"sysctl": {"vm.max_map_count": 1}}, "= 1: give 65530 to 2147483647"),
        ({"sysctl": {"net.ipv4.tcp_rmem": "4096 -1 5"}}, "tuning_sysctl['net.ipv4.tcp_rmem'] = '4096 -1 5': give 0 or"),
        ({"sysctl": {"vm.nr_hugepages": 8}}, "say it in tuning_hugepages, where the plan counts them"),
        ({"sysctl": {"swappiness; reboot": 1}}, "give the name of a setting, such as vm.swappiness"),
        ({"hugepages": -2}, "tuning_hugepages = -2: give a whole number, -1 or more"),
        ({"hugepages": "many"}, "tuning_hugepages = 'many': give a whole number, -1 or more"),
        ({"read_ahead": -8}, "tuning_read_ahead = -8: give a whole number, 0 or more"),
        ({"read_ahead": 9}, "tuning_read_ahead = 9: give sectors of 512 bytes, a multiple of 8"),
        ({"irq_cpus": "first"}, "tuning_irq_cpus = 'first': 'first' is no CPU or range of CPUs such as 3 or 0-7"),
        ({"noatime": ["models"]}, "tuning_noatime = 'models': give the absolute path of a folder"),
    ],
)
def test_what_is_impossible_is_refused_by_name_and_value(given: dict[str, Any], said: str) -> None:
    with pytest.raises(tuning.TuningError) as refusal:
        items(**given)
    assert said in str(refusal.value)


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    found = items(noatime=["/opt/models"], irq_cpus="0-1")
    unit = tmp_path / tuning.UNIT
    unit.write_text(content(found, f"/etc/systemd/system/{tuning.UNIT}"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert tuning.UNIT not in done.stderr


def test_the_units_commands_set_what_can_be_set_and_pass_over_the_rest(tmp_path: Path) -> None:
    """Run by the shell that systemd would start, on a copy of the places that they write to."""
    found = items(governor="performance", noatime=["/nowhere"], transparent_hugepages="")
    commands = [
        line.partition("-c ")[2].strip("'").replace("$$", "$").replace("/sys/", f"{tmp_path}/")
        for line in content(found, f"/etc/systemd/system/{tuning.UNIT}").splitlines()
        if line.startswith("ExecStart=")
    ]
    assert len(commands) == 2
    places = [tmp_path / f"devices/system/cpu/cpu{n}/cpufreq/scaling_governor" for n in range(2)]
    for run in range(2):
        for command in commands:
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
        assert [place.read_text() for place in places if place.exists()] == ["performance\n"] * 2 * run
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("powersave\n")


def test_the_role_in_check_mode_on_this_machine(tmp_path: Path) -> None:
    """As the first plan on a fresh host: nothing is there yet, nothing is touched, and everything is told."""
    (tmp_path / "play.yml").write_text(
        "- hosts: localhost\n  connection: local\n  gather_facts: false\n  roles: [tuning]\n"
    )
    told = {"tuning_sysctl": {"vm.swappiness": 0, "net.citadel.none": 1}, "tuning_hugepages": 0}
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", tmp_path / "play.yml", "--check", "--diff", "-e", json.dumps(told)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"| file {tuning.SYSCTL_FILE}: absent → " in done.stdout
    assert "no such setting: sysctl net.citadel.none" in done.stdout
    assert not Path(tuning.SYSCTL_FILE).exists() and not Path("/var/lib/citadel/declared/tuning.json").exists()
