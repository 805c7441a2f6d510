"""A second LLM server joins the estate, and what becomes of each when the other is lost. They come last of all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from lab.__main__ import up
from lab.machine import wait
from lab.settings import Lab
from tests.lab.clients import Client
from tests.lab.plays import begin, forget, live, play, pull_the_plug, steps, tried

MODEL = "phi-3-mini"  # the one that both carry
REPLACE = "replace citadel-gateway@"
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
    found = ask(f"http://{metrics}:9090/api/v1/query?query=up{{job=%22citadel-llm-gateway%22}}")["data"]["result"]
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


COUNT = """
import json, sys, urllib.error, urllib.request
seen = []
for address in sys.argv[2:]:
    for _ in range(20):
        request = urllib.request.Request(f"http://{address}:8000/v1/chat/completions", sys.argv[1].encode())
        request.add_header("Content-Type", "application/json")
        try:
            seen.append(urllib.request.urlopen(request, timeout=30).status)
        except urllib.error.HTTPError as error:
            seen.append(error.code)
print(json.dumps(seen))
"""


def test_a_limit_holds_over_both(both: Lab, data: Host) -> None:
    """A stranger may ask such a model thirty times a minute, wherever it asks: Redis counts for both gateways."""
    servers = [both.address(host) for host in both.hosts if host.name in {"llm-01", "llm-02"}]
    body = json.dumps({**QUESTION, "max_tokens": 1})
    began = time.monotonic()
    seen = json.loads(data.check_output("python3 -c %s %s %s %s", COUNT, body, *servers))
    assert time.monotonic() - began < 60, "a minute that was over would have let more in"
    assert seen == [200] * 30 + [429] * 10


def test_one_that_is_lost_in_the_middle_does_not_stop_the_other(
    both: Lab, on: Callable[[str], Host], client: Client, eventually: Callable[..., None]
) -> None:
    first, other = on("llm-01"), on("llm-02")
    before = {"llm-01": live(first), "llm-02": live(other)}
    changed = {"gateway_settings": {"admission": {"ageing": 11.0}}}
    controller = begin("site.yml", **changed)

    def replacing() -> bool:
        return any(step.startswith(REPLACE) for step in steps(first))

    wait(lambda: controller.poll() is not None or replacing(), 240, f"it never came to {REPLACE}")
    assert controller.poll() is None, controller.communicate()[0][-3000:]
    pull_the_plug(both, "llm-01")
    forget(both, "llm-01")
    told, _ = controller.communicate()
    assert controller.returncode != 0
    assert "llm-01" in told
    assert "it can no longer be reached; what it was doing it ends by itself" in told
    # the other one was released all the same
    assert live(other) != before["llm-02"]
    assert answers(other)
    # whoever deploys now is told who is missing, and HOST= goes on without it
    told, status = tried("site.yml", **changed)
    assert status != 0
    assert "llm-01" in told and "cannot be reached" in told
    assert live(other) != before["llm-02"]
    # with its power back, it serves what it served before; the next deployment brings it along
    assert up(both)
    again = on("llm-01")
    eventually(lambda: again.run("test -e /opt/citadel/state/transaction.jsonl").rc, lambda status: status == 1, 180)
    assert live(again) == before["llm-01"]
    eventually(lambda: client.ask(QUESTION)[0], lambda status: status == 200, 300)
    play("site.yml", **changed)
    assert live(again) != before["llm-01"]
    assert answers(again) and answers(other)
