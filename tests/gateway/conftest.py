from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.harness import Lab, running


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with running() as lab:
        yield lab


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """No test leaves a file descriptor open, whatever it did to the connections."""
    before = open_files()
    yield
    for _ in range(100):
        if open_files() <= before + 1:
            return
        await asyncio.sleep(0.01)
    assert open_files() <= before + 1, "file descriptors were left open"
