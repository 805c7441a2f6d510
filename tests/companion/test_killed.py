"""A companion that is killed at any moment: no line of a batch is lost, and none is there twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from citadel_companion.config import Config
from tests.companion.beside import Client, FakeGateway, jsonl, request
from tests.companion.test_app import begun
from tests.gateway.simulator import eventually, until

pytestmark = pytest.mark.anyio
LINES = 60
KILLS = (3, 11, 20, 21, 45)  # after so many answers


async def test_killed_in_the_middle_it_goes_on(config: Config, gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "companion.yml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    batch: str | None = None
    ids = [f"r-{one}" for one in range(LINES)]
    for due in KILLS:
        async with process(file, config) as client:
            if batch is None:
                batch = (await client.batch(jsonl(b"bad", *map(request, ids))))["id"]
            await until(partial(_has_answered, gateway, due), 30)
    async with process(file, config) as client:
        ended = await client.over({"id": batch}, 30)
        done = await client.results(ended["output_file_id"])
        failed = await client.results(ended["error_file_id"])
    assert sorted(line["custom_id"] for line in done) == sorted(ids)
    assert [line["error"]["line"] for line in failed] == [1]
    assert ended["request_counts"] == {"total": LINES + 1, "completed": LINES, "failed": 1}
    assert len(gateway.seen) <= LINES + 2 * len(KILLS), "asked again is only what was in flight"


@contextlib.asynccontextmanager
async def process(file: Path, config: Config) -> AsyncIterator[Client]:
    """One that is killed in the end."""
    process = begun(file)
    try:
        transport = httpx.AsyncHTTPTransport(uds=config.socket, retries=5)
        async with httpx.AsyncClient(transport=transport, base_url="http://companion") as http:
            await eventually(lambda: _serves(http), 20)
            yield Client(http)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        await asyncio.to_thread(Path(config.socket).unlink, missing_ok=True)


def _has_answered(gateway: FakeGateway, count: int) -> bool:
    return len(gateway.seen) - gateway.running >= count


async def _serves(http: httpx.AsyncClient) -> bool:
    try:
        return "citadel_companion_batches_ready 1.0" in (await http.get("/metrics")).text
    except httpx.TransportError:
        return False
