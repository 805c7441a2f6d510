"""Every question of every dashboard, asked of the lab's own Prometheus: none fails, and each has an answer."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.clients import Client
from tools.dashboards import FOLDER
from tools.dashboards.asking import panels, plain, query_range

BOARDS = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
QUESTIONS = [
    (f"{board['title']}: {panel['title']}", target)
    for board in BOARDS
    for panel in panels(board)
    for target in panel.get("targets", [])
]
# A part of a question, and why it may have no answer where everything is well.
MAY_BE_EMPTY = {
    "citadel_unit_oom_kills_total": "on cgroup v1 nobody tells of them",
    "node_pressure_": "a kernel without PSI does not tell it",
    "llm_upstream_errors_total": "begins with the first call that fails",
    "citadel_certificate_expires": "the lab's gateway speaks in the clear",
    "citadel_drift_items": "is there once somebody has looked for drift",
}
MODELS = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")


@pytest.fixture(scope="module")
def base(address: dict[str, str]) -> str:
    return f"http://{address['metrics-01']}:9090"


@pytest.fixture(scope="module", autouse=True)
def traffic(client: Client, base: str, eventually: Callable[..., None]) -> None:
    """What fills the figures: answers of each model and a mistake, until Prometheus has seen both twice."""
    begun = time.time()
    count = f"count(increase(llm_requests_total{{model=~'{'|'.join(MODELS)}', code='200'}}[1m]) > 0)"

    def seen() -> float:
        for model in MODELS:
            question = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
            client.ask(question)
            # a first token is one of a stream
            client.send({**question, "stream": True}).getresponse().read()
        client.ask({"model": MODELS[0], "messages": []})
        found = query_range(base, count, time.time(), time.time(), 15)
        return float(found[0]["values"][-1][1]) if found and time.time() - begun > 60 else 0.0

    eventually(seen, lambda models: models >= len(MODELS), seconds=180)


@pytest.mark.parametrize(("where", "target"), QUESTIONS, ids=[f"{where} {one['refId']}" for where, one in QUESTIONS])
def test_every_question_has_an_answer(where: str, target: dict[str, Any], base: str) -> None:
    now = time.time()
    found = query_range(base, plain(target["expr"], target.get("interval", "")), now - 600, now, 15)
    answers = [float(value) for series in found for _, value in series["values"]]
    if any(part in target["expr"] for part in MAY_BE_EMPTY):
        return
    assert any(math.isfinite(answer) for answer in answers), f"{where} shows nothing: {target['expr']}"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["title"])
def test_the_releases_are_marked(board: dict[str, Any], base: str) -> None:
    now = time.time()
    [query] = board["annotations"]["list"]
    found = query_range(base, plain(query["expr"]), now - 120, now, 60)
    assert found and found[0]["metric"]["release"]
    assert float(found[0]["values"][-1][1]) / 1000 < now


def test_every_list_to_choose_from_has_something(base: str) -> None:
    now = time.time()
    for label, matcher in (("citadel_host", "up"), ("model", "llm_model_health"), ("replica", "llm_replica_state")):
        found = query_range(base, f'count by ({label}) ({matcher}{{{label}!=""}})', now, now, 15)
        assert found, label
