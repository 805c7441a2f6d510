"""What a client sees on the ordinary way: the documents' checks, the endpoints, streaming, and what goes through."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
from collections.abc import Callable
from typing import Any

import brotli  # type: ignore[import-untyped]
import httpx
import pytest
import zstandard

from tests.gateway.harness import MESSAGES, Lab, events, running, text_of
from tests.gateway.simulator import Act

pytestmark = pytest.mark.anyio


class TestTheDocumentsChecks:
    """No key, no model, and only what the documents write."""

    async def test_health(self, lab: Lab) -> None:
        answer = await lab.client.get("/health")
        assert answer.status_code == 200
        assert answer.json()["status"] == "healthy"
        assert answer.json()["models"]["phi"]["status"] == "ready"

    async def test_models_with_their_capabilities(self) -> None:
        async with running(
            models={"phi": {"capabilities": ["streaming"]}, "hermes": {"capabilities": ["tools"]}}
        ) as lab:
            answer = (await lab.client.get("/v1/models")).json()
        assert {model["id"]: model["capabilities"] for model in answer["data"]} == {
            "phi": ["streaming"],
            "hermes": ["tools"],
        }

    async def test_a_chat_with_only_messages_and_max_tokens(self, lab: Lab) -> None:
        answer = await lab.client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 5})
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"]
        assert answer.headers["x-citadel-model"] == "phi"
        await lab.settled()


async def test_health_on_its_own_port(lab: Lab) -> None:
    async with httpx.AsyncClient(base_url=lab.url("health")) as client:
        assert (await client.get("/health")).status_code == 200
        detailed = (await client.get("/health/detailed")).json()
        assert detailed["models"]["phi"]["replicas"][0]["state"] == "ready"
        assert "llm_requests_total" in (await client.get("/metrics")).text
        assert (await client.get("/v1/models")).status_code == 404


async def test_the_body_goes_on_as_it_came(lab: Lab) -> None:
    sent = {
        "model": "phi",
        "messages": MESSAGES,
        "max_tokens": 3,
        "temperature": 0.25,
        "seed": 1234567890123456789,
        "logprobs": True,
        "response_format": {"type": "json_object"},
        "ünïcödé": "😀",
        "guided_regex": "[a-z]+",
    }
    content = json.dumps(sent, ensure_ascii=False, indent=3).encode()
    answer = await lab.client.post("/v1/chat/completions", content=content)
    assert answer.status_code == 200
    assert lab.simulators["phi"].seen[-1].body == sent
    assert lab.simulators["phi"].seen[-1].headers["content-length"] == str(len(content))


async def test_defaults_are_filled_in_where_the_request_says_nothing(lab: Lab) -> None:
    await lab.chat()
    body = lab.simulators["phi"].seen[-1].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("phi", 1024, 0.7)
    await lab.chat(temperature=None, max_tokens=None, model=None)
    body = lab.simulators["phi"].seen[-1].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("phi", 1024, 0.7)
    await lab.chat(max_completion_tokens=9)
    assert "max_tokens" not in lab.simulators["phi"].seen[-1].body


async def test_a_default_never_makes_a_long_prompt_impossible() -> None:
    async with running(models={"phi": {"context": 1200}}) as lab:
        await lab.chat(messages=[{"role": "user", "content": "word " * 150}])
        assert "max_tokens" not in lab.simulators["phi"].seen[-1].body


async def test_a_stream_carries_every_token_and_ends_with_done(lab: Lab) -> None:
    lab.simulators["phi"].default = Act(tokens=50, text="ä😀 ")
    stream = await lab.stream()
    assert text_of(stream) == "ä😀 " * 50
    assert stream[-1] == "[DONE]"
    await lab.settled()
    assert lab.metric("llm_tokens_processed_total", model="phi", type="completion") == 50


async def test_usage_is_in_a_stream_only_if_it_was_asked_for(lab: Lab) -> None:
    assert not any("usage" in event for event in (await lab.stream())[:-1])
    asked = await lab.stream(stream_options={"include_usage": True})
    assert asked[-2]["usage"]["completion_tokens"] == 5
    await lab.settled()
    assert all(record["usage_exact"] for record in lab.records())


async def test_completions_and_embeddings() -> None:
    async with running(models={"phi": {"endpoints": ["chat", "completions", "embeddings"]}}) as lab:
        completion = await lab.client.post("/v1/completions", json={"model": "phi", "prompt": "once"})
        assert completion.json()["choices"][0]["text"]
        embedding = await lab.client.post("/v1/embeddings", json={"model": "phi", "input": "once"})
        assert embedding.json()["data"][0]["embedding"]
        assert "max_tokens" not in lab.simulators["phi"].seen[-1].body
        async with lab.client.stream("POST", "/v1/completions", json={"prompt": "once", "stream": True}) as answer:
            assert events(await answer.aread())[-1] == "[DONE]"
        assert lab.metric("llm_requests_total", model="phi", endpoint="embeddings", status="success", code="200") == 1


async def test_every_answer_says_where_it_comes_from(lab: Lab) -> None:
    answer = await lab.chat(headers={"x-request-id": "my-own.id_1"})
    assert answer.headers["x-request-id"] == "my-own.id_1"
    assert lab.simulators["phi"].seen[-1].headers["x-request-id"] == "my-own.id_1"
    assert answer.headers["x-citadel-replica"] == "phi"
    assert float(answer.headers["x-citadel-queue-ms"]) >= 0
    assert float(answer.headers["x-citadel-upstream-ms"]) > 0
    bad = await lab.chat(headers={"x-request-id": "no good id"})
    assert bad.headers["x-request-id"].startswith("req-")
    refused = await lab.chat(model="nope")
    assert refused.headers["x-request-id"]


async def test_the_access_log_has_a_line_per_request_and_no_prompt(lab: Lab) -> None:
    answer = await lab.chat(messages=[{"role": "user", "content": "SECRET"}])
    await lab.settled()
    (record,) = lab.records()
    assert record["request_id"] == answer.headers["x-request-id"]
    assert (record["model"], record["status"], record["completion_tokens"]) == ("phi", 200, 5)
    assert "SECRET" not in (lab.folder / "access.log").read_text()


async def test_prompts_are_logged_only_if_asked() -> None:
    async with running({"logs": {"prompts": True}}) as lab:
        await lab.chat(messages=[{"role": "user", "content": "SECRET"}])
        await lab.settled()
        assert "SECRET" in lab.records()[0]["body"]


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("gzip, br, zstd", "zstd"),
        ("gzip;q=1, br;q=0.5", "gzip"),
        ("br", "br"),
        ("*", "zstd"),
        ("*, zstd;q=0", "br"),
        ("gzip;q=0", None),
        ("gzip; Q=0.0, identity", None),
        ("identity, gzip;q=0.5", None),
        ("deflate", None),
        ("gzip;q=no", None),
        ("", None),
    ],
)
async def test_long_answers_are_compressed_as_the_client_likes_it(lab: Lab, accepted: str, coding: str | None) -> None:
    lab.simulators["phi"].default = Act(tokens=2000)
    request = lab.client.build_request("POST", "/v1/chat/completions", json={"messages": MESSAGES})
    request.headers["accept-encoding"] = accepted
    answer = await lab.client.send(request, stream=True)
    raw = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers.get("content-encoding") == coding
    assert answer.headers["vary"] == "accept-encoding"
    decode: dict[str | None, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "br": brotli.decompress,
        "zstd": zstandard.ZstdDecompressor().decompress,
        None: bytes,
    }
    assert json.loads(decode[coding](raw))["usage"]["completion_tokens"] == 2000
    assert coding is None or len(raw) < 2000


async def test_streams_and_short_answers_are_never_compressed(lab: Lab) -> None:
    headers = {"accept-encoding": "gzip, br, zstd"}
    assert "content-encoding" not in (await lab.chat(headers=headers)).headers
    lab.simulators["phi"].default = Act(tokens=2000)
    body = {"messages": MESSAGES, "stream": True}
    async with lab.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as stream:
        assert "content-encoding" not in stream.headers
        assert stream.headers["content-type"].startswith("text/event-stream")
        await stream.aread()


async def test_cors() -> None:
    async with running({"server": {"cors": {"origins": ["https://ui.example"]}}}) as lab:
        asked = {"origin": "https://ui.example", "access-control-request-method": "POST"}
        answer = await lab.client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "https://ui.example"
        assert "access-control-allow-origin" in (await lab.chat(headers=asked)).headers
        other = await lab.chat(headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_security_headers(lab: Lab) -> None:
    for path in ("/v1/models", "/docs", "/openapi.json", "/nope", "/health", "/"):
        answer = await lab.client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["x-request-id"], path
        assert "server" not in answer.headers


async def test_the_root_and_a_slash_at_the_end(lab: Lab) -> None:
    greeting = (await lab.client.get("/")).json()
    assert greeting["message"]
    assert greeting["version"]
    assert (await lab.client.get("/health/")).json()["status"] == "healthy"


PRODUCTION: dict[str, Any] = {"profile": "production", "auth": {"anonymous": {"enabled": False}}}


@pytest.mark.parametrize(("over", "api"), [({}, 200), (PRODUCTION, 401)])
async def test_where_metrics_are_open(over: dict[str, Any], api: int) -> None:
    async with running(over) as lab:
        assert (await lab.client.get("/metrics")).status_code == api
        for listener in ("health", "export"):
            async with httpx.AsyncClient(base_url=lab.url(listener)) as client:
                assert "llm_requests_total" in (await client.get("/metrics")).text
                # what exports metrics does nothing else
                assert (await client.get("/health")).status_code == (200 if listener == "health" else 404)
                assert (await client.get("/v1/models")).status_code == 404
        _, key = lab.key(role="admin")
        assert (await lab.client.get("/metrics", headers=key)).status_code == 200


async def test_aliases_and_served_names() -> None:
    async with running(models={"phi": {"served_name": "microsoft/phi", "aliases": ["phi-latest"]}}) as lab:
        answer = await lab.chat(model="phi-latest")
        assert answer.status_code == 200
        assert lab.simulators["phi"].seen[-1].body["model"] == "microsoft/phi"
        assert (await lab.client.get("/v1/models/phi-latest")).json()["id"] == "phi"


async def test_the_openapi_document_is_true(lab: Lab) -> None:
    document = (await lab.client.get("/openapi.json")).json()
    assert "/v1/chat/completions" in document["paths"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = {"prompt": "x", "messages": MESSAGES, "input": "x"} if method == "post" else None
            answer = await lab.client.request(method.upper(), path.replace("{model_id}", "phi"), json=content)
            told = operation["responses"][str(answer.status_code)]
            assert answer.headers["content-type"].partition(";")[0] in told["content"], path
            assert answer.json().get("error", {}).get("code") != "unknown_url" if method == "post" else True
    async with lab.client.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as stream:
        told = document["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
        assert stream.headers["content-type"].partition(";")[0] in told


@pytest.mark.parametrize("listener", ["api", "management"])
async def test_the_page_about_it_needs_no_other_host(lab: Lab, listener: str) -> None:
    async with httpx.AsyncClient(base_url=lab.url(listener)) as client:
        page = await client.get("/docs")
        document = (await client.get("/openapi.json")).json()
    assert all(f"<code>{path}</code>" in page.text for path in document["paths"])
    assert all(f'<h3 id="{name}">' in page.text for name in document["components"]["schemas"])
    assert not re.search(r"(src|href|url|import)\W+(https?:)?//|<script", page.text)
    assert set(re.findall(r'href="#([^"]+)"', page.text)) <= set(document["components"]["schemas"])
    policy = page.headers["content-security-policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


async def test_the_openapi_document_admits_nothing_that_is_refused() -> None:
    """Its schemas, with the values at their edges."""
    models = {"phi": {"endpoints": ["chat", "completions", "embeddings"]}}
    dice = random.Random(3)
    async with running(models=models) as lab:
        document = (await lab.client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            for _ in range(150):
                body = fitting(schema, schemas, dice)
                body.pop("model", None)
                answer = await lab.client.post(path, json=body)
                assert answer.status_code == 200, (path, body, answer.text)


def fitting(schema: dict[str, Any], schemas: dict[str, Any], dice: random.Random) -> Any:
    if "$ref" in schema:
        return fitting(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas, dice)
    if "enum" in schema:
        return dice.choice(schema["enum"])
    if "anyOf" in schema:
        return fitting(dice.choice(schema["anyOf"]), schemas, dice)
    match schema.get("type"):
        case "object":
            required = schema.get("required", ())
            properties = schema.get("properties", {}).items()
            return {
                key: fitting(inner, schemas, dice)
                for key, inner in properties
                if key in required or dice.random() < 0.5
            }
        case "array":
            return [
                fitting(schema["items"], schemas, dice) for _ in range(schema.get("minItems", 0) + dice.randrange(2))
            ]
        case "string":
            return dice.choice(["", "user", "ü"]) or "x" * schema.get("minLength", 0)
        case "integer":
            return int(schema.get("minimum", -1)) + dice.choice([0, 1, 100])
        case "number":
            return dice.choice([schema.get("minimum", -1e9), schema.get("maximum", 1e9)])
        case "boolean":
            return dice.random() < 0.5
    return None
