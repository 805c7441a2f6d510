"""The real gateway, replaced and rolled back on a real host while clients ask and stream: nothing lost, nothing cut."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from citadel.release.probe import Connection, StrangerError, listed
from tests.chaos.release.box.content import content
from tests.chaos.release.conftest import Box, Client
from tests.chaos.release.plays import Deployer

GATEWAY = "/opt/citadel/envs/gateway-111111111111"
MODELS = ("alpha", "beta")
PYTHON = '#!/bin/sh\nexport PYTHONPATH="$PYTHONPATH:/srv/packages"\nexec /usr/bin/python3 "$@"\n'
PLAY = """\
- hosts: llm_servers
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_role: {name: gateway}
      when: entry is not defined
    - ansible.builtin.include_role: {name: release, tasks_from: "{{ entry | default('main') }}"}
"""
STANZA = {
    "revision": "r1",
    "replicas": 1,
    "variant": "auto",
    "batched_tokens": 1024,
    "sequences": 16,
    "context": 4096,
    "kind": "chat",
    "tool_parser": "",
    "structured_output": True,
    "strengths": [],
    "vector_size": 0,
    "generation": {"max_tokens": 16, "temperature": 0.7, "top_p": 1.0, "bounds": {"temperature": [0, 2]}},
    "timeout": 60,
    "concurrent": 16,
    "cores": 1,
}
UNLIMITED = {
    "overall": {"requests_per_minute": 100000, "burst": 10000},
    "address": {"requests_per_minute": 100000, "concurrent": 1000},
    "classes": {"heavy": {}, "light": {}},
    "tiers": {"basic": {}, "default": {}, "enterprise": {}},
}


@pytest.fixture
def deployer(box: Box, tmp_path: Path) -> Deployer:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the gateway's packages of these tests are for another Python than the box has (3.11)")
    box.clear()
    box.run("sh", "-c", "id agent0 2>/dev/null || useradd --system agent0")
    box.run("sh", "-c", "install -d -o agent0 -g agent0 /var/log/citadel-llm /opt/citadel/keys")
    python = box.layout.inside(GATEWAY) / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return Deployer(box, tmp_path, PLAY)


def deploy(
    deployer: Deployer,
    models: dict[str, dict[str, Any]] | None = None,
    profile: str = "development",
    **settings: Any,
) -> str:
    models = models or {name: {} for name in MODELS}
    files = {p: text for p, text in content(models).items() if "gateway" not in p and not p.startswith("host/")}
    files.pop("units/citadel-recover.service")
    done = deployer.play(
        {},
        release_files="{{ model_files | combine(gateway_release_files) }}",
        model_files=files,
        gateway_instances=[
            {
                **{"name": name, "model": name, "url": f"http://127.0.0.1:{11400 + number}"},
                **{"hidden_size": 64, "revision": "r1"},
            }
            for number, name in enumerate(MODELS)
        ],
        gateway_stanzas={
            name: {**STANZA, "repository": f"somebody/{name}", "port": 11400 + number}
            for number, name in enumerate(MODELS)
        },
        gateway_environment=GATEWAY,
        gateway_releases="/opt/citadel/releases",
        gateway_keys_file="/opt/citadel/keys/gateway.json",
        gateway_load_times="/opt/citadel/state/load-seconds.json",
        gateway_logs="/var/log/citadel-llm",
        gateway_user="agent0",
        gateway_group="agent0",
        gateway_profile=profile,
        gateway_ports={"api": 8000, "management": 8002, "health": 8080, "export": 9090},
        gateway_limits=UNLIMITED,
        gateway_settings=settings,
        release_environments={"gateway": GATEWAY},
    )
    outcome = done.results.get("release : End proven, or as before", {}).get("outcome")
    assert outcome and outcome["good"], (outcome or {}).get("said", done.told[-3000:])
    return str(outcome["release"])


class Streams(Client):
    """Clients that stream numbers for four seconds, and miss none."""

    def _ask(self, model: str) -> None:
        while not self._over.is_set():
            try:
                connection = http.client.HTTPConnection(self._address, 8000, timeout=60)
                body = {
                    "model": model,
                    "stream": True,
                    "max_tokens": 40,
                    "messages": [{"role": "user", "content": "1"}],
                }
                connection.request(
                    "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: ")]
                assert response.status == 200 and events[-1] == "[DONE]"
                numbers = [json.loads(event)["choices"][0]["delta"]["content"] for event in events[:-1]]
                assert numbers == [f"{number} " for number in range(40)]
            except Exception as error:
                self.wrong.append(f"stream of {model}: {error!r}")
            self.asked += 1


def test_deploy_and_rollback_of_the_gateway_under_load(
    box: Box, deployer: Deployer, client: Callable[..., Client]
) -> None:
    first = deploy(deployer)
    with client(*MODELS, *MODELS) as asking, Streams(box.address, [*MODELS, *MODELS]) as streaming:
        second = deploy(deployer, health={"interval": 20.0})
        assert box.live == second != first
        rollback(deployer)
        assert box.live == first
    assert (asking.wrong, streaming.wrong) == ([], [])
    assert asking.asked > 50 and streaming.asked >= 4


def rollback(deployer: Deployer) -> None:
    deployer.play({}, "-e", "entry=rollback", release_environments={"gateway": GATEWAY})


def test_requests_wait_while_their_model_is_replaced(
    box: Box, deployer: Deployer, client: Callable[..., Client]
) -> None:
    deploy(deployer)
    with client(*MODELS) as asking, Streams(box.address, [*MODELS]) as streaming:
        deploy(deployer, {"alpha": {"load": "3"}, "beta": {}})
    assert (asking.wrong, streaming.wrong) == ([], [])


def test_a_gateway_that_knows_only_keys_is_proven_with_one_of_its_own(box: Box, deployer: Deployer) -> None:
    deploy(deployer, profile="production")
    with Connection(8000, host=box.address) as connection, pytest.raises(StrangerError, match="401"):
        listed(connection)
    keys = json.loads((box.layout.home / "keys/gateway.json").read_text())["keys"]
    assert [key["name"] for key in keys] == ["release-proof"]
    assert keys[0]["revoked"], "the key outlived its purpose"
    assert (box.layout.home / "keys/gateway.json").stat().st_uid != 0, "the gateway cannot change its own keys"
