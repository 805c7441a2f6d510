"""The lab itself: real systemd, limits that bind, and no packet to the real estate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from testinfra.host import Host

from lab.machine import split_cgroups
from lab.settings import ROOT, USER, Lab
from tests.lab.plays import tried

# one of each suite: what binds on Debian 12 could be counted but not enforced by the systemd of 13
SUITES = ("llm-01", "metrics-01")
NAMES = [host.name for host in Lab.from_environment().hosts]


@pytest.mark.parametrize("name", NAMES)
def test_every_host_runs_without_a_failed_unit(name: str, on: Callable[[str], Host]) -> None:
    assert on(name).check_output("systemctl is-system-running") == "running"


@pytest.mark.parametrize("name", NAMES)
def test_every_host_runs_the_debian_that_it_is_meant_to(name: str, on: Callable[[str], Host], lab: Lab) -> None:
    meant = next(host.suite for host in lab.hosts if host.name == name)
    assert on(name).check_output(". /etc/os-release; echo $VERSION_CODENAME") == meant


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize(("limit", "end"), [("50M", "killed"), ("400M", "survived")])
def test_memory_limits_of_units_are_enforced(name: str, limit: str, end: str, on: Callable[[str], Host]) -> None:
    take = f"systemd-run --collect --wait --quiet -p MemoryMax={limit} python3 -c 'bytearray(200 * 1024 * 1024)'"
    assert on(name).check_output(f"{take} && echo survived || echo killed") == end


@pytest.mark.parametrize("name", SUITES)
def test_cpu_limits_of_units_are_enforced(name: str, on: Callable[[str], Host]) -> None:
    """A fifth of a core for a third of a second of work: the wall clock has to show it."""
    work = "import time; a = time.monotonic()\nwhile time.process_time() < 0.3: pass\nprint(time.monotonic() - a)"
    took = float(on(name).check_output("systemd-run --pipe --wait --quiet -p CPUQuota=20%% python3 -c %s", work))
    assert took > 0.9


@pytest.mark.parametrize("name", SUITES)
def test_task_limits_of_units_are_enforced(name: str, on: Callable[[str], Host]) -> None:
    thread = "threading.Thread(target=time.sleep, args=(1,)).start()"
    work = f"import threading, time\nfor n in range(20):\n  print(n, flush=True)\n  {thread}"
    told = on(name).run("systemd-run --collect --pipe --wait --quiet -p TasksMax=5 python3 -c %s", work)
    assert told.stdout.split()[-1] == "4", "four threads beside the first are five tasks"


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("setting", ["CPUAffinity", "AllowedCPUs"])
def test_units_stay_on_their_cores(name: str, setting: str, on: Callable[[str], Host]) -> None:
    if setting == "AllowedCPUs" and split_cgroups():
        pytest.skip("systemd enforces AllowedCPUs with control groups of version 2 alone; units have CPUAffinity too")
    assert on(name).check_output(f"systemd-run --collect --pipe --wait --quiet -p {setting}=1 nproc") == "1"


@pytest.mark.parametrize("name", NAMES)
def test_root_is_refused_on_ssh(name: str, lab: Lab) -> None:
    """With a key that root has as well, so that it is sshd who refuses."""
    ssh = ["ssh", "-F", str(lab.directory / "ssh_config"), "-o", "ControlPath=none", "-o", "BatchMode=yes"]
    for user, ends_with in (("root", 255), (USER, 0)):
        done = subprocess.run([*ssh, f"{user}@{name}", "true"], capture_output=True, text=True, check=False)
        assert done.returncode == ends_with, done.stderr
        assert ("Permission denied" in done.stderr) is (user == "root")


def test_a_host_that_refuses_root_is_told_in_one_sentence() -> None:
    told, status = tried("playbooks/reach.yml", reach_hosts="llm-01", ansible_user="root")
    assert status != 0
    assert "refuses root on ssh: name an ordinary user, who has your key and sudo without a password, as " in told
    assert "CITADEL_SSH_USER, or as ansible_user in the inventory. Nothing was changed." in told


def test_a_host_that_is_not_there_is_told_in_one_sentence(lab: Lab) -> None:
    told, status = tried("playbooks/reach.yml", reach_hosts="llm-01", ansible_host=str(lab.network[250]))
    assert status != 0
    assert f"llm-01 ({lab.network[250]}) cannot be reached on ssh (" in told


def test_no_packet_went_to_the_real_estate(lab: Lab) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "lab", "packets"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed) == {"estate_from_lab": 0, "estate_from_controller": 0}


def test_the_counter_would_have_seen_one(llm: Host, lab: Lab) -> None:
    """A check that cannot fail proves nothing: the rule that counts has to stand before every other way out."""
    rules = subprocess.run(["nft", "list", "table", "ip", lab.table], capture_output=True, text=True, check=True).stdout
    assert f"ip saddr {lab.network} ip daddr 192.168.10.0/24 counter" in rules
    assert "reject" in rules


def test_the_database_server_answers_as_the_estates_does(data: Host, lab: Lab, address: dict[str, str]) -> None:
    password = (lab.directory / "secrets/citadel_admin").read_text().strip()
    asked = data.run(
        "PGPASSWORD=%s psql --host=%s --port=5433 --username=citadel_admin citadel_ai --tuples-only --command=%s",
        password,
        address["data-01"],
        "select current_user",
    )
    assert asked.stdout.strip() == "citadel_admin"
    redis = (lab.directory / "secrets/redis").read_text().strip()
    assert data.check_output("REDISCLI_AUTH=%s redis-cli -h %s ping", redis, address["data-01"]) == "PONG"
