"""The spool of usage: what was answered is in it once, whatever happens to the gateway or to the disk."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_gateway import spool
from tests.gateway.harness import Lab, running
from tests.gateway.simulator import until

pytestmark = pytest.mark.anyio


def kept(folder: Path) -> list[dict[str, Any]]:
    """All that a reader finds."""
    found: list[dict[str, Any]] = []
    for segment in spool.segments(folder):
        found += spool.read(segment, 0, 10**6, lambda _: None)[0]
    return found


def hidden(folder: Path) -> list[Path]:
    """What nobody is to see yet."""
    return list(folder.glob("*.new"))


def spooling(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"usage": {"folder": str(folder), **settings}}


async def test_each_request_to_a_model_is_there_once_with_its_figures(tmp_path: Path) -> None:
    async with running(spooling(tmp_path)) as lab:
        ident, key = lab.key()
        whole = await lab.chat(headers={**key, "x-request-id": "mine"}, model="phi")
        await lab.stream(headers=key)
        await lab.chat(model="nobody")
        await lab.client.get("/v1/models")
        await until(lambda: len(kept(tmp_path)) >= 2)
        found = kept(tmp_path)
    assert len(kept(tmp_path)) == len(found) == 2, "what asked no model used none"
    first = found[0]
    usage = whole.json()["usage"]
    assert (first["request_id"], first["user"], first["model"], first["status"]) == ("mine", f"key:{ident}", "phi", 200)
    assert (first["prompt_tokens"], first["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert first["latency_ms"] > 0
    assert len({uuid.UUID(one["id"]) for one in found}) == 2


async def test_a_refused_request_of_a_model_is_kept_with_its_reason(tmp_path: Path) -> None:
    async with running(spooling(tmp_path)) as lab:
        await lab.chat(model="phi", max_tokens=100_000)
        await until(lambda: kept(tmp_path))
        (one,) = kept(tmp_path)
        assert one["status"] == 400
        assert one["error"]


async def test_who_is_refused_again_and_again_fills_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_REFUSALS", 3)
    limits = {"limits": {"tiers": {"basic": {"requests_per_minute": 2}}}}
    async with running(spooling(tmp_path) | limits) as lab:
        (_, one), (_, other) = lab.key(tier="basic"), lab.key(tier="basic")
        seen = [(await lab.chat(headers=one)).status_code for _ in range(10)]
        assert seen == [200] * 2 + [429] * 8
        for _ in range(3):
            await lab.chat(headers=other)
        await until(lambda: len(kept(tmp_path)) == 2 + 3 + 2 + 1)
        assert lab.metric("llm_usage_records_dropped_total", reason="refused") == 5


async def test_a_spool_that_is_full_costs_records_and_no_request(tmp_path: Path) -> None:
    async with running(spooling(tmp_path, most_bytes=1000, sync=0.05)) as lab:
        for _ in range(5):
            assert (await lab.chat()).status_code == 200
        assert 1 <= len(kept(tmp_path)) < 5
        assert lab.metric("llm_usage_records_dropped_total", reason="full") == 5 - len(kept(tmp_path))
        # what was taken over makes room again
        for segment in spool.segments(tmp_path):
            segment.unlink()
        await until(lambda: lab.metric("llm_usage_spool_bytes") == 0)


async def test_a_disk_that_takes_nothing_costs_no_request_and_gets_what_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "spool"
    looks: list[Path] = []
    size_of = spool.size_of

    def look(at: Path) -> int:
        looks.append(at)
        return size_of(at)

    monkeypatch.setattr(spool, "size_of", look)
    async with running(spooling(folder, sync=0.05)) as lab:
        await until(folder.is_dir)
        folder.rename(tmp_path / "gone")
        assert (await lab.chat()).status_code == 200
        assert not kept(tmp_path / "gone")
        # its keeper looks for the folder meanwhile, and goes on
        seen = len(looks)
        await until(lambda: len(looks) > seen + 1)
        (tmp_path / "gone").rename(folder)
        await until(lambda: len(kept(folder)) == 1)


async def test_segments_end_and_their_reader_knows_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_SEGMENT", 600)
    async with running(spooling(tmp_path)) as lab:
        for _ in range(6):
            await lab.chat()
        await until(lambda: len(spool.segments(tmp_path)) >= 3)
        oldest, *_ = spool.segments(tmp_path)
        await until(lambda: not spool.is_written(oldest))
    assert not any(spool.is_written(segment) for segment in spool.segments(tmp_path))
    assert len({one["id"] for one in kept(tmp_path)}) == 6
    assert not hidden(tmp_path)


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.gateway.test_spool import spooling
from tests.gateway.harness import running

async def main():
    async with running(spooling(Path(sys.argv[1]), sync=3600.0)) as lab:
        while True:
            answer = await lab.chat()
            print(answer.headers["x-request-id"], flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("answers", [1, 7])
def test_a_gateway_that_is_killed_loses_nothing_that_it_answered(tmp_path: Path, answers: int) -> None:
    # it finds what this process has found
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True, env=paths)
    assert writer.stdout is not None
    told = [writer.stdout.readline().strip() for _ in range(answers)]
    writer.send_signal(signal.SIGKILL)
    told += writer.stdout.read().split()
    writer.wait()
    found = [one["request_id"] for one in kept(tmp_path)]
    assert len(found) == len(set(found))
    assert set(told) <= set(found)
    (segment,) = spool.segments(tmp_path)
    assert not spool.is_written(segment), "the lock of a writer goes with it"


@given(cut=st.integers(min_value=0, max_value=4000), flip=st.none() | st.integers(min_value=0, max_value=3000))
def test_a_torn_or_altered_line_hurts_no_other(
    cut: int, flip: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [b'{"n":%d,"more":"%b"}' % (n, b"x" * (n * 7 % 90)) for n in range(40)]
    whole = bytearray(b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines))
    if flip is not None and flip < len(whole):
        whole[flip] ^= 1
    path = tmp_path_factory.mktemp("torn") / f"{1:020}-1-1.usage"
    path.write_bytes(whole[: len(whole) - min(cut, len(whole))])
    torn: list[int] = []
    found, offset = spool.read(path, 0, 10**6, torn.append)
    complete = path.read_bytes().count(b"\n")
    assert len(torn) <= 2
    assert complete - 2 <= len(found) <= complete
    assert all(one["n"] in range(40) for one in found)
    assert offset == path.read_bytes().rfind(b"\n") + 1


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / f"{1:020}-1-1.usage"
    lines = [b"%d" % n for n in range(10)]
    path.write_bytes(b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines))
    offset = 0
    found: list[Any] = []
    while batch := (read := spool.read(path, offset, 3, lambda _: None))[0]:
        found += batch
        offset = read[1]
    assert found == list(range(10))


async def test_a_disk_that_is_full_in_the_middle_of_a_line_keeps_the_whole_record(tmp_path: Path) -> None:
    """A file may not grow beyond a limit: the last write takes only a part of what it is given."""
    async with running(spooling(tmp_path, sync=0.05)) as lab:
        await lab.chat()
        await until(lambda: len(kept(tmp_path)) == 1)
        size = sum(path.stat().st_size for path in spool.segments(tmp_path))
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limits[1]))
        try:
            answers = [(await lab.chat()).status_code for _ in range(3)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert answers == [200] * 3
        await lab.chat()
        await until(lambda: len(kept(tmp_path)) == 5)


async def test_ids_are_uuids_and_unlike_those_of_another_gateway() -> None:
    one, other = spool.ids(), spool.ids()
    made = [next(each) for _ in range(1000) for each in (one, other)]
    assert len(set(made)) == 2000
    assert {uuid.UUID(ident).version for ident in made} == {8}
    assert {uuid.UUID(ident).variant for ident in made} == {uuid.RFC_4122}


async def test_without_a_spool_nothing_is_written(lab: Lab, tmp_path: Path) -> None:
    await lab.chat()
    await asyncio.sleep(0)
    assert lab.gateway.spool is None
    assert not kept(tmp_path)
