"""`make variants MEASURE=…` with the real vLLM: the text is read as bf16 and as int8, while four models serve."""

from __future__ import annotations

import json

from testinfra.host import Host

from tests.lab import plays

MODEL = "openchat-3.5"
STORED = f"/opt/models/{MODEL}/int8-*"


def test_vllm_measures_what_int8_costs_and_nothing_restarts(llm: Host) -> None:
    before, release = plays.restarts(llm, MODEL, "hermes-2"), plays.live(llm)
    told, status = plays.tried("playbooks/variants.yml", models_measure=MODEL)
    assert status == 0, told[-4000:]
    report = json.loads(llm.check_output("sh -c 'cat " + STORED + "/citadel-accuracy.json'"))
    assert report["reason"] == "" and report["tokens"] > 5000
    # it is certain of its own sentences and astonished by everything else, with eight bits as with sixteen
    assert report["agreement"] > 0.8
    assert report["perplexity"] > 1 and report["original"] > 1
    assert f"{MODEL} int8: perplexity " in told, "the figures are shown"
    assert llm.run("sh -c 'ls -d /opt/cache/engines/.measuring-*'").rc != 0, "it cleans up behind itself"
    assert (plays.restarts(llm, MODEL, "hermes-2"), plays.live(llm)) == (before, release)


def test_a_model_that_nobody_knows_is_refused_in_a_sentence() -> None:
    told, status = plays.tried("playbooks/variants.yml", models_measure="gpt-9")
    assert status != 0
    assert "the catalogue has no such model; it has mixtral-8x7b, hermes-2, openchat-3.5, phi-3-mini" in told
