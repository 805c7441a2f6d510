"""Answers that are given again: to whom, for how long, and what never is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import unicodedata
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from citadel_gateway.answers import OVERHEAD, Answers, Entry, packed_of
from citadel_gateway.behind import name_of, read, written
from citadel_gateway.config import parse
from citadel_gateway.sameness import deterministic
from tests.gateway.harness import MESSAGES, Lab, code_of, events, running, text_of
from tests.gateway.redis_server import RedisServer, redis
from tests.gateway.simulator import Act, until

__all__ = ["redis"]

pytestmark = pytest.mark.anyio

ASKED = {"x-allow-cache": "true"}
CACHE: dict[str, Any] = {"cache": {"policy": "on_request"}}
MODELS: dict[str, dict[str, Any]] = {
    "phi": {"endpoints": ["chat", "completions", "embeddings"], "aliases": ["small"]},
    "mix": {},
}


def outcome(answer: httpx.Response) -> str | None:
    found: str | None = answer.headers.get("x-citadel-cache")
    return found


async def ask(lab: Lab, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    answer = await lab.chat({**ASKED, **(headers or {})}, **{"model": "phi", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer


async def twice(lab: Lab, headers: dict[str, str] | None = None, **body: Any) -> list[str | None]:
    return [outcome(await ask(lab, headers, **body)) for _ in range(2)]


async def post(lab: Lab, body: bytes, **headers: str) -> httpx.Response:
    return await lab.client.post("/v1/chat/completions", content=body, headers={**ASKED, **headers})


def asked(lab: Lab, name: str = "phi") -> int:
    return len(lab.simulators[name].seen)


async def test_the_same_again_costs_a_request_and_no_tokens() -> None:
    limits = {"limits": {"tiers": {"default": {"requests_per_minute": 100, "tokens_per_minute": 100_000}}}}
    async with running({**CACHE, **limits}) as lab:
        first = await ask(lab)
        before = await ask(lab, messages=[{"role": "user", "content": "other"}])
        again = await ask(lab)
        assert (outcome(first), outcome(again)) == ("miss", "hit")
        assert (first.content, first.headers["content-type"]) == (again.content, again.headers["content-type"])
        assert "age" not in first.headers
        assert again.headers["age"] == "0"
        assert asked(lab) == 2
        left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in (before, again)]
        assert left[0] - left[1] == 1
        await lab.settled()
        [meter] = [meter for key, meter in lab.gateway.limits._meters.items() if key[0] == "principal"]
        assert meter.tokens is not None
        assert meter.tokens.total == 2 * 12
        records = lab.records()
        assert [(one["cache"], one["charged_tokens"], one["prompt_tokens"]) for one in records] == [
            ("miss", 12, 7),
            ("miss", 12, 7),
            ("hit", 0, 0),
        ]
        assert lab.metric("llm_cache_hits_total", model="phi") == 1
        assert lab.metric("llm_cache_misses_total", model="phi") == 2
        assert lab.metric("llm_tokens_processed_total", model="phi", type="prompt") == 14
        assert lab.metric("llm_cache_bytes", model="phi") == lab.gateway.cache.answers.size > 0  # type: ignore[union-attr]


async def test_only_who_asks_is_given_it() -> None:
    async with running(CACHE) as lab:
        await ask(lab)
        answer = await lab.chat(model="phi", temperature=0)
        assert outcome(answer) is None
        assert asked(lab) == 2
        assert lab.records()[-1]["cache"] is None


@pytest.mark.parametrize(
    ("everywhere", "model", "expected"),
    [("always", None, "hit"), ("never", None, None), ("on_request", "always", "hit"), ("always", "never", None)],
)
async def test_the_policy_of_a_model_goes_before_that_of_all(
    everywhere: str, model: str | None, expected: str | None
) -> None:
    async with running({"cache": {"policy": everywhere}}, models={"phi": {"cache": model}}) as lab:
        headers = ASKED if expected is None else None
        answers = [await lab.chat(headers, temperature=0) for _ in range(2)]
        assert outcome(answers[1]) == expected


async def test_what_is_left_to_chance_is_never_kept() -> None:
    async with running(CACHE) as lab:
        assert await twice(lab, temperature=0.7) == ["bypass"] * 2
        assert await twice(lab, temperature=None) == ["bypass"] * 2  # the model's default
        assert await twice(lab, n=2) == ["bypass"] * 2
        assert await twice(lab, temperature=0.7, seed=-1) == ["bypass"] * 2
        assert await twice(lab, temperature=0.7, seed=1) == ["miss", "hit"]
        assert [outcome(await ask(lab, temperature=0.7, seed=2)), outcome(await ask(lab))] == ["miss", "miss"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1, "best_of": None}, True),
        ({"temperature": 0, "best_of": 2}, False),
        ({"temperature": 0, "use_beam_search": True}, False),
        ({"temperature": "0"}, False),
        ({"seed": "1"}, False),
        ({"seed": 0, "temperature": 1}, True),
        ({}, False),
    ],
)
def test_what_is_deterministic(body: dict[str, Any], expected: bool) -> None:
    assert deterministic(body) is expected


async def test_embeddings_and_completions() -> None:
    async with running(CACHE, models=MODELS) as lab:
        for path, body in (
            ("/v1/embeddings", {"input": ["a", "b"]}),
            ("/v1/completions", {"prompt": "a", "temperature": 0}),
        ):
            answers = [await lab.client.post(path, json={"model": "phi", **body}, headers=ASKED) for _ in range(2)]
            assert [outcome(answer) for answer in answers] == ["miss", "hit"]
            assert answers[0].json() == answers[1].json()


async def test_no_client_is_given_the_answer_to_another() -> None:
    async with running(CACHE) as lab:
        _, one = lab.key()
        _, other = lab.key()
        lab.simulators["phi"].script.append(Act(text="poison "))
        poisoned = await ask(lab, one)
        assert outcome(await ask(lab, other)) == "miss"
        assert outcome(await ask(lab)) == "miss"
        assert "poison" in (await ask(lab, one)).text
        assert "poison" not in (await ask(lab, other)).text
        assert poisoned.json()["choices"][0]["message"]["content"].startswith("poison")


async def test_together_neither_waits_for_the_other() -> None:
    """Two principals, the same body, at the same time."""
    async with running(CACHE) as lab:
        headers = [lab.key()[1] for _ in range(2)]
        lab.simulators["phi"].gate.clear()
        tasks = [asyncio.create_task(ask(lab, one)) for one in headers]
        await until(lambda: asked(lab) == 2)
        lab.simulators["phi"].gate.set()
        assert [outcome(answer) for answer in await asyncio.gather(*tasks)] == ["miss", "miss"]


async def test_a_model_has_answers_of_its_own_whatever_it_is_called() -> None:
    async with running(CACHE, models=MODELS) as lab:
        assert await twice(lab) == ["miss", "hit"]
        assert outcome(await ask(lab, model="small")) == "hit"
        assert outcome(await ask(lab, model="mix")) == "miss"


async def test_another_revision_of_a_model_answers_itself() -> None:
    async with running(CACHE) as lab:
        assert await twice(lab) == ["miss", "hit"]
        assert lab.reconfigure({"models": {"phi": {"revision": "b2"}}}) is None
        assert await twice(lab) == ["miss", "hit"]
        assert lab.reconfigure({"models": {"phi": {"defaults": {"max_tokens": 9}}}}) is None
        assert await twice(lab) == ["miss", "hit"]


async def test_what_waited_while_the_model_was_started_anew_is_not_kept() -> None:
    """It may have come back with other files, and the deployment's word of it comes later."""
    async with running(CACHE) as lab:
        await lab.simulators["phi"].stop(abruptly=True)
        task = asyncio.create_task(ask(lab))
        await until(lambda: lab.gateway.admission.waiting == 1)
        await lab.simulators["phi"].start()
        assert outcome(await task) == "miss"
        assert await twice(lab) == ["miss", "hit"]


class TestKeys:
    async def test_how_it_is_written_does_not_matter(self) -> None:
        async with running(CACHE) as lab:
            plain = b'{"model":"phi","temperature":0,"messages":[{"role":"user","content":"hello"}]}'
            said = b'"messages": [ {"role": "user", "content": "hell\\u006f"} ]'
            other = b'{ "user": "x",\n %b, "temperature": 0,"model":"phi"}' % said
            assert outcome(await post(lab, plain)) == "miss"
            assert outcome(await post(lab, other)) == "hit"

    async def test_what_a_model_reads_in_its_order_is_kept_in_its_order(self) -> None:
        async with running(CACHE) as lab:
            properties: list[dict[str, Any]] = [{"a": {"type": "string"}, "b": {"type": "string"}}]
            properties.append(dict(reversed(properties[0].items())))
            answers = []
            for one in properties:
                schema = {"name": "x", "schema": {"type": "object", "properties": one}}
                answers.append(await ask(lab, response_format={"type": "json_schema", "json_schema": schema}))
            assert [outcome(answer) for answer in answers] == ["miss", "miss"]

    async def test_a_key_that_stands_twice_counts_as_the_model_reads_it(self) -> None:
        async with running(CACHE) as lab:
            one = b'{"model":"phi","temperature":0,"messages":[{"role":"user","content":"a"}],'
            last = b'"messages":[{"role":"user","content":"b"}]}'
            assert outcome(await post(lab, one + last)) == "miss"
            assert outcome(await ask(lab, messages=[{"role": "user", "content": "b"}])) == "hit"
            assert outcome(await ask(lab, messages=[{"role": "user", "content": "a"}])) == "miss"
            assert outcome(await post(lab, one[:-1] + b',"temperature":0.9}')) == "bypass"

    async def test_texts_that_look_alike_are_two(self) -> None:
        async with running(CACHE) as lab:
            for form in ("NFC", "NFD"):
                text = unicodedata.normalize(form, "\u00e9")
                assert outcome(await ask(lab, messages=[{"role": "user", "content": text}])) == "miss"

    async def test_numbers_that_only_we_round_are_two(self) -> None:
        async with running(CACHE) as lab:
            for number in (2**64, 2**64 + 1):
                assert outcome(await ask(lab, metadata={"x": 1}, vllm_xargs={"x": number})) == "miss"

    async def test_a_huge_body_is_passed_over(self) -> None:
        async with running(CACHE, models={"phi": {"context": 1_000_000}}) as lab:
            body = [{"role": "user", "content": "x" * 1_100_000}]
            assert await twice(lab, messages=body) == ["bypass"] * 2


class TestStreams:
    async def test_they_are_answered_as_streams(self) -> None:
        async with running(CACHE) as lab:
            found = []
            for _ in range(2):
                answer = await ask(lab, stream=True)
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                found.append((outcome(answer), text_of(events(answer.content)), events(answer.content)[-1]))
            assert found == [("miss", "word " * 5, "[DONE]"), ("hit", "word " * 5, "[DONE]")]
            assert outcome(await ask(lab)) == "miss"
            await lab.settled()
            assert [one["charged_tokens"] for one in lab.records()] == [12, 0, 12]

    async def test_usage_goes_to_who_wants_it(self) -> None:
        async with running(CACHE) as lab:
            usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
            for more in ({}, usage, {}, usage, {"stream_options": {"include_usage": False}}):
                answer = await ask(lab, stream=True, **more)
                assert (b'"usage"' in answer.content) is (more == usage)
            assert [one["cache"] for one in lab.records()] == ["miss", "miss", "hit", "hit", "hit"]

    @pytest.mark.parametrize("then", ["reset", "close", "error_event", "no_done", "half_event", "garbage"])
    async def test_one_that_breaks_is_not_kept(self, then: str) -> None:
        async with running(CACHE) as lab:
            lab.simulators["phi"].script.append(Act(stop_after=3, then=then))
            await lab.stream(ASKED, model="phi", temperature=0)
            await lab.settled()
            assert outcome(await ask(lab, stream=True)) == "miss"


class TestNeverKept:
    @pytest.mark.parametrize("act", [Act(status=400, body=b'{"error": {"message": "no"}}'), Act(status=500)])
    async def test_errors(self, act: Act) -> None:
        async with running(CACHE) as lab:
            lab.simulators["phi"].script.extend([act] * 3)
            answer = await lab.chat(ASKED, temperature=0)
            assert answer.status_code >= 400
            assert outcome(answer) == "miss"
            lab.simulators["phi"].script.clear()
            assert outcome(await ask(lab)) == "miss"

    @pytest.mark.parametrize("reason", ["abort", "error", None])
    async def test_answers_that_were_given_up(self, reason: str | None) -> None:
        async with running(CACHE) as lab:
            choice = {"index": 0, "message": {"content": '"finish_reason": "stop"'}, "finish_reason": reason}
            lab.simulators["phi"].default = Act(body=json.dumps({"choices": [choice]}).encode())
            assert await twice(lab) == ["miss", "miss"]

    async def test_what_is_not_json(self) -> None:
        """Embeddings may be asked for as bytes."""
        async with running(CACHE, models=MODELS) as lab:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 4\r\n\r\n"
            lab.simulators["phi"].default = Act(raw=head + b"{\x00\x01}")
            body = {"model": "phi", "input": "a", "encoding_format": "bytes"}
            answers = [await lab.client.post("/v1/embeddings", json=body, headers=ASKED) for _ in range(2)]
            assert [outcome(answer) for answer in answers] == ["miss", "miss"]
            assert answers[1].headers["content-type"] == "application/octet-stream"

    async def test_long_answers(self) -> None:
        async with running({"cache": {"answer_bytes": 2000}}) as lab:
            assert await twice(lab) == ["miss", "hit"]
            lab.simulators["phi"].default = Act(tokens=1000)
            assert await twice(lab, seed=1) == ["miss", "miss"]
            assert await twice(lab, seed=1, stream=True) == ["miss", "miss"]

    async def test_what_another_model_has_answered(self) -> None:
        models: dict[str, dict[str, Any]] = {"phi": {"fallback": ["mix"], "hold": 0.1}, "mix": {}}
        async with running({**CACHE, "routing": {"fallback": "always"}}, models=models) as lab:
            await lab.simulators["phi"].stop(abruptly=True)
            answer = await ask(lab)
            assert answer.headers["x-citadel-model"] == "mix"
            assert outcome(await ask(lab)) == "miss"

    async def test_what_the_client_says(self) -> None:
        async with running(CACHE) as lab:
            assert await twice(lab, {"cache-control": "no-store"}) == ["bypass"] * 2
            lab.simulators["phi"].script.append(Act(text="old "))
            assert "old" in (await ask(lab)).text
            assert outcome(await ask(lab, {"cache-control": "No-Cache"})) == "miss"
            assert "old" not in (await ask(lab)).text, "what was asked anew is kept"
            assert outcome(await ask(lab, {"cache-control": "max-age=0"})) == "miss"
            assert outcome(await ask(lab, {"cache-control": "max-age=60"})) == "hit"


class TestTogether:
    async def test_what_is_under_way_is_bounded_too(self) -> None:
        sizes = {"cache": {"memory_bytes": 8000, "answer_bytes": 4000}}
        async with running(sizes) as lab:
            cache = lab.gateway.cache
            assert cache is not None
            lab.simulators["phi"].gate.clear()
            tasks = [asyncio.create_task(ask(lab, seed=seed)) for seed in range(5)]
            await until(lambda: asked(lab) == 5)
            assert (cache._awaited, len(cache._flights)) == (2, 2)
            lab.simulators["phi"].gate.set()
            await asyncio.gather(*tasks)
            assert cache._awaited == 0
            assert len(cache.answers) == 2

    async def test_equal_requests_ask_the_model_once(self) -> None:
        async with running(CACHE) as lab:
            lab.simulators["phi"].gate.clear()
            tasks = [asyncio.create_task(ask(lab)) for _ in range(10)]
            await until(lambda: lab.metric("llm_cache_waits_total", model="phi") == 9)
            lab.simulators["phi"].gate.set()
            answers = await asyncio.gather(*tasks)
            assert sorted(str(outcome(answer)) for answer in answers) == ["hit"] * 9 + ["miss"]
            assert len({answer.content for answer in answers}) == 1
            assert asked(lab) == 1
            await lab.settled()

    async def test_where_the_first_is_left_by_its_client_another_leads(self) -> None:
        async with running(CACHE) as lab:
            lab.simulators["phi"].gate.clear()
            leader = asyncio.create_task(ask(lab))
            await until(lambda: asked(lab) == 1)
            others = [asyncio.create_task(ask(lab)) for _ in range(5)]
            await until(lambda: lab.metric("llm_cache_waits_total", model="phi") == 5)
            leader.cancel()
            await until(lambda: asked(lab) == 2)
            lab.simulators["phi"].gate.set()
            answers = await asyncio.gather(*others)
            assert sorted(str(outcome(answer)) for answer in answers) == ["hit"] * 4 + ["miss"]
            assert asked(lab) == 2
            await lab.settled()

    async def test_one_that_waits_and_leaves_hurts_nobody(self) -> None:
        async with running(CACHE) as lab:
            lab.simulators["phi"].gate.clear()
            tasks = [asyncio.create_task(ask(lab)) for _ in range(3)]
            await until(lambda: lab.metric("llm_cache_waits_total", model="phi") == 2)
            tasks[-1].cancel()
            await until(lambda: len(lab.gateway.walk.running) == 2)
            lab.simulators["phi"].gate.set()
            await asyncio.gather(*tasks[:2])
            await lab.settled()

    async def test_where_the_first_fails_the_others_go_by_themselves(self) -> None:
        async with running(CACHE) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            simulator.script.append(Act(status=400, body=b'{"error": {"message": "no"}}'))
            tasks = [asyncio.create_task(lab.chat(ASKED, temperature=0)) for _ in range(4)]
            await until(lambda: lab.metric("llm_cache_waits_total", model="phi") == 3)
            simulator.gate.set()
            answers = await asyncio.gather(*tasks)
            assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 400]
            assert asked(lab) == 4
            await lab.settled()

    async def test_none_waits_beyond_its_own_deadline(self) -> None:
        async with running(CACHE, models={"phi": {"concurrency": 1}}) as lab:
            lab.simulators["phi"].gate.clear()
            leader = asyncio.create_task(ask(lab))
            await until(lambda: asked(lab) == 1)
            late = await lab.chat({**ASKED, "x-request-timeout": "0.2"}, model="phi", temperature=0)
            assert (late.status_code, code_of(late)) == (503, "queue_timeout")
            lab.simulators["phi"].gate.set()
            await leader
            await lab.settled()

    async def test_whoever_is_more_urgent_goes_at_once(self) -> None:
        async with running(CACHE) as lab:
            lab.simulators["phi"].gate.clear()
            leader = asyncio.create_task(ask(lab, {"x-priority": "low"}))
            await until(lambda: asked(lab) == 1)
            urgent = asyncio.create_task(ask(lab, {"x-priority": "high"}))
            await until(lambda: asked(lab) == 2)
            lab.simulators["phi"].gate.set()
            assert [outcome(await task) for task in (leader, urgent)] == ["miss", "miss"]

    async def test_nobody_waits_for_a_client_that_does_not_read(self) -> None:
        async with running({**CACHE, "server": {"write_timeout": 20.0}}) as lab:
            lab.simulators["phi"].default = Act(tokens=400, text="w" * 100_000)
            async with lab.raw() as slow:
                body = {"model": "phi", "temperature": 0, "stream": True, "messages": MESSAGES}
                await slow.post(body, headers="x-allow-cache: true\r\n")
                await until(lambda: any(one.write_blocked for one in lab.gateway.walk.running))
                lab.simulators["phi"].default = Act()
                begun = time.monotonic()
                assert outcome(await ask(lab, stream=True)) == "miss"
                assert time.monotonic() - begun < 10, "long before the slow one is cut off"
            await lab.settled()


async def test_it_answers_while_the_model_is_away() -> None:
    async with running(CACHE) as lab:
        assert await twice(lab) == ["miss", "hit"]
        await lab.simulators["phi"].stop(abruptly=True)
        assert outcome(await ask(lab)) == "hit"


async def test_a_revoked_key_is_given_nothing() -> None:
    async with running(CACHE) as lab:
        ident, headers = lab.key()
        assert await twice(lab, headers) == ["miss", "hit"]
        lab.gateway.keys.revoke(ident)
        lab.gateway.keys_changed()
        assert (await lab.chat({**ASKED, **headers}, temperature=0)).status_code == 401


async def test_limits_of_requests_hold() -> None:
    async with running({**CACHE, "limits": {"tiers": {"default": {"requests_per_minute": 3}}}}) as lab:
        statuses = [(await lab.chat(ASKED, temperature=0)).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]


async def test_long_answers_are_packed_once_and_read_by_everybody() -> None:
    async with running(CACHE) as lab:
        lab.simulators["phi"].default = Act(tokens=2000)
        first = await ask(lab)
        cache = lab.gateway.cache
        assert cache is not None
        assert cache.answers.size < len(first.content) / 4
        found = []
        for coding in ("zstd", "gzip", "identity", "zstd;q=0, gzip"):
            answer = await ask(lab, {"accept-encoding": coding})
            assert answer.content == first.content
            assert answer.headers["vary"] == "accept-encoding"
            found.append(answer.headers.get("content-encoding"))
        assert found == ["zstd", None, None, None]
        assert asked(lab) == 1
        lab.simulators["phi"].default = Act(tokens=50_000)  # packed in a thread
        long = await ask(lab, seed=1)
        await until(lambda: len(cache.answers) == 2)
        assert (await ask(lab, seed=1)).content == long.content
        assert asked(lab) == 2


class TestManagement:
    async def test_clearing(self) -> None:
        async with running(CACHE, models=MODELS) as lab:
            _, admin = lab.key(role="admin")
            for name in ("phi", "mix"):
                assert await twice(lab, model=name) == ["miss", "hit"]
            clear = f"{lab.url('management')}/management/cache/clear"
            assert (await lab.client.post(clear)).status_code == 401
            answer = await lab.client.post(clear, headers=admin, params={"model": "phi"})
            assert answer.json() == {"cleared": 1}
            assert [outcome(await ask(lab, model=name)) for name in ("phi", "mix")] == ["miss", "hit"]
            assert (await lab.client.post(clear, headers=admin)).json() == {"cleared": 2}
            unknown = await lab.client.post(clear, headers=admin, params={"model": "x"})
            assert (unknown.status_code, code_of(unknown)) == (404, "model_not_found")
            told = [(one["target"], one["answers"]) for one in lab.records("audit") if one["event"] == "cache_clear"]
            assert told == [("phi", 1), ("all", 2)]
            shown = await lab.client.get(f"{lab.url('management')}/management/cache", headers=admin)
            assert (shown.json()["enabled"], shown.json()["answers"], shown.json()["bytes"]) == (True, 0, 0)

    async def test_what_is_under_way_is_not_kept_either(self) -> None:
        async with running(CACHE) as lab:
            lab.simulators["phi"].gate.clear()
            task = asyncio.create_task(ask(lab))
            await until(lambda: asked(lab) == 1)
            assert lab.gateway.cache is not None
            await lab.gateway.cache.clear()
            lab.simulators["phi"].gate.set()
            await task
            assert outcome(await ask(lab)) == "miss"

    async def test_a_reload_changes_the_settings(self) -> None:
        async with running() as lab:
            assert await twice(lab) == [None, None]
            assert lab.reconfigure(CACHE) is None
            assert await twice(lab) == ["miss", "hit"]
            assert lab.reconfigure({"cache": {"memory_bytes": 1, "answer_bytes": 1000}}) is None
            assert await twice(lab) == ["miss", "miss"]
            assert lab.reconfigure({"cache": {"memory_bytes": 10**7, "ttl": {"chat": 0.05}}}) is None
            assert await twice(lab, seed=3) == ["miss", "hit"]
            cache = lab.gateway.cache
            assert cache is not None
            await until(lambda: all(time.monotonic() >= one.until for one in cache.answers._entries.values()))
            assert outcome(await ask(lab, seed=3)) == "miss"
            lab.config.pop("cache")
            assert lab.reconfigure({}) is None
            assert await twice(lab) == [None, None]
            assert not lab.gateway.steps


class TestAnswers:
    def entry(self, key: int, owner: str = "a", size: int = 300, age: float = 0.0) -> Entry:
        return Entry(b"%d" % key, owner, "phi", b"x" * size, stream=False, ttl=60.0, age=age)

    def test_what_was_not_used_for_longest_makes_room(self) -> None:
        gone: list[str] = []
        answers = Answers(4 * 1000, gone.append)
        for key in range(4):
            answers.put(self.entry(key, owner=str(key)))
        assert answers.get(b"0")
        answers.put(self.entry(4, owner="4"))
        assert [key for key in range(5) if answers.get(b"%d" % key)] == [0, 2, 3, 4]
        assert (answers.size, gone) == (4000, ["phi"])

    def test_nobody_takes_more_than_a_share(self) -> None:
        answers = Answers(4 * 1000, lambda _: None)
        answers.put(self.entry(0, owner="other"))
        for key in range(1, 100):
            answers.put(self.entry(key))
        assert answers.get(b"0"), "another's flood"
        assert len(answers) == 3

    def test_one_that_is_larger_than_a_share_is_not_kept(self) -> None:
        answers = Answers(2000, lambda _: None)
        answers.put(self.entry(0, size=1001 - OVERHEAD))
        assert (len(answers), answers.size) == (0, 0)

    def test_what_is_put_again_is_counted_once(self) -> None:
        answers = Answers(10_000, lambda _: None)
        for size in (300, 600, 300):
            answers.put(self.entry(0, size=size))
        assert (len(answers), answers.size, answers.models["phi"]) == (1, 1000, 1000)
        assert answers.clear("mix") == 0
        assert answers.clear("phi") == 1
        assert (answers.size, answers.models["phi"], answers._owners, answers._taken) == (0, 0, {}, {})

    def test_what_is_too_old_is_forgotten(self) -> None:
        answers = Answers(10_000, lambda _: None)
        for key, age in enumerate((60.0, 61.0, 59.0)):
            answers.put(self.entry(key, age=age))
        assert answers.get(b"0") is None
        answers.sweep()
        assert (len(answers), answers.size) == (1, 1000)

    def test_only_what_gets_smaller_is_packed(self) -> None:
        assert packed_of(b"x" * 100) is None
        assert packed_of(os.urandom(10_000)) is None
        entry = self.entry(0, size=100_000)
        entry.shrink(packed_of(entry.body))
        assert (entry.size < 2000, entry.whole()) == (True, b"x" * 100_000)


def told(lab: Lab, outcome: str) -> float:
    return lab.metric("llm_cache_redis_total", outcome=outcome)


@contextlib.asynccontextmanager
async def shared(redis: RedisServer, **more: Any) -> AsyncIterator[Lab]:
    section = {"address": redis.address, "timeout_ms": 1000.0, **more}
    async with running({**CACHE, "redis": section}, models=MODELS) as lab:
        cache = lab.gateway.cache
        assert cache is not None
        assert cache.behind is not None
        link = cache.behind.redis
        await until(lambda: link.up)
        yield lab


class TestRedis:
    async def test_answers_outlive_the_gateway(self, redis: RedisServer) -> None:
        async with shared(redis) as lab:
            _, headers = lab.key()
            keys = lab.gateway.path.parent.joinpath("keys.json").read_text()
            lab.simulators["phi"].default = Act(tokens=3000)
            whole, stream = await ask(lab, headers), await ask(lab, headers, stream=True)
            await until(lambda: told(lab, "written") == 2)
        assert redis.ask("DBSIZE") == b":0\r\n"
        async with shared(redis) as lab:
            lab.gateway.path.parent.joinpath("keys.json").write_text(keys)
            assert lab.gateway.reload() is None
            assert outcome(await ask(lab)) == "miss", "another client's"
            again = [await ask(lab, headers), await ask(lab, headers, stream=True)]
            assert [outcome(one) for one in again] == ["hit", "hit"]
            assert [one.content for one in again] == [whole.content, stream.content]
            assert again[1].headers["content-type"] == "text/event-stream; charset=utf-8"
            assert asked(lab) == 1
            assert told(lab, "hit") == 2
            assert outcome(await ask(lab, headers)) == "hit"
            assert told(lab, "hit") == 2, "the second time it is in memory"
            await lab.settled()

    async def test_they_are_kept_under_the_names_of_the_documents_for_their_time(self, redis: RedisServer) -> None:
        async with shared(redis) as lab:
            await ask(lab)
            await until(lambda: told(lab, "written") == 1)
            cache = lab.gateway.cache
            assert cache is not None
            [entry] = cache.answers._entries.values()
            assert cache.behind is not None
            name = f"llm:response:phi:{entry.key.hex()}"
            assert 3590 < await cache.behind.redis.call("TTL", name) <= 3600

    async def test_clearing_reaches_it(self, redis: RedisServer) -> None:
        async with shared(redis) as lab:
            _, admin = lab.key(role="admin")
            clear = f"{lab.url('management')}/management/cache/clear"
            for seed in range(3):
                await ask(lab, seed=seed)
            await ask(lab, model="mix")
            await until(lambda: told(lab, "written") == 4)
            assert (await lab.client.post(clear, headers=admin, params={"model": "phi"})).json() == {"cleared": 3}
            assert [outcome(await ask(lab, model=name, seed=1)) for name in ("phi", "mix")] == ["miss", "miss"]
            assert outcome(await ask(lab, model="mix")) == "hit"
            await until(lambda: told(lab, "written") == 6)
            assert (await lab.client.post(clear, headers=admin)).json() == {"cleared": 3}
            assert outcome(await ask(lab, model="mix")) == "miss"

    async def test_without_it_there_is_the_memory(self, redis: RedisServer) -> None:
        async with shared(redis) as lab:
            _, admin = lab.key(role="admin")
            assert lab.metric("llm_redis_up", use="answers") == 1
            redis.kill()
            assert await twice(lab) == ["miss", "hit"]
            assert lab.metric("llm_redis_up", use="answers") == 0
            answer = await lab.client.post(f"{lab.url('management')}/management/cache/clear", headers=admin)
            assert (answer.status_code, code_of(answer)) == (503, "redis_unavailable")
            assert outcome(await ask(lab)) == "miss"
            assert [one["outcome"] for one in lab.records("audit") if one["event"] == "cache_clear"] == ["failed"]
            report = (await lab.client.get(f"{lab.url('health')}/health/detailed")).json()
            assert report["dependencies"]["redis"]["answers"]["status"] == "unavailable"
            await lab.settled()

    async def test_one_that_stands_still_costs_no_more_than_its_time(self, redis: RedisServer) -> None:
        async with shared(redis, timeout_ms=100.0) as lab:
            redis.pause()
            tasks = [asyncio.create_task(ask(lab)) for _ in range(3)]
            begun = time.monotonic()
            answers = await asyncio.gather(*tasks)
            assert time.monotonic() - begun < 2
            assert sorted(str(outcome(one)) for one in answers) == ["hit", "hit", "miss"]
            redis.resume()
            await lab.settled()

    async def test_a_client_that_leaves_while_redis_thinks_strands_nobody(self, redis: RedisServer) -> None:
        async with shared(redis, timeout_ms=3000.0) as lab:
            redis.pause()
            leader = asyncio.create_task(ask(lab))
            await until(lambda: lab.gateway.cache is not None and lab.gateway.cache._flights)
            other = asyncio.create_task(ask(lab))
            await until(lambda: lab.metric("llm_cache_waits_total", model="phi") == 1)
            leader.cancel()
            await until(lambda: len(lab.gateway.walk.running) == 1)
            redis.resume()
            assert outcome(await other) == "miss"
            await lab.settled()

    async def test_a_reload_opens_and_closes_it(self, redis: RedisServer) -> None:
        async with running({"redis": {"address": redis.address, "timeout_ms": 1000.0}}) as lab:
            assert lab.gateway.cache is None
            assert lab.reconfigure(CACHE) is None
            cache = lab.gateway.cache
            assert cache is not None
            assert cache.behind is not None
            link = cache.behind.redis
            await until(lambda: link.up)
            lab.config.pop("cache")
            assert lab.reconfigure({}) is None
            await until(lambda: not link.up)

    def test_what_is_not_ours_is_no_answer(self) -> None:
        entry = Entry(b"k", "a", "phi", b"x" * 10_000, stream=True, ttl=60.0, age=10.0)
        plain = written(entry, time.time())
        entry.shrink(packed_of(entry.body))
        packed = written(entry, time.time())
        for value in (plain, packed):
            found = read(value, b"k", "a", "phi", 20_000)
            assert found is not None
            assert (found.whole(), found.stream) == (b"x" * 10_000, True)
            assert 49 < found.until - time.monotonic() < 51
        old = written(entry, time.time() - 60)
        wrong = [None, 3, b"", b"x" * 100, plain[:9], b"\x02" + plain[1:], packed[:-1], packed[:20] + b"y" * 50, old]
        assert [read(value, b"k", "a", "phi", 20_000) for value in wrong] == [None] * len(wrong)
        assert [read(value, b"k", "a", "phi", 5_000) for value in (plain, packed)] == [None, None], "too long"

    def test_names(self) -> None:
        assert name_of("phi", b"\x01\xff") == "llm:response:phi:01ff"


def test_a_policy_that_is_none() -> None:
    with pytest.raises(Exception, match=r"cache.policy: 'sometimes'"):
        parse("cache: {policy: sometimes}\nauth: {keys_file: x, anonymous: {enabled: true}}\n")
