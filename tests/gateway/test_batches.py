"""Files and batches through the gateway and back through it, with OpenAI's own SDK."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.companion.beside import CHAT, jsonl, request
from tests.companion.test_app import begun
from tests.gateway.harness import Lab, code_of, running
from tests.gateway.simulator import Act, eventually, until

pytestmark = pytest.mark.anyio
ROUTES = ["/v1/files", "/v1/files/*", "/v1/batches", "/v1/batches/*", "/v1/users/*"]


@contextlib.asynccontextmanager
async def beside(folder: Path, **over: Any) -> AsyncIterator[Lab]:
    """A gateway, and a companion as a process of its own."""
    config = {name: str(folder / name) for name in ("socket", "state", "spool")}
    (folder / "spool").mkdir()
    told = {"companion": {"socket": config["socket"], "routes": ROUTES}, **over}
    async with running(told) as lab:
        config["gateway"] = str(lab.process.ports["inner"])
        file = folder / "companion.yml"
        file.write_text(yaml.safe_dump(config))
        process = begun(file)
        try:
            await until((folder / "socket").exists, 20)
            yield lab
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


async def over(client: openai.AsyncOpenAI, ident: str) -> Any:
    async def ended() -> bool:
        return (await client.batches.retrieve(ident)).status in {"completed", "failed", "cancelled"}

    await eventually(ended, 20)
    return await client.batches.retrieve(ident)


async def test_with_openais_own_sdk(tmp_path: Path) -> None:
    async with beside(tmp_path) as lab:
        ident, key = lab.key()
        secret = key["authorization"].removeprefix("Bearer ")
        async with openai.AsyncOpenAI(base_url=lab.url() + "/v1", api_key=secret, max_retries=3) as client:
            content = jsonl(*(request(f"r-{one}") for one in range(5)), request("nobody", model="nobody"))
            file = await client.files.create(file=("a.jsonl", content), purpose="batch")
            assert file.bytes == len(content)
            assert (await client.files.content(file.id)).content == content
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"for": "test"}
            )
            ended = await over(client, batch.id)
            assert ended.status == "completed"
            assert ended.request_counts.model_dump() == {"total": 6, "completed": 5, "failed": 1}
            output = (await client.files.content(ended.output_file_id)).text
            lines = [json.loads(line) for line in output.splitlines()]
            assert lines[0]["response"]["body"]["choices"][0]["message"]["content"] == "word " * 5
            (failed,) = [
                json.loads(line) for line in (await client.files.content(ended.error_file_id)).text.splitlines()
            ]
            assert failed["response"]["body"]["error"]["code"] == "model_not_found"
            assert [one.id async for one in client.batches.list(limit=1)] == [batch.id]
            assert len([one async for one in client.files.list(limit=1)]) == 3
            # limits and accounting are the gateway's, in the name of the batch's owner
            asked = [one for one in lab.records() if one["path"] == CHAT and one["status"] == 200]
            assert {one["principal"] for one in asked} == {f"key:{ident}"}
            assert len(asked) == 5
            lab.simulators["phi"].default = Act(delay=30)
            slow = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            await until(lambda: lab.simulators["phi"].running == 2)
            assert (await client.batches.cancel(slow.id)).status == "cancelling"
            assert (await over(client, slow.id)).status == "cancelled"
            await until(lab.simulators["phi"].is_idle)
            assert (await client.files.delete(file.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(file.id)


async def test_a_key_that_is_revoked_meanwhile_ends_its_batch(tmp_path: Path) -> None:
    async with beside(tmp_path) as lab:
        ident, key = lab.key()
        secret = key["authorization"].removeprefix("Bearer ")
        lab.simulators["phi"].gate.clear()
        async with openai.AsyncOpenAI(base_url=lab.url() + "/v1", api_key=secret, max_retries=3) as client:
            content = jsonl(*(request(f"r-{one}") for one in range(20)))
            file = await client.files.create(file=("a.jsonl", content), purpose="batch")
            await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            await until(lambda: lab.simulators["phi"].running == 2)
        lab.gateway.keys.revoke(ident)
        lab.gateway.keys_changed()
        lab.simulators["phi"].gate.set()
        await until(lambda: [one["error"] for one in lab.records()].count("revoked_api_key") >= 1)
        await until(lambda: not list((tmp_path / "state" / "batches").iterdir()), 10)
        assert len(lab.simulators["phi"].seen) == 2
        _, admin = lab.key(role="admin")
        answer = await lab.client.delete(f"/v1/users/key:{ident}", headers=admin)
        assert (answer.json()["deleted"], answer.json()["files"]) == (True, 2), "the input, and what failed"


async def test_a_body_beyond_the_gateways_bound(tmp_path: Path) -> None:
    async with beside(tmp_path, server={"max_body_bytes": 100_000}) as lab:
        for size, status in ((90_000, 200), (100_000, 413)):
            answer = await lab.client.post("/v1/files", files={"file": b"x" * size}, data={"purpose": "user_data"})
            assert answer.status_code == status
        assert code_of(answer) == "request_too_large"


async def test_large_content_comes_back_whole(tmp_path: Path) -> None:
    async with beside(tmp_path) as lab:
        content = bytes(range(256)) * 36_000
        answer = await lab.client.post("/v1/files", files={"file": content}, data={"purpose": "user_data"})
        found = await lab.client.get(f"/v1/files/{answer.json()['id']}/content")
        assert found.content == content
        part = await lab.client.get(f"/v1/files/{answer.json()['id']}/content", headers={"range": "bytes=256-511"})
        assert (part.status_code, part.content) == (206, bytes(range(256)))
