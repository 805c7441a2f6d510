"""What a request may ask: the gateway refuses what is absurd, names the parameter, and lets the usual through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.harness import Lab, code_of, running
from tests.gateway.parameters import BAD_SCHEMAS, PATHS, TREE, Case, cases

pytestmark = pytest.mark.anyio
MODELS: dict[str, dict[str, Any]] = {
    "phi": {"capabilities": ["tools"]},
    "embedder": {"endpoints": ["embeddings"]},
}


async def ask(lab: Lab, case: Case, *, stream: bool) -> str | None:
    """What is wrong with the answer."""
    body = case.body(stream=stream, model="embedder" if case.endpoint == "embeddings" else "phi")
    answer = await lab.client.post(PATHS[case.endpoint], content=json.dumps(body).encode())
    status = answer.status_code
    if case.outcome == "answered" and status != 200:
        return f"{case.name}: {status} {answer.text[:200]}"
    if case.outcome != "refused":
        return None if status == 200 or 400 <= status < 500 else f"{case.name}: {status}"
    if not case.by_gateway:  # the simulator takes anything
        return None
    if not 400 <= status < 500:
        return f"{case.name}: {status}"
    error = answer.json()["error"]
    if case.parameter.split(".", 1)[0] not in f"{error['param']} {error['message']}":
        return f"{case.name}: does not name the parameter: {error['message']}"
    return None


@pytest.mark.parametrize("endpoint", PATHS)
async def test_every_parameter_of_the_model_server(endpoint: str) -> None:
    async with running(models=MODELS) as lab:
        wrong = []
        for case in cases((endpoint,)):
            for stream in (False,) if endpoint == "embeddings" or case.parameter == "stream" else (False, True):
                complaint = await ask(lab, case, stream=stream)
                if complaint:
                    wrong.append(complaint)
        assert not wrong, "\n".join(wrong)
        assert all(replica.breaker.state == "closed" for replica in lab.gateway.fleet.replicas())
        await lab.settled()


@pytest.mark.parametrize("schema", BAD_SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
async def test_a_schema_that_breaks_engines_is_refused_wherever_it_stands(lab: Lab, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tag = {"type": "structural_tag", "structures": [{"begin": "<", "schema": schema, "end": ">"}], "triggers": ["<"]}
    for body in ({"response_format": form}, {"response_format": tag}, {"structured_outputs": {"json": schema}}):
        answer = await lab.chat(**body)
        assert (answer.status_code, code_of(answer)) in ((422, "invalid_schema"), (422, "out_of_range"))
    assert not lab.simulators["phi"].seen


async def test_a_schema_that_comes_back_inside_a_property_can_be_used(lab: Lab) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": TREE}}
    assert (await lab.chat(response_format=form)).status_code == 200


async def test_the_bounds_are_the_models() -> None:
    bounds = {"n": 2, "prompt_logprobs": 3, "beam_search": True, "stop": 1, "penalties": [-1, 1]}
    own = {"phi": {"bounds": {**bounds, "repetition_penalty": [1, 2]}}}
    async with running(models=own) as lab:
        good: list[dict[str, Any]] = [
            {"n": 2},
            {"prompt_logprobs": 3},
            {"use_beam_search": True, "n": 2},
            {"echo": True},
        ]
        for body in good:
            assert (await lab.chat(**body)).status_code == 200, body
        bad: list[dict[str, Any]] = [
            {"frequency_penalty": 1.5},
            {"repetition_penalty": 0.9},
            {"n": 3},
            {"best_of": 3},
            {"prompt_logprobs": 4},
            {"stop": ["a", "b"]},
        ]
        for body in bad:
            answer = await lab.chat(**body)
            assert (answer.status_code, code_of(answer)) == (422, "out_of_range")
            assert answer.json()["error"]["param"] == next(iter(body))


@pytest.mark.parametrize("body", [{"prompt_logprobs": 0}, {"prompt_logprobs": 1}, {"echo": True}])
async def test_probabilities_of_the_prompt_are_off_until_the_catalogue_offers_them(
    lab: Lab, body: dict[str, Any]
) -> None:
    answer = await lab.chat(**body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "not_offered", next(iter(body)))
    assert error["message"] == f"phi does not offer probabilities of the prompt; leave {next(iter(body))} out."
    told = {"prompt": "once", "echo": True}
    assert (await lab.client.post("/v1/completions", json=told)).status_code == 200
    assert (await lab.client.post("/v1/completions", json={**told, "logprobs": 1})).status_code == 422


class TestWhatIsReserved:
    """Every way to ask for more tokens is counted."""

    @pytest.mark.parametrize(
        ("path", "body", "tokens"),
        [
            ("completions", {"prompt": "x", "max_tokens": 900, "max_completion_tokens": 1}, 900),
            ("completions", {"prompt": "x", "max_output_tokens": 90}, 90),
            ("chat", {"max_completion_tokens": 70, "max_tokens": 900}, 70),
            ("chat", {"max_output_tokens": 80}, 80),
            ("chat", {"max_tokens": 10, "n": 4}, 40),
            ("chat", {"max_tokens": 10, "n": 2, "best_of": 4}, 40),
            ("completions", {"prompt": ["x", "y", "z"], "max_tokens": 10, "n": 2}, 60 + 2),
            ("completions", {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 10}, 20 + 4),
        ],
    )
    async def test_tokens(self, path: str, body: dict[str, Any], tokens: int) -> None:
        over = {"limits": {"tiers": {"default": {"tokens_per_minute": 100_000}}}}
        async with running(over) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = type(simulator.default)(usage=False, body=b'{"choices":[]}')
            asked = body if path == "completions" else {"messages": [{"role": "user", "content": "x"}], **body}
            assert (await lab.client.post(PATHS[path], json=asked)).status_code == 200
            await lab.settled()
            window = lab.gateway.limits._meters["principal", "address:127.0.0.1"].tokens
            assert window is not None
            assert window.total == tokens + 1  # and the prompt

    async def test_the_length_that_counts_is_the_one_the_model_gets(self, lab: Lab) -> None:
        await lab.chat(max_output_tokens=5)
        assert lab.simulators["phi"].seen[-1].body["max_tokens"] == 5
        await lab.client.post("/v1/completions", json={"prompt": "x", "max_completion_tokens": 6})
        assert lab.simulators["phi"].seen[-1].body["max_tokens"] == 6

    async def test_inputs_of_embeddings(self) -> None:
        over = {"limits": {"tiers": {"default": {"tokens_per_minute": 100_000}}}}
        async with running(over, models={"embedder": {"endpoints": ["embeddings"]}}) as lab:
            lab.simulators["embedder"].default = type(lab.simulators["embedder"].default)(body=b'{"data":[]}')
            for value, tokens in ((["x" * 40] * 10, 110), ([[1, 2, 3]] * 4, 12)):
                meters = lab.gateway.limits._meters
                before = meters["principal", "address:127.0.0.1"].tokens if meters else None
                used = before.total if before else 0
                assert (await lab.client.post("/v1/embeddings", json={"input": value})).status_code == 200
                await lab.settled()
                window = lab.gateway.limits._meters["principal", "address:127.0.0.1"].tokens
                assert window is not None
                assert window.total - used == tokens
