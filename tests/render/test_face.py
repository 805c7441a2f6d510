"""What the role `face` renders: links from the planned instances, settings that a shell and YAML read, real scripts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  roles: [face]
  tasks:
    - ansible.builtin.copy:
        content: "{{ face_release_files | to_json }}"
        dest: "{{ out }}"
        mode: "0644"
"""


def instance(name: str, model: str, repository: str) -> dict[str, str]:
    path = f"/opt/models/{model}/r1"
    return {"name": name, "model": model, "repository": repository, "path": path, "url": "http://127.0.0.1:11400"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("face")
    variables = {
        "face_home": "/opt/citadel",
        "face_models_root": "/opt/models",
        "face_logs": "/var/log/citadel-llm",
        "face_user": "agent0",
        "face_group": "agent0",
        "face_engine_user": "citadel-vllm",
        "face_profile": "development",
        "face_texts": "/var/lib/prometheus/node-exporter",
        "face_instances": [
            instance("phi-1", "phi", "some/Phi-long"),
            instance("phi-2", "phi", "some/Phi-long"),
            instance("plain", "plain", "some/plain"),
        ],
        "face_defaults": {"kind": "chat"},
        "face_ports": {"api": 8000, "management": 8002, "health": 8080, "export": 9090, "node": 9100},
        "face_neighbours": {"database": "10.0.0.35:5433", "vectors": ""},
        "face_targets": [{"targets": ["10.0.0.29:8000"], "labels": {"job": "one"}}],
        "face_documents": {"docs/quick-reference.md": "# Here\n"},
        "out": str(folder / "out.json"),
    }
    (folder / "play.yml").write_text(PLAYBOOK)
    (folder / "variables.json").write_text(json.dumps(variables))
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", folder / "play.yml", "-e", f"@{folder}/variables.json"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    found: dict[str, str] = json.loads((folder / "out.json").read_text())
    return found


def test_links_follow_from_the_instances(files: dict[str, str]) -> None:
    links = json.loads(files["host/face.json"])
    assert links["/opt/citadel/config/phi.env"] == "models/phi-1.env", "of several replicas the first"
    assert links["/opt/citadel/config/phi-2.env"] == "models/phi-2.env"
    assert links["/opt/models/Phi-long"] == "/opt/models/phi/r1"
    assert "/opt/models/plain" not in links, "a model's own folder is no link"
    assert links["/opt/citadel/scripts"] == "current/scripts"


def test_a_shell_reads_the_settings(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "env").write_text(files["config/citadel.env"])
    ask = f'set -eu; . {tmp_path}/env; echo "$CITADEL_ENV $DATABASE_ADDRESS $SERVER_HOSTNAME ${{VECTORS_ADDRESS-none}}"'
    told = subprocess.run(["sh", "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert told[:2] == ["development", "10.0.0.35:5433"] and told[2] and told[3] == "none"


def test_the_rest_is_yaml(files: dict[str, str]) -> None:
    watched = yaml.safe_load(files["config/monitoring.yaml"])
    assert watched["models"]["phi-2"] == "http://127.0.0.1:11400/metrics"
    assert yaml.safe_load(files["config/prometheus-llm-targets.yaml"])[0]["targets"] == ["10.0.0.29:8000"]
    assert yaml.safe_load(files["config/vllm-service-template.yaml"])["model"] == {"kind": "chat"}


def test_every_script_is_one_of_a_shell(files: dict[str, str], tmp_path: Path) -> None:
    scripts = {path: text for path, text in files.items() if path.startswith("scripts/") and path.endswith(".sh")}
    assert {"scripts/citadel.sh", "scripts/health-monitor.sh", "scripts/security-audit.sh"} <= scripts.keys()
    for path, text in scripts.items():
        (tmp_path / "script").write_text(text)
        assert text.startswith("#!/bin/sh\n"), path
        assert subprocess.run(["sh", "-n", tmp_path / "script"], check=False).returncode == 0, path
