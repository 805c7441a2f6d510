"""The role `companion`: what it renders, and that its digest follows what it is made of."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from citadel_companion.config import Config

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  roles: [companion]
  tasks:
    - ansible.builtin.copy:
        content: "{{ companion_release_files | to_json }}"
        dest: "{{ out }}"
        mode: "0600"
"""
TOLD = {
    "companion_environment": "/opt/citadel/envs/gateway-1",
    "companion_releases": "/opt/citadel/releases",
    "companion_user": "citadel-companion",
    "companion_socket": "/run/citadel-companion/companion.sock",
    "companion_gateway": "/run/citadel-gateway/inner.sock",
    "companion_spool": "/var/lib/citadel-usage",
    "companion_state": "/var/lib/citadel-companion",
}
UNIT = "units/citadel-companion.service"


def rendered(tmp_path: Path, **more: Any) -> dict[str, str]:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    # a host before its first release, where there is no such unit
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\nexit 5\n")
    systemctl.chmod(0o755)
    told = {**TOLD, "out": str(tmp_path / "out.json"), "ansible_connection": "local", **more}
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", tmp_path / "play.yml", "-e", json.dumps(told)],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return dict(json.loads((tmp_path / "out.json").read_text()))


def digest(files: dict[str, str]) -> str:
    (line,) = (line for line in files[UNIT].splitlines() if line.startswith("Environment=CITADEL_DIGEST="))
    return line.rpartition("=")[2]


def test_it_is_a_unit_a_configuration_and_a_source(tmp_path: Path) -> None:
    files = rendered(tmp_path)
    config = Config.model_validate(yaml.safe_load(files["config/companion.yml"]))
    assert config.database is None
    assert config.spool == TOLD["companion_spool"]
    assert "gateway/citadel_companion/migrations/0001_base.sql" in files
    assert "gateway/citadel_companion/responses/routes.py" in files
    assert "RuntimeDirectory=citadel-companion\n" in files[UNIT]
    assert "IPAddressAllow=localhost\n" in files[UNIT]


def test_a_database_is_let_out_to_and_makes_another_digest(tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "companion_database": {"host": "10.0.0.35"},
        "companion_schemas": {"phi-3-mini": "phi3"},
        "companion_files": {"days": 7},
        "companion_batches": {"at_once": 4},
        "companion_responses": {"days": 7, "store": False},
    }
    secret = {"companion_database_password": "hidden-1", "companion_credentials": str(tmp_path / "credentials")}
    files = rendered(tmp_path, **told, **secret)
    config = Config.model_validate(yaml.safe_load(files["config/companion.yml"]))
    assert config.database is not None
    assert config.database.port == 5433
    assert (config.files.days, config.batches.at_once) == (7, 4)
    assert (config.responses.days, config.responses.store, config.responses.truncation) == (7, False, "auto")
    assert config.database.password_file == "/run/credentials/citadel-companion.service/database-password"
    assert "IPAddressAllow=localhost 10.0.0.35\n" in files[UNIT]
    kept = tmp_path / "credentials" / "database-password"
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == ("hidden-1", 0o600)
    assert not [path for path, text in files.items() if "hidden-1" in text], "a secret is in no release"
    assert digest(files) != digest(rendered(tmp_path))


def test_qdrant_is_let_out_to_and_its_key_is_in_no_release(tmp_path: Path) -> None:
    vectors = {"url": "http://10.0.0.30:6333", "collections": {"phi-3-mini": {"name": "phi3_embeddings", "size": 768}}}
    secret = {"companion_vectors_api_key": "hidden-2", "companion_credentials": str(tmp_path / "credentials")}
    files = rendered(tmp_path, companion_vectors=vectors, **secret)
    config = Config.model_validate(yaml.safe_load(files["config/companion.yml"]))
    assert config.vectors is not None
    assert config.vectors.api_key_file == "/run/credentials/citadel-companion.service/vectors-api-key"
    assert "IPAddressAllow=localhost 10.0.0.30\n" in files[UNIT]
    assert (tmp_path / "credentials" / "vectors-api-key").read_text() == "hidden-2"
    assert not [path for path, text in files.items() if "hidden-2" in text], "a secret is in no release"
