"""Looks at this host and shows what it finds, for whoever has to find a fault; an audit shows what it saw likewise."""

from __future__ import annotations

import argparse
import shutil
import subprocess

from .release.services import GATEWAY_PREFIX

MODELS = "citadel-llm@*.service"
GATEWAYS = f"{GATEWAY_PREFIX}*.service"
PATIENCE = 60
SOCKET = "/run/citadel-gateway/management.sock"  # open to administrators in every profile
SSH = [
    "journalctl",
    "--no-pager",
    "--quiet",
    "--output=short-iso",
    "--lines=20",
    "_COMM=sshd",
    "+",
    "_COMM=sshd-session",
]

# title -> the command whose output stands below it
SECTIONS: dict[str, dict[str, list[str]]] = {
    "audit": {
        "Listening ports": ["ss", "-lntup"],
        "Connections to models, gateway, metrics and ssh": [
            *["ss", "-Hnt", "state", "established"],
            "( sport >= :11400 and sport <= :11999 or sport = :8000 or sport = :8002 or sport = :8080"
            " or sport = :9090 or sport = :9100 or sport = :22 )",
        ],
        "Services that run": ["systemctl", "list-units", "--no-pager", "--plain", "--state=running", "citadel-*"],
        # asked for by name it takes no patterns, and shows a page for each
        "Exposure of the services": [
            "sh",
            "-c",
            "systemd-analyze security --no-pager | grep -E '^ *UNIT|citadel-|host-(firewall|access)'",
        ],
        "Failed logins": [
            *SSH,
            "--grep=Failed|Invalid user|authentication failure|Connection closed by authenticating",
        ],
        "Accepted logins": [*SSH, "--grep=Accepted"],
        "Files of root that others may write": [
            *["find", "/opt/citadel/releases", "/opt/citadel/envs", "/opt/citadel/state", "-xdev"],
            *["(", "-perm", "-o+w", "-o", "!", "-user", "root", ")", "!", "-type", "l"],
        ],
        "Updates that wait": ["apt", "list", "--upgradable"],
        "Disks": ["df", "-h", "-x", "tmpfs", "-x", "overlay", "--total"],
    },
    "diagnose": {
        "System": ["uname", "-a"],
        "Distribution": ["cat", "/etc/os-release"],
        "Processors": ["lscpu"],
        "Memory": ["free", "-h"],
        "Disks": ["df", "-h"],
        "Pressure": ["grep", "-r", "some", "/proc/pressure"],
        "Listening ports": ["ss", "-lntp"],
        "Units": ["systemctl", "list-units", "--no-pager", "--all", "citadel-*"],
        "Models": ["systemctl", "status", "--no-pager", "--lines=3", MODELS],
        "Gateway": ["systemctl", "status", "--no-pager", "--lines=10", GATEWAYS],
        "Processes": ["ps", "-eo", "pid,user,%cpu,%mem,rss,etime,args", "--sort=-rss", "--cols=160"],
        "Errors of the last hour": [
            *["journalctl", "--no-pager", "--quiet", "--since=-1h", "--lines=100", "--output=short-iso"],
            *["--priority=warning", "--unit=citadel-*"],
        ],
        "Last transaction": [
            "journalctl",
            "--no-pager",
            "--quiet",
            "--lines=20",
            "--output=cat",
            "-u",
            "citadel-activate",
        ],
        "Health": ["curl", "-sS", "-m", "5", "-w", "\\n%{time_total} s\\n", "http://127.0.0.1:8080/health"],
        "Models that clients see": [
            "curl",
            "-sS",
            "-m",
            "5",
            "--unix-socket",
            SOCKET,
            "http://localhost/management/models",
        ],
    },
}


def shown(command: list[str]) -> str:
    if not shutil.which(command[0]):
        return f"({command[0]} is not installed)"
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(no answer within {PATIENCE} s)"
    return done.stdout.rstrip() or "(nothing)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(sections=parser.prog.split()[-1])


def run(arguments: argparse.Namespace) -> int:
    for title, command in SECTIONS[arguments.sections].items():
        print(f"=== {title}\n{shown(command)}\n", flush=True)
    return 0
