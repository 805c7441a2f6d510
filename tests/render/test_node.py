"""What the role `node` declares: one drop-in, with flags that systemd splits as they are meant, and its unit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  roles: [node]
  tasks:
    - ansible.builtin.copy:
        content: "{{ node__items | to_json }}"
        dest: "{{ out }}"
        mode: "0644"
      check_mode: false
"""
DECLARED = "It shows what rules and dashboards read"
UNIT = "prometheus-node-exporter.service"


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By name."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "templates").symlink_to(ROOT / "roles/node/templates")
    (folder / "play.yml").write_text(PLAYBOOK)
    variables = {"node_port": 9109, "node__found": {"foreign": False}, "out": str(folder / "out.json")}
    (folder / "variables.json").write_text(json.dumps(variables))
    command = ["ansible-playbook", "-i", "localhost,", "play.yml", "-e", "@variables.json", "--check"]
    done = subprocess.run(
        # who listens on this machine, and what is installed there, is no matter of the role's
        [*command, "--start-at-task", DECLARED],
        cwd=folder,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {item["name"]: item for item in json.loads((folder / "out.json").read_text())}


def test_the_distributions_file_of_arguments_is_left_alone(items: dict[str, dict[str, Any]]) -> None:
    assert list(items) == [f"/etc/systemd/system/{UNIT}.d/citadel.conf", UNIT], "it is told before it is started"
    assert items[UNIT]["desired"] == "enabled active"


def test_it_collects_what_is_read_and_no_more(items: dict[str, dict[str, Any]]) -> None:
    text = next(iter(items.values()))["content"].replace("\\\n", " ")
    before, started = (line.partition("=")[2].split() for line in text.splitlines() if line.startswith("ExecStart="))
    assert not before, "what the package starts is not started besides"
    assert started[0] == "/usr/bin/prometheus-node-exporter"
    assert {"--web.listen-address=:9109", "--collector.disable-defaults"} <= set(started)
    assert {"--collector.systemd", "--collector.systemd.unit-include=citadel-.*"} <= set(started)
    assert {"--collector.textfile", "--collector.textfile.directory=/var/lib/prometheus/node-exporter"} <= set(started)
    assert "--collector.hwmon" not in started


def test_systemd_accepts_the_drop_in(items: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine; the lab's hosts have it")
    text = next(iter(items.values()))["content"].replace("/usr/bin/prometheus-node-exporter", "/bin/true")
    (tmp_path / UNIT).write_text("[Service]\nExecStart=/bin/true $ARGS\n")
    (tmp_path / f"{UNIT}.d").mkdir()
    (tmp_path / f"{UNIT}.d/citadel.conf").write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
