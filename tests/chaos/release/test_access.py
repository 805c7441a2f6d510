"""Ssh and firewall of a booted host: who comes in by which door, and nobody is shut out for longer than a moment."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from citadel import access
from lab.machine import wait
from lab.settings import USER
from tests.chaos.release.conftest import Box
from tests.chaos.release.plays import Controller, roles

PORTS = {"api": 8000, "management": 8002, "health": 8080, "export": 9090, "node": 9100}
CONTRACT: dict[str, Any] = {"ports": PORTS, "models": {}}
DOORS = (22, *PORTS.values(), 11400)
# a foreign table and a foreign drop-in, which nobody may touch
FOREIGN = "table inet foreign { chain input { type filter hook input priority 10; policy accept; tcp dport 7 drop; }; }"
LISTEN = "import socket, time; held = [socket.create_server(('', p)) for p in (%s)]; time.sleep(3600)"

CLEAR = """
systemctl stop doors host-access-timer.timer nftables host-firewall
nft flush ruleset
rm -rf /etc/citadel /var/lib/citadel /etc/ssh/sshd_config.d/00-* /etc/systemd/system/host-* \
    /etc/systemd/system/nftables.service.d \
    /etc/systemd/system/sysinit.target.wants/host-*
systemctl daemon-reload
systemctl reload ssh
"""


class Operator(Controller):
    """Somebody who reaches the box by ssh, from the address of the lab's gateway or from one beside it."""

    @property
    def home(self) -> str:
        return self.lab.gateway

    def policy(self, profile: str, **said: Any) -> dict[str, Any]:
        given = {
            "profile": profile,
            "root_login": "no",
            "ssh_port": 22,
            "management": [self.home],
            "clients": [str(self.lab.network[38])],
            "metrics": [str(self.lab.network[37])],
            "side_address": "",
            **said,
        }
        return access.Policy.of(given, CONTRACT).as_dict()

    def set(self, policy: dict[str, Any], **variables: Any) -> list[Any]:
        """What it changed."""
        done = self.run(access_policy=policy, **variables)
        assert done.status == 0, done.told[-4000:]
        return [task.get("diff", task) for task in done.results.values() if task.get("changed")]

    def scan(self, octet: int) -> list[int]:
        """Which doors open to somebody with this address of the lab's network."""
        found = []
        for port in DOORS:
            try:
                socket.create_connection((self.box.address, port), 0.7, (str(self.lab.network[octet]), 0)).close()
                found.append(port)
            except OSError:
                pass
        return found

    def comes_in(self, user: str = USER) -> bool:
        """Over a connection of its own."""
        settings = ["-F", f"{self.lab.directory}/ssh_config", "-o", "ControlPath=none", "-o", "BatchMode=yes"]
        command = ["ssh", *settings, "-o", "ConnectTimeout=3", f"{user}@box", "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def state(box: Box) -> str:
    """All that the role may touch, byte by byte, and the kernel's rules."""
    command = (
        "cd /; find etc/ssh etc/citadel etc/systemd/system var/lib/citadel ! -type d 2>/dev/null | sort | "
        'while read -r path; do ls -l --time-style=+ "$path"; cat "$path" 2>/dev/null | sha256sum; done; '
        "nft list ruleset; sshd -T; systemctl is-enabled host-firewall.service 2>&1"
    )
    return box.run("sh", "-c", command, check=False).stdout


@pytest.fixture
def operator(box: Box, tmp_path: Path) -> Iterator[Operator]:
    """The box as it came, with every door of the contract open behind its firewall, and its neighbours' addresses."""
    box.clear()
    lab = box.machine.lab
    neighbours = [f"{lab.network[octet]}/24" for octet in (37, 38, 39)]
    for address in neighbours:
        subprocess.run(["ip", "addr", "add", address, "dev", lab.bridge], check=True, capture_output=True)
    box.run("systemctl", "start", "nftables.service")
    box.run("nft", FOREIGN)
    ports = ", ".join(map(str, DOORS[1:]))
    box.run("systemd-run", "--collect", "--unit=doors", "python3", "-c", LISTEN % ports)
    operator = Operator(box, tmp_path, roles("access"), USER)
    wait(lambda: operator.scan(1) == [*DOORS], 10, "the doors of the box do not open")
    yield operator
    box.run("sh", "-c", CLEAR, check=False)
    for address in neighbours:
        subprocess.run(["ip", "addr", "del", address, "dev", lab.bridge], check=True, capture_output=True)


def test_each_profile_opens_its_doors_and_the_way_back_leads_to_the_byte(box: Box, operator: Operator) -> None:
    before = state(box)
    closed, loose = operator.policy("production"), operator.policy("development")
    assert operator.run("--check", access_policy=closed).status == 0
    assert state(box) == before
    assert operator.set(closed)
    # management, metrics, clients, and one who is nobody
    assert [operator.scan(octet) for octet in (1, 37, 38, 39)] == [
        [22, 8000, 8002, 8080],
        [8080, 9090, 9100],
        [8000],
        [],
    ]
    assert box.run("ping", "-c", "1", "127.0.0.1", check=False).returncode in {0, 127}
    assert "table inet foreign" in box.run("nft", "list", "tables").stdout
    shown = box.run("sshd", "-T").stdout
    assert "passwordauthentication no" in shown and "permitrootlogin no" in shown and "maxauthtries 3" in shown
    assert not operator.set(closed)
    # what loads the host's own rules empties all tables first
    for verb in ("restart", "reload", "stop", "start"):
        box.run("systemctl", verb, "nftables.service")
        assert operator.scan(39) == [], f"the firewall is gone since nftables was told to {verb}"
    box.run("nft", FOREIGN)
    assert operator.set(loose)
    assert [operator.scan(octet) for octet in (1, 39)] == [[*DOORS], [*DOORS]]
    assert "passwordauthentication yes" in box.run("sshd", "-T").stdout
    assert not operator.set(loose)
    assert operator.set(loose, access_state="absent")
    assert not operator.set(loose, access_state="absent")
    assert state(box) == before


def test_who_would_be_shut_out_is_told_before_anything_has_changed(box: Box, operator: Operator) -> None:
    before = state(box)
    elsewhere = operator.policy("production", management=["10.1.2.3"])
    refused = operator.run(access_policy=elsewhere)
    said = refused.results["access : Set who may come in, for a moment"]["msg"]
    assert (
        refused.status
        and f"box is reached from {operator.home}, and access_management has 10.1.2.3/32: that would" in said
    )
    refused = operator.run(access_policy=operator.policy("production", ssh_port=2222))
    said = refused.results["access : Set who may come in, for a moment"]["msg"]
    assert refused.status and "is reached on port 22, and access_ssh_port is 2222" in said
    assert state(box) == before


def test_a_lock_out_lasts_as_long_as_the_timer(box: Box, operator: Operator) -> None:
    before = state(box)
    # what no look at the policy can find: a rule of somebody else that drops whatever ours are there
    box.run("nft", "add table inet trap")
    box.run("sh", "-c", "cat > /run/trap <<'EOF'\nadd chain inet trap input { type filter hook input priority 20; }\n"
            "add rule inet trap input tcp dport 22 ct state new drop\nEOF")  # fmt: skip
    hook = "[Service]\nExecStartPost=/usr/sbin/nft -f /run/trap\n"
    folder = "/etc/systemd/system/host-firewall.service.d"
    box.run("sh", "-c", f"mkdir {folder}; printf '{hook}' > {folder}/trap.conf")
    done = operator.run(access_policy=operator.policy("production"), access_patience=25)
    assert done.status and "let nobody in anew" in done.told and "puts its ssh and firewall back" in done.told
    assert not operator.comes_in()
    box.run("nft", "delete table inet trap")  # the trap itself is no business of ours
    box.run("rm", "-r", folder)
    wait(lambda: operator.scan(39) == [*DOORS], 40, "the firewall was not taken away")
    assert operator.comes_in()
    box.run("sh", "-c", "rm -f /etc/systemd/system/host-access-revert.service /var/lib/citadel/access/revert.py "
            "/etc/systemd/system/sysinit.target.wants/host-access-revert.service")  # fmt: skip
    assert state(box) == before
