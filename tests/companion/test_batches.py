"""OpenAI's batches: each line once, whatever happens to the companion, the gateway or the client meanwhile."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from citadel_companion.config import Batches, Config
from citadel_companion.home import home
from citadel_companion.store import opened
from tests.companion.beside import CHAT, Beside, FakeGateway, Reply, Request, companion, jsonl, refusal, request
from tests.gateway.simulator import eventually, until

pytestmark = pytest.mark.anyio


def in_work(config: Config) -> list[Path]:
    return list(Path(config.state, "batches").glob("*"))


def of(lines: list[Any]) -> list[Any]:
    return sorted(line["custom_id"] for line in lines)


async def test_results_come_as_openai_gives_them(beside: Beside) -> None:
    client = beside.client()
    batch = await client.batch(jsonl(*(request(f"r-{one}") for one in range(5))), metadata={"for": "test"})
    assert (batch["object"], batch["status"], batch["endpoint"]) == ("batch", "validating", CHAT)
    assert batch["expires_at"] - batch["created_at"] == 86_400
    ended = await client.over(batch)
    assert (ended["status"], ended["metadata"], ended["errors"]) == ("completed", {"for": "test"}, None)
    assert ended["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert ended["in_progress_at"] <= ended["finalizing_at"] <= ended["completed_at"]
    assert ended["error_file_id"] is None
    lines = await client.results(ended["output_file_id"])
    assert of(lines) == [f"r-{one}" for one in range(5)]
    assert set(lines[0]) == {"id", "custom_id", "response", "error"}
    assert lines[0]["response"]["status_code"] == 200
    assert lines[0]["response"]["request_id"].startswith("req-")
    assert lines[0]["response"]["body"] == {"id": "cmpl-1", "choices": []}
    file = await client.get(f"/v1/files/{ended['output_file_id']}")
    assert (file["purpose"], file["filename"]) == ("batch_output", f"{batch['id']}_output.jsonl")
    seen = beside.gateway.seen[0]
    assert (seen.headers["x-citadel-principal"], seen.headers["x-citadel-address"]) == ("key:a", "192.0.2.1")
    assert seen.headers["x-priority"] == "low"
    assert beside.gateway.most <= 2
    await until(lambda: not in_work(beside.config))
    assert [one["id"] for one in (await client.get("/v1/batches"))["data"]] == [batch["id"]]


async def test_a_line_that_is_no_request_fails_alone(beside: Beside) -> None:
    client = beside.client()
    bad = [
        b"not json",
        [1],
        {**request("x"), "custom_id": 7},
        {**request("method"), "method": "GET"},
        {**request("url"), "url": "/v1/embeddings"},
        {**request("body"), "body": "text"},
        {**request("model"), "body": {"messages": []}},
        request("stream", stream=True),
        request("good"),  # a second one of that name
        b"[" * 100_000,
        b'"\xff"',
    ]
    ended = await client.over(await client.batch(jsonl(request("good"), *bad, b"", request("last")).rstrip(b"\n")))
    assert (ended["status"], ended["request_counts"]) == ("completed", {"total": 13, "completed": 2, "failed": 11})
    assert of(await client.results(ended["output_file_id"])) == ["good", "last"]
    failed = await client.results(ended["error_file_id"])
    codes = [line["error"]["code"] for line in failed]
    assert codes == [
        "invalid_json_line",
        "invalid_request",
        "invalid_custom_id",
        "invalid_method",
        "mismatched_endpoint",
        "invalid_body",
        "missing_model",
        "unsupported_value",
        "duplicate_custom_id",
        "invalid_json_line",
        "invalid_json_line",
    ]
    assert [line["error"]["line"] for line in failed] == list(range(2, 13))
    assert [line["custom_id"] for line in failed[3:6]] == ["method", "url", "body"]


async def test_an_input_of_no_use_fails_the_batch(beside: Beside) -> None:
    client = beside.client()
    for content, code, line in (
        (b"", "empty_file", None),
        (b"\n\n", "empty_file", None),
        (b"x\ny", "invalid_json_line", 1),
    ):
        ended = await client.over(await client.batch(content))
        assert (ended["status"], ended["output_file_id"]) == ("failed", None)
        assert ended["failed_at"]
        first = ended["errors"]["data"][0]
        assert (first["code"], first["line"]) == (code, line)
    await until(lambda: not in_work(beside.config))


async def test_what_is_no_batch_is_told(beside: Beside) -> None:
    client = beside.client()
    file = (await client.upload(b"{}")).json()["id"]
    short = {"anchor": "created_at", "seconds": 5}
    for changed, status, said in (
        ({"input_file_id": "file-none"}, 404, "You have no file 'file-none'"),
        ({"input_file_id": "a\0b"}, 404, "You have no file"),
        ({"endpoint": "/v1/responses"}, 400, "endpoint: Input should be '/v1/chat/completions'"),
        ({"completion_window": "1h"}, 400, "completion_window: Input should be '24h'"),
        ({"metadata": {"k": "a\0b"}}, 400, "metadata has a zero byte"),
        ({"metadata": {"k" * 65: "v"}}, 400, "metadata has at most 16 keys"),
        ({"output_expires_after": short}, 400, "output_expires_after.seconds is"),
        ({"extra": 1}, 400, "extra: Extra inputs"),
    ):
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **changed}
        answer = await client.ask("POST", "/v1/batches", json=body)
        assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text
    assert (await client.get("/v1/batches"))["data"] == []


async def test_files_and_batches_of_others_are_not_there(beside: Beside) -> None:
    client, stranger = beside.client(), beside.client("key:b")
    beside.gateway.gate.clear()
    batch = await client.batch(jsonl(request("r")))
    body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    assert (await stranger.ask("POST", "/v1/batches", json=body)).status_code == 404
    for _ in range(2):  # while it runs, and when it is over
        for method, path in (
            ("GET", ""),
            ("POST", "/cancel"),
            ("GET", "/dead_letters"),
            ("POST", "/dead_letters/retry"),
        ):
            answer = await stranger.ask(method, f"/v1/batches/{batch['id']}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
        beside.gateway.gate.set()
        await client.over(batch)
    wrong = (await client.upload(b"x", purpose="user_data")).json()["id"]
    answer = await client.ask("POST", "/v1/batches", json={**body, "input_file_id": wrong})
    assert answer.json()["error"]["message"] == f"{wrong} was uploaded for 'user_data', not for 'batch'."


async def test_a_gateway_that_is_busy_or_away_fails_no_line(config: Config, gateway: FakeGateway) -> None:
    once = config.model_copy(update={"batches": Batches(attempts=1)})
    async with companion(once, gateway) as beside:
        await _is_patient(beside)


async def _is_patient(beside: Beside) -> None:
    gateway, client = beside.gateway, beside.client()
    gateway.script.append(refusal(429, "rate_limit_exceeded", retry_after="1", x_should_retry="true"))
    began = time.monotonic()
    await client.over(await client.batch(jsonl(request("one"))))
    assert time.monotonic() - began >= 1.0, "it waits as long as it is told"
    gateway.script.extend([refusal(503, "model_not_ready"), refusal(429, "too_many_concurrent_requests")])
    ended = await client.over(await client.batch(jsonl(request("one"), request("two"))))
    assert ended["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert len(gateway.seen) == 6
    await gateway.stop()
    batch = await client.batch(jsonl(request("three")))
    await eventually(lambda: _is(client, batch, "in_progress"))
    await gateway.start()
    assert (await client.over(batch))["request_counts"]["completed"] == 1


async def _is(client: Any, batch: Any, status: str) -> bool:
    return bool((await client.get(f"/v1/batches/{batch['id']}"))["status"] == status)


async def test_what_fails_for_good_is_listed_and_sent_again(beside: Beside) -> None:
    gateway, client = beside.gateway, beside.client()

    def rule(seen: Request) -> Reply | None:
        if seen.said == "bad":
            return refusal(400, "context_length_exceeded", x_should_retry="false")
        return (
            refusal(503, "upstream_failed", x_should_retry="true", retry_after="0") if seen.said == "deadly" else None
        )

    gateway.rule = rule
    lines = jsonl(request("bad"), b"no request", request("deadly"), request("good"))
    ended = await client.over(await client.batch(lines, metadata={"a": "b"}))
    assert (ended["status"], ended["request_counts"]) == ("completed", {"total": 4, "completed": 1, "failed": 3})
    tried = [seen.said for seen in gateway.seen]
    assert (tried.count("bad"), tried.count("deadly"), tried.count("good")) == (1, 5, 1)
    failed = {line["custom_id"]: line for line in await client.results(ended["error_file_id"])}
    assert failed["bad"]["response"]["status_code"] == 400
    assert failed["deadly"]["response"]["body"]["error"]["code"] == "upstream_failed"
    path = f"/v1/batches/{ended['id']}/dead_letters"
    letters = await client.get(path)
    told = {(one["line"], one["custom_id"], one["status_code"], one["error"]["code"]) for one in letters["data"]}
    assert told == {
        (1, "bad", 400, "context_length_exceeded"),
        (2, None, None, "invalid_json_line"),
        (3, "deadly", 503, "upstream_failed"),
    }
    first = await client.get(path, limit=1)
    assert first["has_more"]
    assert len((await client.get(path, after=first["last_id"]))["data"]) == 2
    gateway.rule = lambda _: None
    again = await client.ask("POST", f"{path}/retry")
    assert again.status_code == 200, again.text
    assert (again.json()["retry_of"], again.json()["metadata"]) == (ended["id"], {"a": "b"})
    second = await client.over(again.json())
    assert second["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert of(await client.results(second["output_file_id"])) == ["bad", "deadly"]
    nothing = await client.ask("POST", f"/v1/batches/{second['id']}/dead_letters/retry")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "no_dead_letters")


async def test_cancelled_it_stops_and_gives_what_it_has(beside: Beside) -> None:
    gateway, client = beside.gateway, beside.client()
    gateway.rule = lambda seen: gateway.gate.clear() if seen.said == "r-2" else None
    batch = await client.batch(jsonl(*(request(f"r-{one}") for one in range(50))))
    await until(gateway.holds_two)
    early = await client.ask("POST", f"/v1/batches/{batch['id']}/dead_letters/retry")
    assert early.status_code == 409
    answer = (await client.ask("POST", f"/v1/batches/{batch['id']}/cancel")).json()
    assert (answer["status"], bool(answer["cancelling_at"])) == ("cancelling", True)
    ended = await client.over(batch)
    assert (ended["status"], bool(ended["cancelled_at"])) == ("cancelled", True)
    await until(lambda: gateway.left == 2)
    done = ended["request_counts"]["completed"]
    assert 1 <= done < 50
    assert len(await client.results(ended["output_file_id"])) == done
    late = await client.ask("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "batch_over")


async def test_its_window_over_it_ends_with_what_there_is(config: Config, gateway: FakeGateway) -> None:
    gateway.rule = lambda seen: gateway.gate.clear() if seen.said == "r-1" else None
    async with companion(config, gateway) as beside:
        client = beside.client()
        batch = await client.batch(jsonl(*(request(f"r-{one}") for one in range(9))))
        await until(gateway.holds_two)
    store = opened(config)
    (thing,) = store.listed(f"batch:{home(Path(config.state))}", "key:a")
    thing.body["batch"]["expires_at"] = int(time.time()) - 1
    store.put(thing)
    store.close()
    async with companion(config, gateway) as beside:
        client = beside.client()
        ended = await client.over(batch)
        counts = ended["request_counts"]
        assert (ended["status"], counts["completed"] + counts["failed"]) == ("expired", 9)
        assert counts["completed"] >= 1
        done, failed = [await client.results(ended[f"{name}_file_id"]) for name in ("output", "error")]
        assert of(done + failed) == [f"r-{one}" for one in range(9)]
        assert {line["error"]["code"] for line in failed} == {"batch_expired"}


async def test_a_key_that_is_no_more_ends_it(beside: Beside) -> None:
    beside.gateway.rule = lambda seen: refusal(401, "revoked_api_key", x_should_retry="false")
    client = beside.client()
    ended = await client.over(await client.batch(jsonl(*(request(f"r-{one}") for one in range(500)))))
    assert (ended["status"], ended["request_counts"]["failed"]) == ("completed", 500)
    assert len(beside.gateway.seen) <= 2
    lines = await client.results(ended["error_file_id"])
    assert of(lines) == sorted(f"r-{one}" for one in range(500))
    assert {line["error"]["code"] for line in lines if line["error"]} == {"revoked_api_key"}


async def test_a_big_batch_does_not_hold_up_a_small_one(beside: Beside) -> None:
    gateway = beside.gateway
    gateway.gate.clear()
    big = await beside.client("key:big").batch(jsonl(*(request(f"r-{one}") for one in range(200))))
    await until(gateway.holds_two)
    small = await beside.client("key:small").batch(jsonl(request("a"), request("b")))
    await eventually(lambda: _is(beside.client("key:small"), small, "in_progress"))
    gateway.gate.set()
    await beside.client("key:small").over(small)
    owners = [seen.headers["x-citadel-principal"] for seen in gateway.seen]
    last = max(at for at, owner in enumerate(owners) if owner == "key:small")
    assert last <= 10, "the other one has its turns in between"
    await beside.client("key:big").over(big)


async def test_bounds(config: Config, gateway: FakeGateway) -> None:
    bounds = Batches(most_lines=5, most_line_bytes=400, open_of_user=2, most_answer_bytes=1000, most_output_bytes=1500)
    async with companion(config.model_copy(update={"batches": bounds}), gateway) as beside:
        client = beside.client()
        many = await client.over(await client.batch(jsonl(*(request(f"r-{one}") for one in range(6)))))
        assert many["errors"]["data"][0]["message"] == "A batch has at most 5 lines."
        ended = await client.over(await client.batch(jsonl(request("long", "x" * 400), request("short"))))
        assert ended["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        (failed,) = await client.results(ended["error_file_id"])
        assert failed["error"] == {
            "code": "line_too_long",
            "message": "This line is longer than 400 bytes.",
            "param": None,
            "line": 1,
        }
        large = {"huge": Reply(body=json.dumps("x" * 1000).encode()), "big": Reply(body=json.dumps("x" * 900).encode())}
        gateway.rule = lambda seen: large.get(seen.said)
        ended = await client.over(
            await client.batch(jsonl(request("huge"), *[request(f"b{n}", "big") for n in range(4)]))
        )
        codes = [line["error"]["code"] for line in await client.results(ended["error_file_id"])]
        assert codes[0] == "answer_too_large"
        assert set(codes[1:]) == {"output_too_large"}
        gateway.gate.clear()
        for _ in range(2):
            await client.batch(jsonl(request("r")))
        file = (await client.upload(b"{}")).json()["id"]
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        answer = await client.ask("POST", "/v1/batches", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_batches")


async def test_an_input_that_its_owner_deletes_is_there_until_the_end(beside: Beside) -> None:
    client = beside.client()
    beside.gateway.gate.clear()
    batch = await client.batch(jsonl(request("r-1"), b"bad"))
    await client.ask("DELETE", f"/v1/files/{batch['input_file_id']}")
    beside.gateway.gate.set()
    ended = await client.over(batch)
    assert ended["request_counts"]["completed"] == 1
    again = await client.ask("POST", f"/v1/batches/{batch['id']}/dead_letters/retry")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "file_not_found")


async def test_stopped_in_the_middle_it_goes_on(config: Config, gateway: FakeGateway) -> None:
    ids = [f"r-{one}" for one in range(30)]
    gateway.rule = lambda seen: gateway.gate.clear() if seen.said == "r-9" else None
    async with companion(config, gateway) as beside:
        batch = await beside.client().batch(jsonl(b"bad", *map(request, ids)))
        await until(gateway.holds_two)
    asked = len(gateway.seen)
    gateway.rule = lambda _: None
    gateway.gate.set()
    async with companion(config, gateway) as beside:
        client = beside.client()
        ended = await client.over(batch)
        assert ended["request_counts"] == {"total": 31, "completed": 30, "failed": 1}
        assert of(await client.results(ended["output_file_id"])) == sorted(ids)
        assert len(await client.results(ended["error_file_id"])) == 1
    assert 10 <= asked < len(gateway.seen) <= 30 + 2, "only what was in flight is asked again"


async def test_work_that_is_lost_is_told(config: Config, gateway: FakeGateway) -> None:
    gateway.gate.clear()
    async with companion(config, gateway) as beside:
        batch = await beside.client().batch(jsonl(request("r")))
    shutil.rmtree(Path(config.state, "batches"))
    async with companion(config, gateway) as beside:
        found = await beside.client().over(batch)
        assert (found["status"], found["errors"]["data"][0]["code"]) == ("failed", "work_lost")
        await until(lambda: not in_work(config))


async def test_one_whose_owner_was_forgotten_elsewhere_ends(beside: Beside) -> None:
    """By a companion of another host, which shares the database."""
    gateway, client = beside.gateway, beside.client()
    gateway.gate.clear()
    await client.batch(jsonl(request("r-1"), request("r-2")))
    other = await beside.client("key:b").batch(jsonl(request("r-3")))
    await until(gateway.holds_two)
    store = opened(beside.config)
    store.forget("key:a")
    store.close()
    await beside.runner.drop_lost()
    assert [path.name for path in in_work(beside.config)] == [other["id"]]
    gateway.gate.set()
    assert (await beside.client("key:b").over(other))["status"] == "completed"


async def test_hosts_that_share_a_database_leave_each_others_files(config: Config, gateway: FakeGateway) -> None:
    async with companion(config, gateway) as here:
        client = here.client()
        gateway.gate.clear()
        batch = await client.batch(jsonl(request("r")))
        there = config.model_copy(update={"state": f"{config.state}-2"})
        async with companion(there, gateway) as beside:
            assert (await beside.client().ask("GET", f"/v1/batches/{batch['id']}")).status_code == 404
            assert (await beside.client().get("/v1/files"))["data"] == []
            await beside.runner.files.sweep()
        gateway.gate.set()
        assert (await client.over(batch))["status"] == "completed"
        assert (await client.ask("GET", f"/v1/files/{batch['input_file_id']}/content")).status_code == 200
