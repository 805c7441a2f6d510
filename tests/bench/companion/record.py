"""What one record costs the gateway's loop, in microseconds: python -m tests.bench.companion.record

The best of many short runs: alone in a turn of the loop, with a write of its own, and ten in a turn, as under load.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from typing import Any

from tests.gateway.harness import running

RUNS, EACH = 100, 100


async def measure() -> dict[int, float]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        async with running({"usage": {"folder": folder}}) as lab:
            seen: list[Any] = []
            lab.gateway.recorder.sinks.append(seen.append)
            await lab.chat()
            assert lab.gateway.spool is not None
            keep, write = lab.gateway.spool.sink(), lab.gateway.spool._write
            for count in (1, 10):
                best = float("inf")
                for _ in range(RUNS):
                    began = time.perf_counter()
                    for _ in range(EACH):
                        for _ in range(count):
                            keep(seen[0])
                        write()
                    best = min(best, (time.perf_counter() - began) / (EACH * count))
                    await asyncio.sleep(0)
                found[count] = best * 1e6
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
