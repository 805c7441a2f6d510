"""Every parameter of vLLM's request schemas, with real vLLM, while innocent clients ask without pause.

All values whole and streamed on one model, a sample of them on the others; `make fuzz` goes on as long as one likes.
"""

from __future__ import annotations

import pytest
from testinfra.host import Host

from tests.fuzz.matrix import Innocent, Target, fire_all, shots
from tests.lab.clients import Client

WHOLE = "phi-3-mini"
SAMPLED = {"mixtral-8x7b": 0.06, "hermes-2": 0.06, "openchat-3.5": 0.06}
GENERATE = ("chat", "completions")


def starts(llm: Host, model: str) -> str:
    """Which process of the unit it is, and how often systemd had to start it anew."""
    return str(llm.check_output(f"systemctl show -p NRestarts -p ExecMainPID citadel-llm@{model}.service"))


@pytest.fixture
def target(address: dict[str, str], key: str, client: Client) -> Target:
    assert client.ask({"messages": []})[0] == 400  # the key is known
    return Target(address["llm-01"], 8000, key)


@pytest.mark.parametrize(("model", "share"), [(WHOLE, 1.0), *SAMPLED.items()])
def test_no_request_hurts_another(llm: Host, target: Target, model: str, share: float) -> None:
    before = starts(llm, model)
    with Innocent(target, model) as innocent:
        count, wrong = fire_all(target, shots(model, GENERATE, share=share))
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)
    assert not innocent.wrong, "\n".join(innocent.wrong)
    assert innocent.asked > count / 20
    assert starts(llm, model) == before, "the engine was restarted"
