"""The role `targets` on a folder of this machine: what it writes, what it takes away, and when it only speaks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = """
- hosts: metrics
  gather_facts: false
  roles: [targets]
- hosts: other
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: the deployment goes on}
"""
OF_ONE = {"targets": ["10.0.0.1:8000"], "labels": {"citadel_host": "one"}}


def join(tmp_path: Path, folder: Path, *servers: str, there: bool = True) -> str:
    metrics = {"ansible_connection": "local" if there else "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts = {"metrics": metrics, "other": {"ansible_connection": "local"}}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    told = {"targets_directory": str(folder), "targets_groups": {name: [OF_ONE] for name in servers}}
    done = subprocess.run(
        ["ansible-playbook", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml", "-e", json.dumps(told)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "the deployment goes on" in done.stdout
    return " ".join(done.stdout.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "targets.d"
    made.mkdir()
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="files of targets belong to root")
def test_a_server_taken_out_of_the_inventory_is_scraped_no_more(tmp_path: Path, folder: Path) -> None:
    (folder / "citadel-of-somebody.yml").write_text("[]\n")
    (folder / "node.yml").write_text("[]\n")
    join(tmp_path, folder, "one", "two")
    assert yaml.safe_load((folder / "citadel-two.yml").read_text()) == [OF_ONE]
    join(tmp_path, folder, "one")
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["citadel-of-somebody.yml", "citadel-one.yml", "node.yml"], "what is not ours is not ours to remove"


def test_a_metrics_server_that_cannot_be_asked_is_told_and_stops_nobody(tmp_path: Path, folder: Path) -> None:
    said = join(tmp_path, folder, "one", there=False)
    assert "| metrics cannot be asked, so its Prometheus does not know of this deployment: " in said
    assert not list(folder.iterdir())


def test_a_prometheus_without_a_folder_of_targets_is_told_and_stops_nobody(tmp_path: Path, folder: Path) -> None:
    said = join(tmp_path, folder / "nowhere", "one")
    assert f"| metrics has no folder {folder}/nowhere, so its Prometheus does not know of this deployment: name" in said
