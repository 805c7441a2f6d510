"""Strange requests without end, beside an innocent client that must see nothing of them.

    PYTHONPATH=gateway/src python -m tests.fuzz --seconds 600   # a gateway of its own, before simulated models
    python -m tests.fuzz --address 10.0.0.2 --key ck_...        # one that is deployed, with real vLLM

A run is repeated by its --seed. It ends with 1 if an answer was neither 200 nor a 4xx that helps, or the innocent
client got anything but 200.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fuzz.matrix import Innocent, Shot, Target, fire_all, random_shots

_BATCH = 40


@contextmanager
def simulated() -> Iterator[Target]:
    """A gateway and its models in a thread of this process."""
    from tests.gateway.harness import running

    ready = threading.Event()
    port = 0
    stop: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def serve() -> None:
        nonlocal port, stop, loop
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        models = {"phi-3-mini": {"capabilities": ["tools"]}}
        async with running(models=models) as lab:
            port = lab.port()
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(30)
    try:
        yield Target("127.0.0.1", port)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def fuzz(target: Target, models: list[str], seconds: float, seed: int) -> tuple[int, int, list[str]]:
    """Shots, questions of the innocent, and complaints."""
    streams: list[Iterator[Shot]] = [random_shots(model, ("chat", "completions"), seed) for model in models]
    deadline = time.monotonic() + seconds
    count, wrong = 0, []
    with Innocent(target, models[0]) as innocent:
        for shots in itertools.cycle(streams):
            if time.monotonic() >= deadline:
                break
            fired, complaints = fire_all(target, itertools.islice(shots, _BATCH))
            count += fired
            wrong += complaints
            for line in complaints:
                print(line, flush=True)
    return count, innocent.asked, wrong + innocent.wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--address", help="of a deployed gateway (default: one of its own, with simulated models)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--key")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    models = arguments.model or ["phi-3-mini"]
    print(f"seed {arguments.seed}, {arguments.seconds:g} s, models {', '.join(models)}", flush=True)
    if arguments.address:
        target = Target(arguments.address, arguments.port, arguments.key)
        count, asked, wrong = fuzz(target, models, arguments.seconds, arguments.seed)
    else:
        with simulated() as target:
            count, asked, wrong = fuzz(target, models, arguments.seconds, arguments.seed)
    print(f"{count} strange requests beside {asked} of an innocent client: {len(wrong)} complaints")
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong or not asked else 0


if __name__ == "__main__":
    sys.exit(main())
