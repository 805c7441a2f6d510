"""The product's playbooks, run on the lab as whoever keeps the estate runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from typing import Any

from testinfra.host import Host

from lab.machine import Machine, wait
from lab.settings import ROOT, Lab

JOURNAL = "/opt/citadel/state/transaction.jsonl"


def begin(playbook: str, **variables: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ansible-playbook", playbook, "-i", "inventory/lab", "--extra-vars", json.dumps(variables)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def play(playbook: str, **variables: Any) -> None:
    told, status = tried(playbook, **variables)
    assert status == 0, told[-4000:]


def tried(playbook: str, **variables: Any) -> tuple[str, int]:
    process = begin(playbook, **variables)
    told, _ = process.communicate()
    return told, process.returncode


def live(llm: Host) -> str:
    return str(llm.check_output("basename $(readlink /opt/citadel/current)"))


def restarts(llm: Host, *models: str) -> dict[str, str]:
    """The processes of these models: the same numbers later mean that nobody touched them."""
    return {name: llm.check_output("systemctl show citadel-llm@%s --property=MainPID", name) for name in models}


def steps(llm: Host) -> list[str]:
    """What the open transaction has begun, as its journal says; the last is what it is at."""
    lines = llm.run(f"cat {JOURNAL}").stdout.splitlines()
    return [event["name"] for event in map(json.loads, lines) if event["event"] == "step"]


def step(llm: Host) -> str:
    return (steps(llm) or [""])[-1]


def pull_the_plug(lab: Lab, name: str) -> None:
    machine = next(Machine(lab, host) for host in lab.hosts if host.name == name)
    pid, leader = machine.pid, machine.leader
    assert pid and leader
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, signal.SIGKILL)
    wait(lambda: machine.pid is None, 10, f"{name} lives on")


def forget(lab: Lab, name: str) -> None:
    """The shared connection to a host that has gone."""
    settings = lab.directory / "ssh_config"
    subprocess.run(["ssh", "-F", settings, "-O", "exit", name], check=False, capture_output=True)
