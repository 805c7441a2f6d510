"""The role on a real host: what check mode foretells is what the deployment does, on a fresh host and on a live one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.release.box.content import content
from tests.chaos.release.conftest import Box, Client
from tests.chaos.release.plays import Deployer

PLAY = """\
- hosts: llm_servers
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_role: {name: release, tasks_from: "{{ entry | default('main') }}"}
"""


@pytest.fixture
def deployer(box: Box, tmp_path: Path) -> Deployer:
    box.clear()
    return Deployer(box, tmp_path, PLAY)


def own(files: dict[str, str]) -> dict[str, str]:
    """The role brings the host package and the recovery itself."""
    return {path: text for path, text in files.items() if not path.startswith("host/") and "recover" not in path}


def test_the_plan_is_the_deed(box: Box, deployer: Deployer, client: Callable[..., Client]) -> None:
    first = own(content({"alpha": {}, "beta": {}}))
    second = own(content({"alpha": {}, "beta": {"load": "0.1"}}, {"colour": "green"}))
    for files in (first, second):
        before = box.units()
        planned = deployer.play(files, "--check", "--diff").results["release : Stage the release"]
        assert box.units() == before and not box.layout.journal.exists()
        done = deployer.play(files).results
        staged = done["release : Stage the release"]
        outcome = done["release : End proven, or as before"]["outcome"]
        assert planned["plan"] == staged["plan"] == outcome["plan"]
        assert [step["name"] for step in outcome["steps"]][: len(planned["steps"])] == planned["steps"]
        assert planned["release"] == staged["release"] == box.live
    assert {action["verb"] for action in planned["plan"]["actions"]} == {"keep", "restart", "replace"}
    [report] = [path for path in deployer.folder.glob("box-*.md") if str(box.live) in path.name]
    assert "I am beta." in report.read_text() and "colour" in report.read_text()
    again = deployer.play(second).results
    assert not again["release : Stage the release"]["changed"]
    assert "release : Begin the activation" not in again


def test_a_failure_is_told_in_one_sentence_and_leaves_evidence(box: Box, deployer: Deployer) -> None:
    deployer.play(own(content({"alpha": {}})))
    old = box.live
    told = deployer.play(own(content({"alpha": {"wrong": "crash"}}))).results["release : Say how it ended"]
    assert told["failed"] and "there is no such model" in told["msg"] and f"{old} serves as before" in told["msg"]
    assert box.live == old
    assert len(list(deployer.folder.glob("box-*.md"))) == 2


def test_rollback_of_the_gateway_costs_no_request(box: Box, deployer: Deployer, client: Callable[..., Client]) -> None:
    deployer.play(own(content({"alpha": {}})))
    old = box.live
    deployer.play(own(content({"alpha": {}}, {"colour": "green"})))
    with client("alpha") as asking:
        deployer.play({}, "-e", "entry=rollback")
    assert box.live == old
    assert asking.wrong == []


def test_a_dirty_checkout_is_refused(box: Box, deployer: Deployer) -> None:
    done = deployer.play(
        own(content({"alpha": {}})), release_allow_dirty=False, release_source={"revision": "abc", "dirty": True}
    ).results
    assert done["release : Refuse a checkout with uncommitted changes"]["failed"]
    assert box.live is None
