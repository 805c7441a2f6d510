"""Faults in the midst of a transaction with real vLLM; tests/chaos/release has the whole table, with stand-ins.

Afterwards the old release serves, a client that asked twice a second all along saw no error, and the next deployment
succeeds. They come last: a power cut spares no other test's
processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from lab.__main__ import up
from lab.machine import wait
from lab.settings import Lab
from tests.lab.clients import Client, Twice
from tests.lab.plays import JOURNAL, begin, forget, live, play, pull_the_plug, restarts, step, tried

CHANGED, OTHER = "phi-3-mini", "hermes-2"
RESTART = f"restart citadel-llm@{CHANGED}.service"
ENGINE = "citadel-activate.service"


def changes(**engine: Any) -> dict[str, Any]:
    """One model's options, over those that the lab gives to all."""
    lab = {"cores": 1, "context": 2048, "batched_tokens": 2048, "kv_cache_gib": 0.25}
    models = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")
    stanzas = {name: {**lab, "engine": {"enforce-eager": True}} for name in models}
    stanzas["openchat-3.5"] |= {"variant": "int8", "accept_accuracy_loss": True}
    stanzas[CHANGED]["engine"] = {"enforce-eager": True, **engine}
    return {"citadel_models_overrides": stanzas}


def at(process: subprocess.Popen[str], llm: Host, name: str) -> None:
    """Await the moment at which the transaction takes a step."""

    def there() -> bool:
        assert process.poll() is None, "the deployment ended before " + name + process.communicate()[0][-3000:]
        return step(llm) == name

    wait(there, 120, f"the transaction never came to {name}")


@pytest.fixture
def asking(client: Client) -> Iterator[list[Twice]]:
    with Twice(client, CHANGED) as one, Twice(client, OTHER) as two:
        yield [one, two]


def saw_nothing(asking: list[Twice]) -> None:
    assert all(one.asked >= 5 for one in asking)  # few where the model was away, since each waited for it
    assert [wrong for one in asking for wrong in one.wrong] == []


def test_a_model_that_cannot_load_is_taken_back(llm: Host, asking: list[Twice]) -> None:
    before, others = live(llm), restarts(llm, OTHER)
    told, status = tried("site.yml", **changes(quantization="awq"))
    assert status != 0
    # what the model said of it reaches whoever deploys
    assert "Cannot find the config file for awq" in told, told[-3000:]
    assert "serves as before" in told
    assert live(llm) == before
    assert restarts(llm, OTHER) == others
    saw_nothing(asking)


def test_controller_and_engine_killed_while_a_model_restarts(
    llm: Host, asking: list[Twice], eventually: Callable[..., None]
) -> None:
    before, others = live(llm), restarts(llm, OTHER)
    controller = begin("site.yml", **changes(**{"max-logprobs": 5}))
    at(controller, llm, RESTART)
    os.killpg(controller.pid, signal.SIGKILL)
    controller.communicate()
    llm.check_output(f"systemctl kill --signal=KILL --kill-whom=main {ENGINE}")
    # nobody comes to help: systemd itself runs the recovery
    eventually(lambda: llm.run(f"test -e {JOURNAL}").rc, lambda status: status == 1, 180)
    assert live(llm) == before
    # the next deployment succeeds, and the way back from it too
    play("site.yml", **changes(**{"max-logprobs": 5}))
    assert live(llm) != before
    play("playbooks/rollback.yml")
    assert live(llm) == before
    assert restarts(llm, OTHER) == others
    saw_nothing(asking)


def test_power_cut_while_a_model_restarts(
    lab: Lab, on: Callable[[str], Host], client: Client, llm: Host, eventually: Callable[..., None]
) -> None:
    before = live(llm)
    controller = begin("site.yml", **changes(**{"max-logprobs": 6}))
    at(controller, llm, RESTART)
    pull_the_plug(lab, "llm-01")
    assert up(lab)
    controller.communicate()
    assert controller.returncode != 0
    forget(lab, "llm-01")
    again = on("llm-01")
    assert live(again) == before
    assert again.run(f"test -e {JOURNAL}").rc == 1
    question = {"model": CHANGED, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}
    eventually(lambda: client.ask(question)[0], lambda status: status == 200, 300)
    with Twice(client, CHANGED) as one:
        play("site.yml")
    saw_nothing([one])
