"""Vectors through the gateway, on Qdrant's own engine: everybody's apart, and nothing that cannot be meant."""

from __future__ import annotations

import base64
import json
import struct
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from citadel_companion.config import ConfigError, load
from citadel_companion.vectors import point_id
from tests.certificates import made
from tests.companion.neighbours import SIZE, Estate, estate, words
from tests.gateway.harness import code_of
from tests.gateway.simulator import Act, eventually

pytestmark = pytest.mark.anyio
PATH = "/v1/vectors/phi"
UNIT = [1.0] + [0.0] * (SIZE - 1)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


async def stored(there: Estate, *points: dict[str, Any], headers: dict[str, str] | None = None, **more: Any) -> Any:
    answer = await there.client.post(PATH, json={"points": points, **more}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["ids"]


async def found(there: Estate, headers: dict[str, str] | None = None, **asked: Any) -> list[dict[str, Any]]:
    answer = await there.client.post(f"{PATH}/search", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def test_texts_are_stored_found_and_deleted(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        ident, key = there.lab.key()
        texts = ["the owl sleeps by day", "a fox crosses the road", "rain falls on the sea"]
        ids = await stored(
            there, *({"text": text, "metadata": {"part": n}} for n, text in enumerate(texts)), headers=key
        )
        assert ids == [point_id("phi", f"key:{ident}", text) for text in texts]
        assert uuid.UUID(ids[0]).version == 5
        best = (await found(there, key, text="the owl sleeps"))[0]
        assert (best["id"], best["text"], best["model"], best["metadata"]) == (ids[0], texts[0], "phi", {"part": 0})
        assert 0.7 <= best["score"] <= 1.0001
        assert best["timestamp"].endswith("+00:00")
        # said again it is the same point, with what was said last
        assert await stored(there, {"text": texts[0], "metadata": {"part": 7}}, headers=key) == ids[:1]
        assert [one["metadata"] for one in await found(there, key, text=texts[0])] == [{"part": 7}]
        assert (await there.client.delete(f"{PATH}/{ids[0]}", headers=key)).json()["deleted"] is True
        assert await found(there, key, text=texts[0]) == []
        again = await there.client.delete(f"{PATH}/{ids[0]}", headers=key)
        assert (again.status_code, code_of(again)) == (404, "point_not_found")
        assert there.lab.records()[-1]["principal"] == f"key:{ident}"


async def test_a_thousand_at_once_and_the_limits_of_a_search(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        points = [{"text": f"common words {number}", "metadata": {"n": number}} for number in range(1000)]
        assert len(await stored(there, *points)) == 1000
        assert len(there.embedder.seen) == 16, "batches of 64"
        assert len(await found(there, text="common words", threshold=0)) == 10
        assert len(await found(there, text="common words", threshold=0, limit=100)) == 100
        assert await found(there, text="something else entirely") == []
        answer = await there.client.post(PATH, json={"points": [*points, points[0]]})
        assert (answer.status_code, code_of(answer)) == (400, "invalid_request")
        assert (await there.client.delete(PATH)).json()["deleted"] == 1000
        assert await found(there, text="common words", threshold=0) == []


async def test_vectors_of_ones_own_ask_no_model(tmp_path: Path) -> None:
    async with estate(tmp_path, vectors={"embeddings": None}) as there:
        other = [0.0, 1.0, *UNIT[2:]]
        packed = base64.b64encode(struct.pack(f"<{SIZE}f", *other)).decode()
        await stored(there, {"text": "first", "vector": UNIT}, {"text": "second", "vector": packed})
        assert [one["text"] for one in await found(there, vector=UNIT)] == ["first"]
        assert [one["text"] for one in await found(there, vector=other)] == ["second"]
        refused = await there.client.post(PATH, json={"points": [{"text": "third"}]})
        assert (refused.status_code, code_of(refused)) == (400, "no_embeddings_model")
        assert not there.embedder.seen


async def test_everybody_has_their_own(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        keys = [there.lab.key()[1] for _ in range(2)]
        administrator = there.lab.key(role="admin")[1]
        text = "the code of the door is 1234"
        mine = await stored(there, {"text": text}, headers=keys[0])
        theirs = await stored(there, {"text": text}, headers=keys[1])
        assert mine != theirs
        assert [one["id"] for one in await found(there, keys[0], text=text)] == mine
        wanted = {"must": [{"key": "text", "match": {"value": text}}]}
        assert [one["id"] for one in await found(there, keys[1], text=text, filter=wanted)] == theirs
        assert await found(there, text=text) == []
        for headers in (keys[1], administrator, {}):
            answer = await there.client.delete(f"{PATH}/{mine[0]}", headers=headers)
            assert (answer.status_code, code_of(answer)) == (404, "point_not_found")
        gone = await there.client.post(f"{PATH}/delete", json={"ids": [*mine, *theirs]}, headers=keys[1])
        assert gone.json() == {"object": "list", "deleted": theirs, "not_found": mine}
        assert (await there.client.delete(PATH, headers=keys[1])).json()["deleted"] == 0
        assert len(await found(there, keys[0], text=text)) == 1


async def test_who_is_forgotten_has_no_points(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        (ident, key), (_, other) = there.lab.key(), there.lab.key()
        for headers in (key, other):
            await stored(there, {"text": "kept for a while"}, {"text": "and this"}, headers=headers)
        way = httpx.AsyncHTTPTransport(uds=str(tmp_path / "companion.sock"))
        async with httpx.AsyncClient(transport=way, base_url="http://companion", timeout=30) as operator:
            gone = await operator.post("/forget", json={"user": f"key:{ident}"})
            assert (gone.status_code, gone.json()["points"]) == (200, 2)
            assert await found(there, key, text="kept for a while") == []
            assert len(await found(there, other, text="kept for a while")) == 1
            there.qdrant.stop()
            away = await operator.post("/forget", json={"user": f"key:{ident}"})
            assert (away.status_code, away.json()["error"]["code"]) == (503, "vectors_unavailable")


async def test_what_administrators_share_is_everybodys_to_read(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        _, key = there.lab.key()
        _, reader = there.lab.key(role="reader")
        _, administrator = there.lab.key(role="admin")
        text = "the office opens at nine"
        refused = await there.client.post(PATH, json={"points": [{"text": text}], "shared": True}, headers=key)
        assert (refused.status_code, code_of(refused)) == (403, "role_not_allowed")
        ids = await stored(there, {"text": text}, headers=administrator, shared=True)
        hit = (await found(there, key, text=text))[0]
        assert (hit["id"], hit["shared"]) == (ids[0], True)
        assert len(await found(there, reader, vector=words(text))) == 1
        assert (await there.client.delete(f"{PATH}/{ids[0]}", headers=key)).status_code == 404
        for body in ({"points": [{"text": "x"}]}, {"points": [{"text": "x", "vector": UNIT}]}):
            assert code_of(await there.client.post(PATH, json=body, headers=reader)) == "role_not_allowed"
        assert (await there.client.delete(f"{PATH}/{ids[0]}", headers=administrator)).status_code == 200


async def test_metadata_narrows_a_search(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        topics = ["law", "law", "art", "war"]
        await stored(
            there,
            *(
                {
                    "text": f"page {n}",
                    "vector": UNIT,
                    "metadata": {"topic": topic, "year": 2000 + n, "tags": ["a", topic]},
                }
                for n, topic in enumerate(topics)
            ),
        )

        async def pages(*must: dict[str, Any]) -> set[str]:
            return {one["text"] for one in await found(there, vector=UNIT, filter={"must": must})}

        assert await pages({"key": "topic", "match": {"value": "law"}}) == {"page 0", "page 1"}
        assert await pages({"key": "topic", "match": {"any": ["art", "war"]}}) == {"page 2", "page 3"}
        assert await pages({"key": "tags", "match": {"value": "law"}}, {"key": "year", "range": {"gt": 2000}}) == {
            "page 1"
        }


def bad(**point: Any) -> bytes:
    return json.dumps({"points": [{"text": "x", "vector": UNIT, **point}]}).encode()


BAD = (
    ("", bad(vector=[1.0, 2.0]), 400, "points.0.vector has 2 numbers; phi_embeddings takes 64"),
    ("", bad(vector=[float("nan"), *UNIT[1:]]), 400, "NaN and Infinity are none"),
    ("", bad(vector=[float("inf"), *UNIT[1:]]), 400, "NaN and Infinity are none"),
    ("", bad(vector=[1e39, *UNIT[1:]]), 400, "not finite"),
    ("", bad(vector=base64.b64encode(struct.pack("<64f", *([float("nan")] * 64))).decode()), 400, "not finite"),
    ("", bad(vector=[10**400, *UNIT[1:]]), 400, "infinity"),
    ("", bad(vector=[0.0] * SIZE), 400, "zeros"),
    ("", bad(vector=[True] * SIZE), 400, "must be a list of numbers"),
    ("", bad(vector="AAA"), 400, "base64"),
    ("", bad(vector=[0.5] * 200_000), 400, "must be a list of numbers"),
    ("", bad(text=""), 400, "is empty"),
    ("", bad(text=" \n"), 400, "is empty"),
    ("", bad(text="a" * 100_000), 400, "at most 32768 characters"),
    ("", bad(text="\ud800"), 400, "is not JSON"),
    ("", bad(id="mine"), 400, "Extra inputs"),
    ("", bad(metadata={"citadel_owner": "*"}), 400, "choose another name"),
    ("", bad(metadata={"text": "other"}), 400, "choose another name"),
    ("", bad(metadata={"model": "other"}), 400, "choose another name"),
    ("", bad(metadata={"a.b": 1}), 400, "pattern"),
    ("", bad(metadata={"a[]": 1}), 400, "pattern"),
    ("", bad(metadata={"\ud800": 1}), 400, "is not JSON"),
    ("", bad(metadata={"a": {"b": 1}}), 400, "metadata"),
    ("", bad(metadata={"a": float("nan")}), 400, "Infinity"),
    ("", bad(metadata={"a": 2**64 - 1}), 400, "metadata"),
    ("", bad(metadata={f"k{n}": n for n in range(40)}), 400, "at most 32"),
    ("", bad(**{f"k{n}": 0 for n in range(40)}), 400, "at most 32"),
    ("", b'{"points": []}', 400, "at least 1"),
    ("", b"[" * 100_000, 400, "is not JSON"),
    ("", b"\xff", 400, ""),
    ("/search", b"{}", 400, "give either text or vector"),
    ("/search", json.dumps({"text": "x", "limit": 101}).encode(), 400, "less than or equal to 100"),
    ("/search", json.dumps({"text": "x", "limit": 0}).encode(), 400, "greater than or equal to 1"),
    ("/search", json.dumps({"text": "x", "threshold": float("nan")}).encode(), 400, "Infinity"),
    ("/search", json.dumps({"text": "x", "threshold": "0.7"}).encode(), 400, "must be a number"),
    ("/search", json.dumps({"vector": UNIT[:3]}).encode(), 400, "has 3 numbers"),
    ("/search", json.dumps({"vector": UNIT, "filter": {"should": []}}).encode(), 400, "filter"),
    (
        "/search",
        json.dumps({"vector": UNIT, "filter": {"must": [{"key": "citadel_owner", "match": {"value": "*"}}]}}).encode(),
        400,
        "cannot be asked for",
    ),
    (
        "/search",
        json.dumps({"vector": UNIT, "filter": {"must": [{"is_empty": {"key": "citadel_owner"}}]}}).encode(),
        400,
        "filter.must.0",
    ),
    ("/search", json.dumps({"vector": UNIT, "text": "x" * 3_000_000}).encode(), 413, "at most"),
    (
        "/search",
        json.dumps({"vector": UNIT, "filter": {"must": [{"key": "a", "match": {"value": 0.5}}]}}).encode(),
        400,
        "give a range",
    ),
    ("/delete", b'{"ids": ["../phi"]}', 400, "ids.0"),
    ("/../../../collections", b"{}", 404, ""),
    ("/%2e%2e/search", b"{}", 404, ""),
)


async def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        for path, body, status, said in BAD:
            await refused(there, path, body, status, said)
        assert await found(there, vector=UNIT, threshold=-1) == [], "nothing of it is stored"


async def refused(there: Estate, path: str, body: bytes, status: int, said: str) -> None:
    answer = await there.client.post(
        f"{PATH}{path}", content=body, headers={"content-type": "application/json"}, timeout=10.0
    )
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] in {"invalid_request_error", "not_found_error"}


async def test_a_model_without_a_collection_is_not_found(tmp_path: Path) -> None:
    async with estate(tmp_path) as there:
        for name in ("nobody", "phi_embeddings", "..", "phi%2f..%2fother", "%00", "a" * 2000):
            answer = await there.client.post(f"/v1/vectors/{name}/search", json={"vector": UNIT})
            assert answer.status_code in {404, 405}, name
            assert answer.json()["error"]["code"] in {"collection_not_found", "unknown_url", "unknown_path"}


async def test_limits_and_failures_of_the_embeddings_model_are_told(tmp_path: Path) -> None:
    over = {"limits": {"tiers": {"default": {"requests_per_minute": 2}}}}
    async with estate(tmp_path, over=over) as there:
        _, key = there.lab.key()
        await stored(there, {"text": "one"}, headers=key)
        points = [{"text": f"text {number}"} for number in range(100)]
        refused = await there.client.post(PATH, json={"points": points}, headers=key)
        assert (refused.status_code, code_of(refused)) == (429, "rate_limit_exceeded")
        assert len(await found(there, key, vector=words("one"), threshold=-1)) == 1, "a part is not stored"
        there.embedder.script.append(Act(body=b'{"data": "?"}'))
        broken = await there.client.post(PATH, json={"points": [{"text": "two"}]})
        assert (broken.status_code, code_of(broken)) == (503, "embeddings_failed")


async def test_an_owner_has_so_much_room(tmp_path: Path) -> None:
    async with estate(tmp_path, vectors={"most_points": 3}) as there:
        points = [{"text": f"text {number}", "vector": UNIT} for number in range(3)]
        await stored(there, *points)
        await stored(there, *points)  # in their own place
        full = await there.client.post(PATH, json={"points": [{"text": "one more", "vector": UNIT}]})
        assert (full.status_code, code_of(full)) == (409, "too_many_points")
        _, key = there.lab.key()
        await stored(there, points[0], headers=key)


async def test_without_qdrant_its_paths_say_so_and_it_comes_back(tmp_path: Path) -> None:
    async with estate(tmp_path, up=False) as there:
        answer = await there.client.post(f"{PATH}/search", json={"vector": UNIT})
        assert (answer.status_code, code_of(answer)) == (503, "vectors_unavailable")
        assert answer.headers["retry-after"] == "5"
        assert (await there.lab.chat(model="phi")).status_code == 200
        state = (await there.client.get("/v1/vectors")).json()["data"][0]
        assert (state["model"], state["status"]) == ("phi", "unavailable")
        assert state["trouble"]
        way = httpx.AsyncHTTPTransport(uds=str(tmp_path / "companion.sock"))
        async with httpx.AsyncClient(transport=way, base_url="http://companion") as operator:
            assert (await operator.get("/health")).json()["vectors"] == {
                "phi": {"collection": "phi_embeddings", "status": "unavailable", "trouble": state["trouble"]}
            }
            assert 'citadel_companion_collection_up{model="phi"} 0.0' in (await operator.get("/metrics")).text
        there.qdrant.start()

        async def is_back() -> bool:
            return (await there.client.post(f"{PATH}/search", json={"vector": UNIT})).status_code == 200

        await eventually(is_back)
        await stored(there, {"text": "kept", "vector": UNIT})
        there.qdrant.stop()
        gone = await there.client.post(f"{PATH}/search", json={"vector": UNIT})
        assert (gone.status_code, code_of(gone)) == (503, "vectors_unavailable")
        there.qdrant.start()
        await eventually(is_back)
        assert [one["text"] for one in await found(there, vector=UNIT)] == ["kept"]


async def test_a_collection_that_was_there_is_joined_or_left_alone(tmp_path: Path) -> None:
    collections = {
        "phi": {"name": "phi_embeddings", "size": SIZE, "unowned": "shared"},
        "nomic": {"name": "other_embeddings", "size": 3072},
    }
    async with estate(tmp_path, up=False, vectors={"collections": collections}) as there:
        there.qdrant.start()
        async with httpx.AsyncClient(
            base_url=there.qdrant.url, headers={"api-key": "secret"}, trust_env=False
        ) as neighbour:
            old = {"vectors": {"size": SIZE, "distance": "Cosine"}}
            assert (await neighbour.put("/collections/phi_embeddings", json=old)).status_code == 200
            point = {"id": str(uuid.uuid4()), "vector": UNIT, "payload": {"text": "of old", "model": "phi"}}
            await neighbour.put("/collections/phi_embeddings/points", json={"points": [point]})
            other = {"vectors": {"size": 2048, "distance": "Cosine"}}
            await neighbour.put("/collections/other_embeddings", json=other)

            async def joined() -> bool:
                return (await there.client.post(f"{PATH}/search", json={"vector": UNIT})).status_code == 200

            await eventually(joined)
            assert [one["text"] for one in await found(there, vector=UNIT)] == ["of old"]
            assert (await there.client.delete(f"{PATH}/{point['id']}")).status_code == 404
            refused = await there.client.post("/v1/vectors/nomic", json={"points": [{"text": "x"}]})
            assert (refused.status_code, code_of(refused)) == (409, "collection_mismatch")
            said = refused.json()["error"]["message"]
            assert "other_embeddings has 2048 numbers and distance Cosine; 3072 and Cosine are wanted" in said
            assert "make a new collection" in said
            # nothing of ours is in it, so that it holds up no deletion
            way = httpx.AsyncHTTPTransport(uds=str(tmp_path / "companion.sock"))
            async with httpx.AsyncClient(transport=way, base_url="http://companion", timeout=30) as operator:
                assert (await operator.post("/forget", json={"user": "key:ab12cd34"})).status_code == 200
            kept = (await neighbour.get("/collections/other_embeddings")).json()["result"]["config"]["params"]
            assert kept["vectors"] == other["vectors"]


async def test_a_model_of_another_size_fills_nothing(tmp_path: Path) -> None:
    async with estate(tmp_path, vectors={"collections": {"phi": {"name": "phi_embeddings", "size": 3072}}}) as there:
        answer = await there.client.post(PATH, json={"points": [{"text": "x"}]})
        assert (answer.status_code, code_of(answer)) == (409, "collection_mismatch")
        assert "nomic makes vectors of 64 numbers and phi_embeddings takes 3072" in answer.json()["error"]["message"]


async def test_a_wrong_key_of_qdrants_is_told(tmp_path: Path) -> None:
    async with estate(tmp_path, up=False) as there:
        there.qdrant.api_key = "another"
        there.qdrant.start()
        answer = await there.client.post(f"{PATH}/search", json={"vector": UNIT})
        assert (answer.status_code, code_of(answer)) == (503, "vectors_unavailable")


async def test_it_speaks_tls_to_a_qdrant_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made(tmp_path, "qdrant")
    async with estate(tmp_path, tls=pair) as there:
        answer = await there.client.post(f"{PATH}/search", json={"vector": UNIT})
        assert (answer.status_code, code_of(answer)) == (503, "vectors_unavailable"), "nobody has signed it"
    monkeypatch.setenv("SSL_CERT_FILE", pair.certificate)
    (tmp_path / "again").mkdir()
    async with estate(tmp_path / "again", tls=pair) as there:
        await stored(there, {"text": "kept", "vector": UNIT})
        assert [one["text"] for one in await found(there, vector=UNIT)] == ["kept"]


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ("{url: 'ftp://x', collections: {phi: {name: a, size: 1}}}", "vectors.url"),
        ("{url: 'http://x:6333', collections: {}}", "vectors.collections"),
        ("{url: 'http://x:6333', collections: {phi: {name: ../a, size: 1}}}", "vectors.collections.phi.name"),
        ("{url: 'http://x:6333', collections: {phi: {name: a, size: 0}}}", "vectors.collections.phi.size"),
        (
            "{url: 'http://x:6333', collections: {phi: {name: a, size: 1}, chi: {name: a, size: 1}}}",
            "a is the collection of phi already; give chi its own",
        ),
    ],
)
def test_a_configuration_that_cannot_be_meant(tmp_path: Path, vectors: str, said: str) -> None:
    file = tmp_path / "companion.yml"
    file.write_text(f"socket: /a\nstate: /b\nspool: /c\nvectors: {vectors}\n")
    with pytest.raises(ConfigError, match=said):
        load(file)
