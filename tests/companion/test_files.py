"""OpenAI's files: their owner's only, within bounds, whole or not there."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from citadel_companion.config import Config, Files
from citadel_companion.files import Files as Service
from citadel_companion.services import Services
from citadel_companion.store import opened
from tests.companion.beside import Beside, FakeGateway, companion

pytestmark = pytest.mark.anyio


def on_disk(config: Config) -> list[Path]:
    return [path for path in Path(config.state, "files").rglob("*") if path.is_file()]


async def test_a_file_comes_back_as_it_was(beside: Beside) -> None:
    client = beside.client()
    content = bytes(range(256)) * 8192  # more than is held in memory
    answer = await client.upload(content, "données ☃.jsonl")
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(content), "données ☃.jsonl")
    assert (file["purpose"], file["status"]) == ("batch", "processed")
    assert abs(file["expires_at"] - file["created_at"] - 30 * 86_400) <= 1
    assert await client.get(f"/v1/files/{file['id']}") == file
    assert (await client.ask("GET", f"/v1/files/{file['id']}/content")).content == content
    gone = await client.ask("DELETE", f"/v1/files/{file['id']}")
    assert gone.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert (await client.ask("GET", f"/v1/files/{file['id']}")).status_code == 404
    assert not on_disk(beside.config)


async def test_somebody_elses_is_one_that_is_not_there(beside: Beside) -> None:
    ident = (await beside.client().upload(b"{}")).json()["id"]
    stranger = beside.client("key:b")
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = await stranger.ask(method, f"/v1/files/{ident}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    assert (await stranger.get("/v1/files"))["data"] == []
    for strange in ("..%2f..%2fhome", "nothing", "%00"):
        assert (await stranger.ask("GET", f"/v1/files/{strange}/content")).status_code == 404
    assert (await beside.client().ask("GET", f"/v1/files/{ident}/content")).content == b"{}"


async def test_a_list_is_a_part_of_what_there_is(beside: Beside) -> None:
    client = beside.client()
    idents = [(await client.upload(b"x", purpose=("batch", "user_data")[one % 2])).json()["id"] for one in range(5)]
    assert [one["id"] for one in (await client.get("/v1/files"))["data"]] == idents[::-1]
    first = await client.get("/v1/files", order="asc", limit=2)
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (idents[:2], True)
    rest = await client.get("/v1/files", order="asc", after=first["last_id"])
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (idents[2:], False)
    assert len((await client.get("/v1/files", purpose="user_data"))["data"]) == 2
    assert (await client.ask("GET", "/v1/files", params={"after": "nobody"})).status_code == 404


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": b""}}, "The form has no file"),
        ({"files": {"file": b"x"}}, "purpose is missing; it is one of batch"),
        ({"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}}, "'fine-tune' is not served here"),
        ({"json": {"purpose": "batch"}}, "comes as multipart/form-data, not as 'application/json'"),
        ({"files": [("file", b"x"), ("file", b"y")], "data": {"purpose": "batch"}}, "Too many files"),
        (
            {"files": {"file": b"x"}, "data": {"purpose": "batch", "expires_after[anchor]": "created_at"}},
            "expires_after.seconds is a whole number from 3600 to 2592000",
        ),
        (
            {"files": {"file": b"x"}, "data": {"purpose": "batch", "expires_after[seconds]": "3600"}},
            "expires_after.anchor is created_at",
        ),
    ],
)
async def test_what_is_no_file_is_told(tmp_path: Path, gateway: FakeGateway, sent: dict[str, Any], said: str) -> None:
    folders = {name: str(tmp_path / name) for name in ("socket", "gateway", "state", "spool")}
    async with companion(Config.model_validate(folders), gateway) as beside:
        answer = await beside.client().ask("POST", "/v1/files", **sent)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
        assert not on_disk(beside.config)


async def test_nobody_has_more_than_their_part(config: Config, gateway: FakeGateway) -> None:
    bounds = Files(most_bytes=100, of_user=3, of_user_bytes=150, in_all=4, in_all_bytes=1000)
    async with companion(config.model_copy(update={"files": bounds}), gateway) as beside:
        client = beside.client()
        assert (await client.upload(b"x" * 101)).json()["error"]["code"] == "file_too_large"
        both = await asyncio.gather(client.upload(b"x" * 100), client.upload(b"x" * 100))
        assert sorted(answer.status_code for answer in both) == [200, 413], "counted before the other is written"
        for _ in range(2):
            assert (await client.upload(b"x")).status_code == 200
        assert (await client.upload(b"")).json()["error"]["code"] == "files_full"
        assert (await beside.client("key:b").upload(b"x")).status_code == 200
        full = await beside.client("key:b").upload(b"x")
        assert (full.status_code, full.json()["error"]["code"]) == (503, "storage_full")
        assert len(on_disk(config)) == 4


async def test_a_client_may_have_it_kept_shorter(beside: Beside) -> None:
    told = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = (await beside.client().upload(b"x", **told)).json()
    assert abs(file["expires_at"] - file["created_at"] - 3600) <= 1


async def test_a_name_is_a_label_and_no_path(beside: Beside) -> None:
    file = (await beside.client().upload(b"x", "../../\x00etc/\x07passwd" + "x" * 300)).json()
    assert len(file["filename"]) == 255
    assert file["filename"].isprintable()
    assert [path.name for path in on_disk(beside.config)] == [file["id"]]


async def test_what_a_process_left_goes(config: Config) -> None:
    services = Services(config, opened(config))
    files = Service(services)
    try:
        services.store.prepare()
        made = [await files.upload("key:a", _bytes(b"x"), 1, name="a", purpose="batch") for _ in range(3)]
        whole, without_bytes, expired = made
        files.shelf.path("key:a", without_bytes.id).unlink()
        past = datetime.now(UTC) - timedelta(seconds=1)
        await services.kept(services.store.put, expired._replace(expires_at=past))
        orphan = files.shelf.path("key:a", "file-orphan")
        orphan.write_bytes(b"x")
        await files.sweep()
        assert orphan.exists(), "it may be somebody's who is about to say so"
        files.coming.add("file-orphan")
        now = time.time
        try:
            time.time = lambda: now() + 4000  # as if an hour had gone by
            await files.sweep()
            assert orphan.exists(), "a batch that runs is about to say so"
            files.coming.clear()
            await files.sweep()
        finally:
            time.time = now
        assert [path.name for path in on_disk(config)] == [whole.id]
        assert [file.id for file in await files.of("key:a")] == [whole.id]
    finally:
        await services.close()
        services.store.close()


async def test_a_file_whose_content_is_gone_is_gone(beside: Beside) -> None:
    client = beside.client()
    ident = (await client.upload(b"x")).json()["id"]
    (path,) = on_disk(beside.config)
    path.unlink()
    assert (await client.ask("GET", f"/v1/files/{ident}/content")).status_code == 404
    assert (await client.ask("GET", f"/v1/files/{ident}")).status_code == 404


def _bytes(content: bytes) -> Any:
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return os.fdopen(reader, "rb")
