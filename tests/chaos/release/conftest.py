"""A real host with a real systemd, whose models and gateway are stand-ins that start in half a second."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from citadel.release.activation import RESULTS, UNIT, Request, command, start
from citadel.release.failure import RefusedError
from citadel.release.history import live_release
from citadel.release.layout import Layout
from citadel.release.manifest import Manifest, read_manifest
from citadel.release.probe import Connection
from citadel.release.server import now
from citadel.release.stage import Wish, manifest_of, stage
from citadel.release.survey import Live
from lab import handover, network, preflight
from lab.__main__ import down
from lab.machine import Machine, wait
from lab.settings import Lab, LabHost
from lab.tree import tree
from tests.chaos.release.box.content import ENVIRONMENT
from tools import programs

PACKAGES = sysconfig.get_path("purelib")  # what the real gateway needs is installed beside these tests
BOX = Path(__file__).parent / "box"


class Box:
    """The host, from outside: its files are reached through its root, its systemd through its namespaces."""

    def __init__(self, lab: Lab) -> None:
        self.machine = Machine(lab, lab.hosts[0])
        self.address = lab.address(lab.hosts[0])
        self._lab = lab

    @property
    def layout(self) -> Layout:
        """The files as processes in the box see them, mounts included."""
        return Layout(Path(f"/proc/{self.machine.leader}/root"))

    def start(self) -> None:
        self.machine.start(tree(self._lab, ("nftables",)), [f"--bind-ro={PACKAGES}:/srv/packages"], self._settle)
        self.machine.await_boot()

    def _settle(self, root: Path) -> None:
        handover.settle(self._lab, self.machine.host, root)
        (root / "srv/box").mkdir(parents=True, exist_ok=True)
        shutil.copy(BOX / "model.py", root / "srv/box")

    def pull_the_plug(self) -> None:
        pid, leader = self.machine.pid, self.machine.leader
        assert pid and leader
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGKILL)
        wait(lambda: self.machine.pid is None, 10, "the box lives on")
        self.machine.clear_remains()

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.machine.inside(*arguments), capture_output=True, text=True, check=check)

    def clear(self, size: str = "") -> None:
        """As if nothing had ever been deployed; on a disk of this size, if one is given."""
        self.run("sh", "-c", "systemctl stop 'citadel-*.socket' 'citadel-*'; systemctl reset-failed", check=False)
        self.run(
            "sh",
            "-c",
            "while umount /opt/citadel 2>/dev/null; do :; done; rm -rf /opt/citadel /run/citadel-release; "
            "find /etc/systemd/system -name 'citadel-*' -depth -exec rm -rf {} +; systemctl daemon-reload",
        )
        if size:
            self.run("sh", "-c", f"mkdir -p /opt/citadel; mount -t tmpfs -o size={size} tmpfs /opt/citadel")
        python = self.layout.inside(ENVIRONMENT) / "bin/python"
        python.parent.mkdir(parents=True)
        python.symlink_to("/usr/bin/python3")

    def stage(self, files: dict[str, str]) -> Manifest:
        release = live_release(self.layout)
        live = Live(release, read_manifest(self.layout.release(release)) if release else None)
        wish = Wish(files, environments={"gateway": ENVIRONMENT}, who="the test", at=now())
        manifest = manifest_of(self.layout, wish, live)
        stage(self.layout, wish, manifest)
        return manifest

    def begin(self, release: str) -> Path:
        """Start the activation exactly as the Ansible module does."""
        result = RESULTS / f"{uuid.uuid4().hex}.json"
        self.run("mkdir", "-p", str(RESULTS))
        request = Request("activate", release, who="the test")
        start(command(Layout(), request, result), Layout(), lambda arguments: self.run(*arguments, check=False))
        return result

    def end(self, result: Path, seconds: float = 60) -> dict[str, Any]:
        wait(lambda: not self.busy(), seconds, f"the transaction did not end: {self.story()}")
        told = self.run("cat", str(result), check=False).stdout
        outcome: dict[str, Any] = json.loads(told) if told else {"outcome": "silent", "said": self.log()}
        return outcome

    def activate(self, release: str) -> dict[str, Any]:
        return self.end(self.begin(release))

    def busy(self) -> bool:
        return self.run("systemctl", "is-active", UNIT, check=False).stdout.strip() in {
            "active",
            "activating",
            "deactivating",
        }

    def story(self) -> list[dict[str, Any]]:
        try:
            lines = self.layout.journal.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def steps(self) -> list[str]:
        return [event["name"] for event in self.story() if event["event"] == "step"]

    def log(self) -> str:
        return self.run("journalctl", "-u", UNIT, "-n", "40", "-o", "cat", "--no-pager").stdout

    def kill_engine(self) -> None:
        self.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)

    @property
    def live(self) -> str | None:
        try:
            return live_release(self.layout)
        except RefusedError as error:
            return str(error)

    def units(self) -> dict[str, str]:
        """What runs, and with which digest."""
        listed = self.run("systemctl", "list-units", "--plain", "--no-legend", "citadel-*@*.service").stdout
        running = [line.split()[0] for line in listed.splitlines() if " active " in line]
        found = {}
        for unit in running:
            pid = self.run("systemctl", "show", "-p", "MainPID", "--value", unit).stdout.strip()
            environment = self.run("cat", f"/proc/{pid}/environ", check=False).stdout.split("\0")
            found[unit] = next((e.partition("=")[2] for e in environment if e.startswith("CITADEL_DIGEST=")), "")
        return found


class Client:
    """Asks every model all the time, as somebody who never heard of deployments, and keeps what went wrong."""

    def __init__(self, address: str, models: list[str]) -> None:
        self._address, self._models = address, models
        self.asked = 0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(model,)) for model in models]

    def __enter__(self) -> Client:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, model: str) -> None:
        while not self._over.wait(0.1):
            begun = time.time()
            try:
                body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
                with Connection(8000, host=self._address) as connection:
                    status, answer = connection.ask("/v1/chat/completions", body)
                assert status == 200 and answer["choices"][0]["message"]["content"] == f"I am {model}."
            except Exception as error:
                self.wrong.append(f"{model} at {begun:.1f}: {error!r}")
            self.asked += 1


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    if os.geteuid() != 0 or programs.missing("demo"):
        pytest.skip("a host with systemd needs root and the lab's programs (`sudo make test` installs them)")
    # a name, a bridge and addresses of its own: whatever this machine or another checkout serves is not met
    lab = replace(Lab.from_environment().beside("b"), hosts=(LabHost("box", 29),))
    with preflight.only_one(lab):
        down(lab)  # what a run that was killed has left
        lab.directory.mkdir(parents=True, exist_ok=True)
        lab.record.write_text(json.dumps({"network": str(lab.network)}))
        network.up(lab)
        box = Box(lab)
        try:
            box.start()
            yield box
        finally:
            down(lab)


@pytest.fixture
def client(box: Box) -> Callable[..., Client]:
    return lambda *models: Client(box.address, list(models))
