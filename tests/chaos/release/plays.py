"""Plays that somebody with a checkout runs on the box, by ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import handover
from tests.chaos.release.box.content import ENVIRONMENT
from tests.chaos.release.conftest import Box

ROOT = Path(__file__).parents[3]


def roles(*names: str) -> str:
    return f"- {{hosts: llm_servers, gather_facts: false, become: true, roles: [{', '.join(names)}]}}\n"


@dataclass(frozen=True)
class Played:
    status: int
    told: str
    tasks: list[tuple[str, dict[str, Any]]]

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """By the names of the tasks, as far as the box came to them."""
        return {name: result for name, result in self.tasks if result}


class Controller:
    last: Played

    def __init__(self, box: Box, folder: Path, play: str, user: str = "") -> None:
        handover.ssh_settings(box.machine.lab)
        self.box, self.folder, self.lab = box, folder, box.machine.lab
        (folder / "play.yml").write_text(play)
        reached = f"ansible_ssh_common_args='-F {self.lab.directory}/ssh_config'"
        (folder / "hosts").write_text(f"[llm_servers]\nbox {reached}{f' ansible_user={user}' if user else ''}\n")

    def run(self, *options: str, play: str = "", **variables: Any) -> Played:
        playbook, settings = self.folder / ("another.yml" if play else "play.yml"), self.folder / "variables.json"
        if play:
            playbook.write_text(play)
        settings.write_text(json.dumps(variables))
        program = Path(sys.executable).with_name("ansible-playbook")
        done = subprocess.run(
            [program, "-i", self.folder / "hosts", playbook, "-e", f"@{settings}", *options],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
                # named after host and user, a shared connection would lead to the box of another checkout
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.lab.sockets),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        told = done.stdout + done.stderr
        assert "{" in done.stdout, told
        [played] = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])[0]["plays"]
        tasks = [(task["task"]["name"], task["hosts"].get("box", {})) for task in played["tasks"]]
        self.last = Played(done.returncode, told, tasks)
        return self.last


class Deployer(Controller):
    """Whose every play is of the role `release`."""

    def play(self, files: dict[str, str], *options: str, **variables: Any) -> Played:
        given = {
            "release_files": files,
            "release_environments": {"gateway": ENVIRONMENT},
            "release_allow_dirty": True,
            "release_reports": str(self.folder),
        }
        return self.run(*options, **{**given, **variables})
