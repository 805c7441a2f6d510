"""A second LLM server joins the estate. This comes last of all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from lab.__main__ import up
from lab.settings import Lab
from tests.lab.plays import play

MODEL = "phi-3-mini"  # the one that both carry
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def both(lab: Lab) -> Lab:
    """The lab with its second LLM server, as FLEET=1 makes it, and everything deployed to both."""
    before = os.environ.get("FLEET")
    os.environ["FLEET"] = "1"
    try:
        fleet = Lab.from_environment()
    finally:
        os.environ.update({} if before is None else {"FLEET": before})
        if before is None:
            del os.environ["FLEET"]
    up(fleet)
    play("site.yml")
    return fleet


def fleet_up(ask: Callable[..., Any], metrics: str) -> dict[str, str]:
    found = ask(f"http://{metrics}:9090/api/v1/query?query=up{{job=%22citadel-gateway%22}}")["data"]["result"]
    return {entry["metric"]["citadel_host"]: entry["value"][1] for entry in found}


def answers(host: Host) -> bool:
    """Whether its model says something, asked on the host itself, which needs no key while developing."""
    said = host.run("curl -s -m 60 -H 'Content-Type: application/json' -d %s %s", json.dumps(QUESTION), URL)
    return said.rc == 0 and '"completion_tokens"' in said.stdout


URL = "http://127.0.0.1:8000/v1/chat/completions"


def test_the_second_one_carries_what_its_inventory_says(
    both: Lab,
    on: Callable[[str], Host],
    address: dict[str, str],
    ask: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    other = on("llm-02")
    assert answers(other)
    units = other.check_output("systemctl list-units --plain --no-legend 'citadel-llm@*'").splitlines()
    assert [line.split()[0] for line in units] == [f"citadel-llm@{MODEL}.service"]
    assert answers(on("llm-01"))
    seen = {"llm-01": "1", "llm-02": "1"}
    eventually(lambda: fleet_up(ask, address["metrics-01"]), lambda found: found == seen, 60)
