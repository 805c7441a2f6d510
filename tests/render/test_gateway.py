"""What the role `gateway` renders: a configuration that the gateway itself accepts, and units that systemd accepts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel import catalogue
from citadel.release.services import services_of
from citadel_gateway.config import Bounds, Config, parse

ROOT = Path(__file__).resolve().parents[2]
# what nothing else decides
SERVER = {
    "trusted_proxies": ["10.0.0.0/8"],
    "connections_per_address": 300,
    "side_connections": 50,
    "max_held_bytes": 2**27,
}
MEASURED = {"hidden_size": 64, "revision": "r1"}
PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  roles: [gateway]
  tasks:
    - ansible.builtin.copy:
        content: "{{ gateway_release_files | to_json }}"
        dest: "{{ out }}"
        mode: "0644"
"""
CATALOGUE = yaml.safe_load((ROOT / "group_vars/all/models.yml").read_text())
DEFAULTS = CATALOGUE["citadel_models_defaults"]


def render(
    tmp_path: Path, profile: str = "development", settings: dict[str, Any] | None = None, **more: dict[str, Any]
) -> dict[str, str]:
    models = catalogue.complete({**CATALOGUE["citadel_models"], **more}, DEFAULTS)
    variables = {
        "gateway_stanzas": models,
        "gateway_instances": [
            {"name": name, "model": name, "url": f"http://127.0.0.1:{model['port']}", **MEASURED}
            for name, model in models.items()
        ],
        "gateway_environment": "/opt/citadel/envs/gateway-0123456789ab",
        "gateway_releases": "/opt/citadel/releases",
        "gateway_keys_file": "/opt/citadel/keys/gateway.json",
        "gateway_load_times": "/opt/citadel/state/load-seconds.json",
        "gateway_logs": "/var/log/citadel-llm",
        "gateway_user": "agent0",
        "gateway_group": "agent0",
        "gateway_profile": profile,
        "gateway_cors_origins": ["*"],
        "gateway_settings": {"server": SERVER},
        "gateway_ports": {"api": 8000, "management": 8002, "health": 8080, "export": 9090, "node": 9100},
        **(settings or {}),
        "out": str(tmp_path / "out.json"),
    }
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "variables.json").write_text(json.dumps(variables))
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", tmp_path / "play.yml", "-e", f"@{tmp_path}/variables.json"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files: dict[str, str] = json.loads((tmp_path / "out.json").read_text())
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return render(tmp_path_factory.mktemp("gateway"))


@pytest.fixture(scope="module")
def config(files: dict[str, str]) -> Config:
    return parse(files["config/gateway.yml"])


def test_it_is_as_it_was(files: dict[str, str]) -> None:
    """Whoever changes what the gateway is told changes the file beside this one, and sees in the diff what follows."""
    golden = Path(__file__).with_name("gateway.golden")
    assert files["config/gateway.yml"] == golden.read_text()


def test_the_gateway_accepts_it_and_knows_every_model(config: Config) -> None:
    assert list(config.models) == list(CATALOGUE["citadel_models"])
    for name, model in config.models.items():
        stanza = CATALOGUE["citadel_models"][name]
        assert (model.context, model.timeout, model.concurrency) == (
            stanza["context"],
            stanza["timeout"],
            stanza["concurrent"],
        )
    assert "tools" in config.models["hermes-2"].capabilities
    assert config.models["mixtral-8x7b"].limit_class == "heavy"


def test_what_is_said_of_the_server_stands_beside_what_follows(config: Config) -> None:
    assert {key: getattr(config.server, key) for key in SERVER} == SERVER
    assert config.server.drain == 300
    assert config.server.cors.origins == ["*"]


def test_bounds_and_fallbacks_are_the_catalogues(config: Config) -> None:
    for name, model in config.models.items():
        stanza = CATALOGUE["citadel_models"][name]
        assert (model.description, model.fallback) == (stanza["description"], stanza.get("fallback", []))
        # the catalogue shows every bound, and the gateway's own are the same, but for what a stanza says
        assert model.bounds == Bounds(**stanza.get("generation", {}).get("bounds", {}))
    assert set(DEFAULTS["generation"]["bounds"]) == set(Bounds.model_fields) - {"max_tokens"}


def test_a_stanza_has_bounds_of_its_own(tmp_path: Path) -> None:
    stanza = {**CATALOGUE["citadel_models"]["phi-3-mini"], "generation": {"bounds": {"n": 2, "guided": {"depth": 4}}}}
    bounds = (
        parse(render(tmp_path, "development", None, **{"phi-3-mini": stanza})["config/gateway.yml"])
        .models["phi-3-mini"]
        .bounds
    )
    assert (bounds.n, bounds.guided.depth, bounds.guided.choices, bounds.stop) == (2, 4, 512, 16)


def test_answers_are_kept_where_that_is_said(config: Config, tmp_path: Path) -> None:
    assert config.cache is None
    assert {model.revision for model in config.models.values()} == {"r1"}
    kept = parse(render(tmp_path, settings={"gateway_cache": {"policy": "always"}})["config/gateway.yml"]).cache
    assert kept
    assert kept.policy == "always"


def test_no_request_is_too_dear_for_the_budget(config: Config) -> None:
    assert config.admission.budget == 2 * (8 * 8 + 4 * 12 + 4 * 16 + 2 * 20 + 2 * 8)
    assert all(model.cost <= config.admission.budget for model in config.models.values())


def test_strangers_are_served_in_development_only(config: Config, tmp_path: Path) -> None:
    assert config.auth.anonymous.enabled
    assert not parse(render(tmp_path, "production")["config/gateway.yml"]).auth.anonymous.enabled


def test_in_production_few_ports_are_open_and_clients_come_by_tls(tmp_path: Path, files: dict[str, str]) -> None:
    pair = {"certificate": "/etc/tls/server.pem", "key": "/etc/tls/server.key"}
    closed = render(tmp_path, "production", {"gateway_side_address": "127.0.0.1", "gateway_tls": pair})
    ports = {
        name: re.findall(r"ListenStream=(.*)", text)[0] for name, text in closed.items() if name.endswith(".socket")
    }
    assert ports == {
        "units/citadel-gateway-api.socket": "8000",
        "units/citadel-gateway-export.socket": "9090",
        "units/citadel-gateway-health.socket": "127.0.0.1:8080",
        "units/citadel-gateway-management.socket": "127.0.0.1:8002",
        "units/citadel-gateway-management-socket.socket": "/run/citadel-gateway/management.sock",
        "units/citadel-gateway-inner.socket": "/run/citadel-gateway/inner.sock",
    }
    tls = parse(closed["config/gateway.yml"]).server.tls
    assert tls and tls.model_dump() == pair
    assert services_of(closed)[0].tls and not services_of(files)[0].tls


def test_a_fifth_model_is_one_stanza_more(tmp_path: Path) -> None:
    stanza = {"repository": "made/here", "port": 11410, "cores": 1, "context": 512, "kind": "embeddings"}
    stanza |= {"revision": "r1", "batched_tokens": 512, "sequences": 4}
    fifth = parse(render(tmp_path, fifth={**stanza, "timeout": 60, "concurrent": 8})["config/gateway.yml"]).models[
        "fifth"
    ]
    assert fifth.endpoints == ["embeddings"]
    assert fifth.vector_size == 64


def test_another_configuration_is_another_digest(files: dict[str, str], tmp_path: Path) -> None:
    def digest(rendered: dict[str, str]) -> str:
        unit = rendered["units/citadel-gateway@.service"]
        return next(line for line in unit.splitlines() if "CITADEL_DIGEST" in line)

    assert digest(files) != digest(render(tmp_path, "production"))


def test_what_gateways_share_is_told_and_its_password_is_in_no_release(files: dict[str, str], tmp_path: Path) -> None:
    shared = {
        "gateway_redis": {"address": "10.0.0.35:6379", "tls": {}},
        "gateway_redis_password": "hidden-1",
        "gateway_credentials": str(tmp_path / "credentials"),
        "gateway_shared_limits": True,
    }
    changed = render(tmp_path, settings=shared)
    config = parse(changed["config/gateway.yml"])
    assert config.redis is not None
    assert (config.redis.password_file, config.limits.shared) == ("redis-password", True)
    kept = tmp_path / "credentials" / "redis-password"
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == ("hidden-1", 0o600)
    assert f"LoadCredential=redis-password:{kept}\n" in changed["units/citadel-gateway@.service"]
    assert not [path for path, text in changed.items() if "hidden-1" in text]
    assert "LoadCredential" not in files["units/citadel-gateway@.service"]
    assert parse(files["config/gateway.yml"]).redis is None


def test_systemd_accepts_the_units(files: dict[str, str], tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine; the lab's hosts have it")
    for path, text in files.items():
        if path.startswith("units/"):
            # the environment and the user are the server's; what is judged here is the unit
            (tmp_path / Path(path).name).write_text(
                text.replace("/opt/citadel/envs/gateway-0123456789ab/bin/python", "/usr/bin/python3")
                .replace("User=agent0", "User=root")
                .replace("Group=agent0", "Group=root")
            )
    units = [str(path) for path in sorted(tmp_path.glob("citadel-*"))]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_caches_in_memory_are_in_the_gateways_own_tmp(tmp_path: Path) -> None:
    rendered = render(tmp_path, settings={"gateway_caches": {"/opt/cache/api_cache": "/tmp/api_cache"}})
    unit = rendered["units/citadel-gateway@.service"].split("[Service]")
    assert "RequiresMountsFor=/opt/cache/api_cache\n" in unit[0]
    assert "BindPaths=/opt/cache/api_cache:/tmp/api_cache\n" in unit[1]
