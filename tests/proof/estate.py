"""The lab's servers, as the proofs hurt and question them, and the place of a table in a document."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import testinfra
from testinfra.host import Host

from lab.settings import Lab

SERVER = "llm-01"
PATIENCE = 480.0  # Alertmanager takes five minutes until it says that something is over


class Estate:
    def __init__(self, lab: Lab) -> None:
        settings = lab.directory / "ssh_config"

        def host(name: str) -> Host:
            return testinfra.get_host(f"ssh://{name}?ssh_config={settings}&controlpersist=60&sudo=true")

        self.llm, self.data = host(SERVER), host("data-01")
        self.secrets = lab.directory / "secrets"
        addresses = {host.name: lab.address(host) for host in lab.hosts}
        self.address = addresses[SERVER]
        self.prometheus = f"http://{addresses['metrics-01']}:9090/api/v1/query?query="

    def ask(self, expression: str) -> list[dict[str, str]]:
        with urllib.request.urlopen(self.prometheus + urllib.parse.quote(expression), timeout=10) as answer:
            return [one["metric"] for one in json.load(answer)["data"]["result"]]

    def firing(self, alert: str = ".+") -> set[str]:
        found = self.ask(f'ALERTS{{citadel="llm",alertstate="firing",alertname=~"{alert}"}}')
        return {one["alertname"] for one in found}

    def run(self, command: str, host: Host | None = None) -> str:
        done = (host or self.llm).run(command)
        if done.rc:
            raise RuntimeError(f"{command}: {done.stderr}")
        return str(done.stdout).strip()


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> float:
    """When it came true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.5)
    return time.monotonic()


def write(document: Path, marks: tuple[str, str], text: str) -> None:
    begin, end = marks
    head, _, rest = document.read_text().partition(begin)
    document.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
