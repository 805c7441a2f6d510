"""What the role `logs` declares: the rotation always, the way to a collector where one is named."""

from __future__ import annotations

import json
import os
import re
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
  roles: [logs]
  tasks:
    - ansible.builtin.copy:
        content: "{{ logs__items | to_json }}"
        dest: "{{ out }}"
        mode: "0644"
      check_mode: false
"""
DECLARED = "Logs are rotated, and sent on where somebody collects them"


def declared(folder: Path, **more: Any) -> dict[str, dict[str, Any]]:
    """The items by name."""
    variables = {
        "logs_directory": "/var/log/citadel-llm",
        "logs_user": "agent0",
        "logs_group": "citadel",
        "logs_files": ["access.log", "phi-3-mini.log"],
        "out": str(folder / "out.json"),
        **more,
    }
    for kind in ("templates", "files"):  # a play that looks at a role's variables looks for its files beside itself
        (folder / kind).symlink_to(ROOT / "roles/logs" / kind)
    (folder / "play.yml").write_text(PLAYBOOK)
    (folder / "variables.json").write_text(json.dumps(variables))
    command: list[str | Path] = [
        "ansible-playbook",
        "-i",
        "localhost,",
        folder / "play.yml",
        "-e",
        f"@{folder}/variables.json",
        "--check",
    ]
    done = subprocess.run(
        # what is installed for it is no matter of this machine
        [*command, "--start-at-task", DECLARED],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {item["name"]: item for item in json.loads((folder / "out.json").read_text())}


def test_the_rotation_is_the_documents_and_the_writers_begin_their_files(tmp_path: Path) -> None:
    items = declared(tmp_path)
    text = items["/etc/logrotate.d/citadel-llm"]["content"]
    assert text.startswith("# Ansible managed\n") and "/var/log/citadel-llm/*.log {" in text
    words = {" ".join(line.split()) for line in text.splitlines()}
    assert words >= {
        *("su agent0 citadel", "daily", "maxsize 100M", "rotate 30", "compress", "delaycompress", "missingok"),
        *("notifempty", "nocreate", "systemctl --no-block reload citadel-gateway.service 2>/dev/null || true"),
    }
    assert list(items)[-1] == "logrotate-citadel-llm.timer", "its files come before it is started"
    service = items["/etc/systemd/system/logrotate-citadel-llm.service"]["content"]
    assert "--state /var/lib/logrotate/status /etc/logrotate.d/citadel-llm" in service


def test_a_collector_gets_each_file_once_and_waits_on_the_disk(tmp_path: Path) -> None:
    items = declared(tmp_path, logs_forward={"host": "10.0.0.9", "port": 5141})
    text = items["/etc/rsyslog.d/30-citadel-llm.conf"]["content"]
    assert 'target="10.0.0.9" port="5141" protocol="tcp"' in text
    assert 'queue.filename="citadel-llm"' in text and 'queue.maxDiskSpace="1g"' in text
    found = re.findall(r'input\(type="imfile" file="([^"]+)" tag="([^"]+)" .* ruleset="citadel-llm"\)', text)
    assert found == [
        ("/var/log/citadel-llm/access.log", "access"),
        ("/var/log/citadel-llm/phi-3-mini.log", "phi-3-mini"),
    ]
    assert items["rsyslog.service"]["desired"] == "enabled active"
    (tmp_path / "rsyslog.conf").write_text(text)
    if not shutil.which("rsyslogd"):
        pytest.skip("rsyslogd is not on this machine, and does not say what it thinks of the file")
    assert subprocess.run(["rsyslogd", "-N1", "-f", tmp_path / "rsyslog.conf"], check=False).returncode == 0


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine; the lab's hosts have it")
    units = [shutil.copy(path, tmp_path) for path in (ROOT / "roles/logs/files/etc/systemd/system").iterdir()]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
