"""A fifth model by one stanza, served beside the four; then the way back. A client asks all along and sees no error."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from lab.settings import ROOT

FIFTH = "tiny-embeddings"
STANZA = {
    "repository": "made/here",
    "revision": "1",
    "kind": "embeddings",
    "port": 11410,
    "cores": 1,
    "context": 512,
    "batched_tokens": 512,
    "sequences": 8,
    "concurrent": 8,
    "timeout": 60,
    "kv_cache_gib": 0.25,
    "engine": {"enforce-eager": True},
}
QUESTION = {"model": "phi-3-mini", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 8}
PAUSE = 3.0  # slow enough for what an address may ask in a minute


def play(playbook: str, *options: str) -> None:
    done = subprocess.run(
        ["ansible-playbook", playbook, "-i", "inventory/lab", *options],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def live(llm: Host) -> str:
    return str(llm.check_output("basename $(readlink /opt/citadel/current)"))


def restarts(llm: Host) -> dict[str, str]:
    """The processes of the four models: the same numbers later mean that nobody touched them."""
    models = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")
    return {name: llm.check_output("systemctl show citadel-llm@%s --property=MainPID", name) for name in models}


@pytest.fixture(scope="module")
def errors(gateway: str, ask: Callable[..., Any]) -> Iterator[list[str]]:
    """What a client that asks all along has seen go wrong."""
    seen: list[str] = []
    over = threading.Event()

    def client() -> None:
        while not over.wait(PAUSE):
            try:
                ask(f"{gateway}/v1/chat/completions", QUESTION)
            except (OSError, ValueError) as error:
                seen.append(f"{error}: {getattr(error, 'read', bytes)()!r}")

    thread = threading.Thread(target=client)
    thread.start()
    yield seen
    over.set()
    thread.join()


@pytest.fixture(scope="module")
def before(llm: Host) -> tuple[str, dict[str, str]]:
    return live(llm), restarts(llm)


@pytest.fixture(scope="module")
def fifth(before: tuple[str, dict[str, str]], errors: list[str]) -> str:
    play("site.yml", "-e", json.dumps({"citadel_models_local": {FIFTH: STANZA}}))
    return FIFTH


def test_one_stanza_is_a_fifth_model(fifth: str, llm: Host, gateway: str, ask: Callable[..., Any]) -> None:
    assert llm.service(f"citadel-llm@{fifth}").is_running
    assert fifth in {model["id"] for model in ask(f"{gateway}/v1/models")["data"]}


def test_it_gives_vectors_that_tell_texts_apart(fifth: str, gateway: str, ask: Callable[..., Any]) -> None:
    texts = ["careful engineers", "careful engineers", "gentle letters"]
    answer = ask(f"{gateway}/v1/embeddings", {"model": fifth, "input": texts})
    one, same, other = (entry["embedding"] for entry in answer["data"])
    assert sum(a * b for a, b in zip(one, one, strict=True)) == pytest.approx(1, abs=0.02)
    assert sum(a * b for a, b in zip(one, same, strict=True)) > sum(a * b for a, b in zip(one, other, strict=True))


def test_nobody_touched_the_other_four(fifth: str, before: tuple[str, dict[str, str]], llm: Host) -> None:
    assert restarts(llm) == before[1]


def test_rollback_returns_to_the_release_before(
    fifth: str, before: tuple[str, dict[str, str]], llm: Host, gateway: str, ask: Callable[..., Any]
) -> None:
    assert live(llm) != before[0]
    play("playbooks/rollback.yml")
    assert live(llm) == before[0]
    assert fifth not in {model["id"] for model in ask(f"{gateway}/v1/models")["data"]}
    assert not llm.service(f"citadel-llm@{fifth}").is_running
    assert restarts(llm) == before[1]


def test_the_client_saw_no_error(fifth: str, errors: list[str]) -> None:
    assert errors == []
