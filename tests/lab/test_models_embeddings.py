"""An embeddings model, where the inventory adds one: the same unit, the same checks, vectors instead of words."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from tests.lab import loopback

INSTANCE = "tiny-embeddings"


@pytest.fixture
def port(llm: Host) -> int:
    options = llm.file(f"/opt/citadel/current/config/models/{INSTANCE}.yml")
    if not options.exists:
        pytest.skip(f"this lab has no {INSTANCE}: add its stanza to citadel_models, lab/tiny_models.py makes its files")
    return int(next(line for line in options.content_string.splitlines() if line.startswith("port:")).split()[1])


def test_gives_vectors_that_tell_texts_apart(llm: Host, port: int) -> None:
    texts = ["careful engineers", "careful engineers", "gentle letters"]
    _, answer = loopback.ask(llm, f"http://127.0.0.1:{port}/v1/embeddings", {"model": INSTANCE, "input": texts})
    one, same, other = (entry["embedding"] for entry in json.loads(answer)["data"])
    assert len(one) == 128
    assert sum(a * b for a, b in zip(one, one, strict=True)) == pytest.approx(1, abs=0.02)
    assert sum(a * b for a, b in zip(one, same, strict=True)) > sum(a * b for a, b in zip(one, other, strict=True))
