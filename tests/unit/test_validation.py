"""What a host has and needs: warnings are no failures, and every line that is not good says what to do."""

from __future__ import annotations

import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from citadel import validation
from citadel.fitness import Wanted
from citadel.kinds import Host, NotHereError
from citadel.topology import GIB
from citadel.validation import FAILURE, GOOD, WARNING, Asked, Check, Thresholds, checks, table
from tests.unit.test_declarations import put

Usage = namedtuple("Usage", "total used free")
NOBLE = 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\n'
LISTENING = """\
LISTEN 0 1024 *:8000 *:* users:(("systemd",pid=1,fd=30),("python",pid=70,fd=9))
LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=80,fd=3))
LISTEN 0 128 127.0.0.1:11400 0.0.0.0:* users:(("python",pid=71,fd=3))
LISTEN 0 128 0.0.0.0:9090 0.0.0.0:* users:(("prometheus",pid=90,fd=3))
"""
PORTS = {"api": 8000, "management": 8002, "mixtral": 11400, "export": 9090}


class Told(Host):
    """A host whose commands say what the test wants; what it does not want is not installed."""

    def __init__(self, root: Path, **answers: str) -> None:
        super().__init__(root)
        self.answers = answers

    def _run(self, command: Any) -> str:
        if command[0] not in self.answers:
            raise NotHereError(f"{command[0]} is not installed")
        return self.answers[command[0]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put(tmp_path, "/etc/os-release", NOBLE)
    put(tmp_path, "/proc/meminfo", f"MemTotal: {250 * GIB // 1024} kB\n")
    put(
        tmp_path,
        "/proc/cpuinfo",
        "model name\t: Some Xeon\nflags\t\t: avx2 avx512f avx512bw avx512vl amx_tile amx_int8\n",
    )
    for cpu in range(64):
        put(
            tmp_path, f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 32},{cpu % 32 + 32}\n"
        )
    for node in range(2):
        put(tmp_path, f"/sys/devices/system/node/node{node}/cpulist", f"{node * 16}-{node * 16 + 15}\n")
        put(tmp_path, f"/sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal: 128 kB\n")
    for disk, kind in (("nvme0n1", "0"), ("sda", "1"), ("loop0", "1")):
        put(tmp_path, f"/sys/block/{disk}/size", f"{4 * 10**12 // 512}\n")
        put(tmp_path, f"/sys/block/{disk}/queue/rotational", f"{kind}\n")
        if disk != "loop0":
            put(tmp_path, f"/sys/block/{disk}/device", "")
    for name, speed, device in (("eth0", "10000", True), ("eth1", "-1", True), ("br0", "40000", False)):
        put(tmp_path, f"/sys/class/net/{name}/speed", f"{speed}\n")
        if device:
            put(tmp_path, f"/sys/class/net/{name}/device", "")
    for pid, unit in (("1", "init.scope"), ("70", "citadel-gateway@0001.service"), ("90", "prometheus.service")):
        put(tmp_path, f"/proc/{pid}/cgroup", f"12:cpu:/\n0::/system.slice/{unit}\n")
    put(
        tmp_path,
        "/proc/71/cgroup",
        "1:name=systemd:/system.slice/system-citadel\\x2dllm.slice/citadel-llm@mixtral.service\n",
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "x", "6.8.0-45-generic", "", "x86_64")))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(4 * 10**12, 0, 3 * 10**12))
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.29")
    monkeypatch.setattr(validation, "measured", lambda folder: (3200.0, 3600.0))
    return tmp_path


def asked(**more: Any) -> Asked:
    given = {"name": "llm", "wanted": Wanted((), 16, 128), "thresholds": Thresholds(), "models": Path("/opt/models")}
    return Asked(**{**given, "ports": {}, "neighbours": {}, **more})


def verdicts(found: list[Check], *but: str) -> dict[str, str]:
    return {one.name: one.verdict for one in found if one.verdict not in but}


def test_the_recommended_host_is_good_in_everything(root: Path) -> None:
    found = checks(Told(root, timedatectl="yes\n", ss=""), asked(ports=PORTS))
    assert verdicts(found, GOOD) == {}
    told = {one.name: one.found for one in found}
    assert told["cores"] == "32 cores, 64 threads" and told["NUMA nodes"] == "2"
    assert told["disks"] == "nvme0n1 (NVMe, 4000 GB), sda (HDD, 4000 GB)"
    assert told["interfaces"] == "eth0 10000 Mbit/s", "a bridge is no way out"
    assert told["instruction sets"] == "AVX2, AVX512, AMX (Some Xeon)"
    assert table(found)[-1] == f"This host can carry the product: {len(found)} checks, 0 of them warn."


def test_less_than_recommended_warns_and_says_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "/proc/meminfo", f"MemTotal: {128 * GIB // 1024} kB\n")
    put(root, "/proc/cpuinfo", "flags : avx2\n")
    put(root, "/sys/class/net/eth0/speed", "100\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "x", "6.1.0-31-amd64", "", "x86_64")))
    monkeypatch.setattr(validation, "measured", lambda folder: (200.0, 210.0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**11))

    def unknown(name: str) -> str:
        raise OSError(name)

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    found = checks(Told(root, ss=""), asked(ports=PORTS))
    warned = verdicts(found, GOOD)
    assert set(warned.values()) == {WARNING}
    assert warned.keys() == {
        *("kernel", "clock", "name", "instruction sets", "cores", "memory", "size for system", "size for models"),
        *("write speed of models", "read speed of models", "interfaces"),
    }
    assert all(one.advice for one in found if one.verdict != GOOD)
    assert table(found)[-1].startswith("This host can carry the product: ")


def test_what_a_deployment_refuses_is_a_failure_in_the_same_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "/etc/os-release", NOBLE.replace("24.04", "22.04"))
    put(root, "/proc/meminfo", f"MemTotal: {64 * GIB // 1024} kB\n")
    put(root, "/proc/cpuinfo", "flags : sse2\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = checks(Told(root, timedatectl="yes", ss=LISTENING), asked(ports=PORTS))
    failed = {one.name: one for one in found if one.verdict == FAILURE}
    assert failed.keys() == {"distribution and accounts", "instruction sets", "cores", "memory", "port 9090, export"}
    assert failed["distribution and accounts"].advice.startswith("runs Ubuntu 22.04; this product is made for")
    assert failed["cores"].advice.startswith("has 8 cores and host_minimum_cores asks for 16: use a larger machine")
    assert failed["memory"].advice.startswith("has 64.0 GiB of memory and host_minimum_memory_gib asks for 128")
    assert failed["port 9090, export"].found == "taken by prometheus (prometheus.service)"
    assert table(found)[-1].startswith(f"This host cannot carry the product: 5 of {len(found)} checks failed")


def test_a_port_is_free_or_ours_or_whose_it_is(root: Path) -> None:
    found = {one.name: one for one in checks(Told(root, ss=LISTENING), asked(ports=PORTS))}
    assert found["port 8000, api"].found.startswith("ours: python (citadel-gateway@0001.service), systemd (init.scope)")
    assert found["port 11400, mixtral"].found == "ours: python (citadel-llm@mixtral.service)"
    assert found["port 8002, management"].found == "free"


@pytest.mark.parametrize(
    ("unit", "port", "verdict"),
    [
        ("prometheus-node-exporter.service", "node", GOOD),
        ("node_exporter.service", "node", GOOD),
        ("cups.service", "node", FAILURE),
        ("prometheus-node-exporter.service", "export", FAILURE),
    ],
)
def test_a_node_exporter_may_have_its_port(root: Path, unit: str, port: str, verdict: str) -> None:
    put(root, "/proc/95/cgroup", f"0::/system.slice/{unit}\n")
    told = 'LISTEN 0 4096 *:9100 *:* users:(("prometheus-node",pid=95,fd=3))\n'
    found = {one.name: one for one in checks(Told(root, ss=told), asked(ports={port: 9100}))}
    assert found[f"port 9100, {port}"].verdict == verdict
    assert unit in found[f"port 9100, {port}"].found


def test_neighbours_are_asked_by_their_real_ports(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        good = checks(Told(root), asked(neighbours={"PostgreSQL": f"127.0.0.1:{port}"}))[-1]
    gone = checks(Told(root), asked(neighbours={"PostgreSQL": f"127.0.0.1:{port}"}))[-1]
    assert (good.verdict, good.found) == (GOOD, f"127.0.0.1:{port} answers")
    assert (gone.verdict, gone.found) == (
        WARNING,
        f"127.0.0.1:{port} is refused: the host is there, and nothing listens",
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"disk": 1}, "host_recommended.disk: there is no such figure; there are cores, memory_gib, kernel"),
        ({"cores": "many"}, "host_recommended.cores = 'many': give a whole number, 0 or more"),
        ({"models_gb": -1}, "host_recommended.models_gb = -1: give a whole number, 0 or more"),
    ],
)
def test_thresholds_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="host_recommended") as refusal:
        Thresholds.of(given)
    assert said in str(refusal.value)


def test_a_disk_is_measured_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    written, read = validation.measured(tmp_path, seconds=0.05)
    assert not list(tmp_path.iterdir())
    # nan where the file system under the tests has no direct access
    assert not (written <= 0 or read <= 0)
