"""A fifth model by one line, which makes vectors beside the four; then the way back. A client asks all along and sees
no error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from lab.settings import ROOT, Lab
from tests.lab.clients import Client, Twice
from tests.lab.plays import live, play, restarts

FIFTH = "nomic-embed-text"
FOUR = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")


@pytest.fixture(scope="module")
def asking(client: Client) -> Iterator[Twice]:
    """A client that asks all along, whatever these tests do."""
    with Twice(client, "phi-3-mini") as asking:
        yield asking


@pytest.fixture(scope="module")
def before(llm: Host) -> tuple[str, dict[str, str]]:
    return live(llm), restarts(llm, *FOUR)


@pytest.fixture(scope="module")
def fifth(before: tuple[str, dict[str, str]], asking: Twice) -> str:
    play("site.yml", lab_vectors=True)
    return FIFTH


def test_one_line_is_a_fifth_model(fifth: str, llm: Host, gateway: str, ask: Callable[..., Any]) -> None:
    assert llm.service(f"citadel-llm@{fifth}").is_running
    assert fifth in {model["id"] for model in ask(f"{gateway}/v1/models")["data"]}


def test_it_gives_vectors_that_tell_texts_apart(fifth: str, gateway: str, ask: Callable[..., Any]) -> None:
    texts = ["careful engineers", "careful engineers", "gentle letters"]
    answer = ask(f"{gateway}/v1/embeddings", {"model": "text-embedding-ada-002", "input": texts})
    one, same, other = (entry["embedding"] for entry in answer["data"])
    assert sum(a * b for a, b in zip(one, one, strict=True)) == pytest.approx(1, abs=0.02)
    assert sum(a * b for a, b in zip(one, same, strict=True)) > sum(a * b for a, b in zip(one, other, strict=True))


def test_its_vectors_are_as_long_as_the_contract_says(fifth: str, gateway: str, ask: Callable[..., Any]) -> None:
    (told,) = [model for model in ask(f"{gateway}/v1/models")["data"] if model["id"] == fifth]
    vector = ask(f"{gateway}/v1/embeddings", {"input": "no model is named"})["data"][0]["embedding"]
    assert len(vector) == told["vector_size"] == 768


def test_a_hundred_texts_at_once_and_no_more(fifth: str, client: Client) -> None:
    texts = [f"careful engineers measure {number} quiet machines" for number in range(100)]
    status, answer = client.ask({"model": fifth, "input": texts}, "/v1/embeddings")
    assert (status, len(answer["data"])) == (200, 100)
    status, answer = client.ask({"model": fifth, "input": [*texts, "one more"]}, "/v1/embeddings")
    assert (status, answer["error"]["param"]) == (422, "input")


def test_a_long_text_is_read_as_a_whole(fifth: str, client: Client) -> None:
    status, answer = client.ask({"model": fifth, "input": "letters " * 500}, "/v1/embeddings")
    assert (status, answer["usage"]["prompt_tokens"] >= 500) == (200, True)
    status, _ = client.ask({"model": fifth, "input": "letters " * 2100}, "/v1/embeddings")
    assert status == 400, "the lab gives it 2048 tokens"


@pytest.fixture
def qdrant(lab: Lab, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The stand-in, where inventory/lab says that it is."""
    words = [sys.executable, "-m", "lab.qdrant", "--folder", str(tmp_path / "qdrant")]
    # it finds what this process has found
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen([*words, "--host", lab.gateway, "--port", "16333"], env=paths) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_texts_are_stored_and_come_into_a_prompt(
    fifth: str, client: Client, qdrant: subprocess.Popen[bytes], eventually: Callable[..., None]
) -> None:
    texts = ["careful engineers measure quiet machines", "gentle letters arrive slowly"]
    points = {"points": [{"text": text} for text in texts]}
    path = "/v1/vectors/phi-3-mini"
    # the companion looks for it from time to time
    eventually(lambda: client.ask(points, path), lambda told: told[0] == 200, 90)
    status, found = client.ask({"text": texts[0], "threshold": -1}, f"{path}/search")
    assert (status, found["data"][0]["text"]) == (200, texts[0])
    question = {"model": "phi-3-mini", "messages": [{"role": "user", "content": texts[0]}], "max_tokens": 2}

    def asked() -> tuple[int, str]:
        connection = client.send(question, **{"x-citadel-knowledge": "phi-3-mini;limit=2;threshold=0"})
        try:
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers["x-citadel-knowledge"]
        finally:
            connection.close()

    eventually(asked, lambda told: told[0] == 200 and told[1].startswith("used"), 30)
    qdrant.kill()
    qdrant.wait()
    status, said = asked()
    assert status == 200
    assert said.startswith("unavailable")


def test_nobody_touched_the_other_four(fifth: str, before: tuple[str, dict[str, str]], llm: Host) -> None:
    assert restarts(llm, *FOUR) == before[1]


def test_rollback_returns_to_the_release_before(
    fifth: str, before: tuple[str, dict[str, str]], llm: Host, gateway: str, ask: Callable[..., Any]
) -> None:
    assert live(llm) != before[0]
    play("playbooks/rollback.yml")
    assert live(llm) == before[0]
    assert fifth not in {model["id"] for model in ask(f"{gateway}/v1/models")["data"]}
    assert not llm.service(f"citadel-llm@{fifth}").is_running
    assert restarts(llm, *FOUR) == before[1]


def test_the_client_saw_no_error(fifth: str, asking: Twice) -> None:
    assert asking.asked > 20
    assert asking.wrong == []
