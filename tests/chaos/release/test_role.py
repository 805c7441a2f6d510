"""The role on a real host: what check mode foretells is what the deployment does, on a fresh host and on a live one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import handover
from tests.chaos.release.box.content import ENVIRONMENT, content
from tests.chaos.release.conftest import Box, Client

ROOT = Path(__file__).parents[3]
PLAY = """\
- hosts: llm_servers
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_role: {name: release, tasks_from: "{{ entry | default('main') }}"}
"""


class Controller:
    """Somebody with a checkout, and ssh to the box."""

    def __init__(self, box: Box, folder: Path) -> None:
        handover.ssh_settings(box.machine.lab)
        self._folder, self._lab = folder, box.machine.lab
        (folder / "play.yml").write_text(PLAY)
        (folder / "hosts").write_text(
            f"[llm_servers]\nbox ansible_ssh_common_args='-F {box.machine.lab.directory}/ssh_config'\n"
        )
        self.told = ""

    def play(self, files: dict[str, str], *options: str, **variables: Any) -> dict[str, Any]:
        """Run the role; the results of its tasks by name."""
        settings = self._folder / "variables.json"
        settings.write_text(
            json.dumps(
                {
                    "release_files": files,
                    "release_environments": {"gateway": ENVIRONMENT},
                    "release_allow_dirty": True,
                    "release_reports": str(self._folder),
                    **variables,
                }
            )
        )
        program = Path(sys.executable).with_name("ansible-playbook")
        done = subprocess.run(
            [program, "-i", self._folder / "hosts", self._folder / "play.yml", "-e", f"@{settings}", *options],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
                # named after host and user, a shared connection would lead to the box of another checkout
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._lab.sockets),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        self.told = done.stdout + done.stderr
        assert "{" in done.stdout, self.told
        [play] = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])[0]["plays"]
        self.tasks = len(play["tasks"])
        return {task["task"]["name"]: task["hosts"]["box"] for task in play["tasks"] if "box" in task["hosts"]}


@pytest.fixture
def controller(box: Box, tmp_path: Path) -> Controller:
    box.clear()
    return Controller(box, tmp_path)


def own(files: dict[str, str]) -> dict[str, str]:
    """The role brings the host package and the recovery itself."""
    return {path: text for path, text in files.items() if not path.startswith("host/") and "recover" not in path}


def test_the_plan_is_the_deed(box: Box, controller: Controller, client: Callable[..., Client]) -> None:
    first = own(content({"alpha": {}, "beta": {}}))
    second = own(content({"alpha": {}, "beta": {"load": "0.1"}}, {"colour": "green"}))
    for files in (first, second):
        before = box.units()
        planned = controller.play(files, "--check", "--diff")["release : Stage the release"]
        assert box.units() == before and not box.layout.journal.exists()
        done = controller.play(files)
        staged = done["release : Stage the release"]
        outcome = done["release : End proven, or as before"]["outcome"]
        assert planned["plan"] == staged["plan"] == outcome["plan"]
        assert [step["name"] for step in outcome["steps"]][: len(planned["steps"])] == planned["steps"]
        assert planned["release"] == staged["release"] == box.live
    assert {action["verb"] for action in planned["plan"]["actions"]} == {"keep", "restart", "replace"}
    [report] = [path for path in controller._folder.glob("box-*.md") if str(box.live) in path.name]
    assert "I am beta." in report.read_text() and "colour" in report.read_text()
    again = controller.play(second)
    assert not again["release : Stage the release"]["changed"]
    assert "release : Begin the activation" not in again


def test_a_failure_is_told_in_one_sentence_and_leaves_evidence(box: Box, controller: Controller) -> None:
    controller.play(own(content({"alpha": {}})))
    old = box.live
    told = controller.play(own(content({"alpha": {"wrong": "crash"}})))["release : Say how it ended"]
    assert told["failed"] and "there is no such model" in told["msg"] and f"{old} serves as before" in told["msg"]
    assert box.live == old
    assert len(list(controller._folder.glob("box-*.md"))) == 2


def test_rollback_of_the_gateway_costs_no_request(
    box: Box, controller: Controller, client: Callable[..., Client]
) -> None:
    controller.play(own(content({"alpha": {}})))
    old = box.live
    controller.play(own(content({"alpha": {}}, {"colour": "green"})))
    with client("alpha") as asking:
        controller.play({}, "-e", "entry=rollback")
    assert box.live == old
    assert asking.wrong == []


def test_a_dirty_checkout_is_refused(box: Box, controller: Controller) -> None:
    done = controller.play(
        own(content({"alpha": {}})), release_allow_dirty=False, release_source={"revision": "abc", "dirty": True}
    )
    assert done["release : Refuse a checkout with uncommitted changes"]["failed"]
    assert box.live is None
