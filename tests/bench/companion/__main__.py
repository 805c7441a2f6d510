"""`make bench-companion`: what the gateway loses to its second half, and how quick that is.

python -m tests.bench.companion [--seconds 6] [--write] [--python P] [--compiled F]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from citadel_companion.postgres import Postgres
from citadel_companion.shipping import Shipper
from tests.bench.companion import searching, sharing
from tests.bench.gateway.__main__ import WHOLE, backends, load
from tests.bench.gateway.contenders import (
    CONTENDERS,
    GATEWAY_CORE,
    LOAD_CORE,
    MODEL,
    PORT,
    ROOT,
    RUNTIME,
    Contender,
    Missing,
    Running,
    citadel_with,
)
from tests.bench.gateway.report import write
from tests.companion.databases import Cluster, running
from tools import benchmark

ROUNDS = 3
CONNECTIONS = 16
RECORDS, OF_A_SEGMENT = 100_000, 20_000
AIM_RECORD, AIM_SHIPPED, AIM_KEPT = 3.0, 5000, 0.95
CACHED = {"x-allow-cache": "true"}


def with_usage(folder: Path) -> str:
    return f"usage: {{folder: {folder / 'spool'}}}"


def with_companion(folder: Path) -> str:
    return f"companion: {{socket: {folder / 'companion.sock'}, routes: [/v1/vectors/*]}}"


@contextlib.contextmanager
def companion(folder: Path, cluster: Cluster, **more: Any) -> Iterator[None]:
    """Beside the load, so that it takes nothing from the gateway's core."""
    config = cluster.config(cluster.database(), folder).model_dump(exclude_none=True, exclude_defaults=True)
    config |= {"socket": str(folder / "companion.sock"), "spool": str(folder / "spool"), **more}
    file = folder / "companion.yml"
    file.write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        ["taskset", "-c", str(LOAD_CORE), RUNTIME.python, "-m", "citadel_companion", "--config", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "gateway" / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def rate(contender: Contender, folder: Path, seconds: float, cluster: Cluster | None = None) -> float:
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(Running(contender, folder, WHOLE))
        if cluster is not None:
            stack.enter_context(companion(folder, cluster))
        load(PORT, 1024, CONNECTIONS, at.headers, 1)
        return load(PORT, 1024, CONNECTIONS, at.headers, seconds)["rate"]


def rates(folder: Path, seconds: float, cluster: Cluster) -> dict[str, float]:
    """The best of some rounds, in each of which everybody had their turn."""
    bare = CONTENDERS["citadel-gateway"]
    usage = citadel_with("with usage", with_usage)
    found: dict[str, float] = {}
    for number in range(ROUNDS):
        for name, contender, beside in (
            ("everything off", bare, None),
            ("usage kept", usage, None),
            ("usage kept and shipped meanwhile", usage, cluster),
        ):
            one = rate(contender, folder / f"{number}-{name}", seconds, beside)
            print(f"  {name}: {one:,.0f}/s", flush=True)
            found[name] = max(found.get(name, 0.0), one)
    return found


def hits(folder: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Of the cache: the same question again and again, and the same without asking it."""
    cached = citadel_with("with a cache", lambda _: "cache: {policy: on_request}")
    found: dict[str, dict[str, float]] = {}
    folder.mkdir()
    with Running(cached, folder / "gateway", WHOLE) as at:
        for _ in range(ROUNDS):
            for name, more in (("asked", CACHED), ("not asked", {})):
                for connections in (1, CONNECTIONS):
                    one = load(PORT, 1024, connections, at.headers | more, seconds / 2)
                    known = found.setdefault(f"{name} {connections}", one)
                    if one["rate"] > known["rate"]:
                        found[f"{name} {connections}"] = one
    return found


def searches(folder: Path, cluster: Cluster) -> dict[str, float]:
    folder.mkdir()
    (folder / "spool").mkdir()
    contender = citadel_with("with a companion", with_companion)
    vectors = {
        "url": f"http://127.0.0.1:{searching.QDRANT}",
        "collections": {MODEL: {"name": f"{MODEL}_embeddings", "size": searching.SIZE}},
    }
    qdrant = searching.engine(folder / "qdrant")
    try:
        with Running(contender, folder, WHOLE) as at, companion(folder, cluster, vectors=vectors):
            return searching.measure(at.headers)
    finally:
        qdrant.terminate()
        qdrant.wait(30)


def record() -> dict[str, float]:
    paths = os.pathsep.join([RUNTIME.paths, str(ROOT / "gateway" / "src"), str(ROOT)])
    done = subprocess.run(
        ["taskset", "-c", str(GATEWAY_CORE), RUNTIME.python, "-m", "tests.bench.companion.record"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def spooled(folder: Path) -> None:
    """What a gateway would have written, of ten users and two models."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(RECORDS):
        told = {
            **{"id": str(uuid.UUID(int=number + 1)), "request_id": f"req-bench-{number:x}", "time": time.time()},
            **{
                "model": f"{MODEL}-{number % 2}",
                "replica": MODEL,
                "endpoint": "chat",
                "user": f"key:{number % 10:08x}",
            },
            **{"tier": "default", "address": "192.0.2.1", "stream": False, "status": 200, "error": None},
            **{"prompt_tokens": 200, "completion_tokens": 50, "cached_tokens": 0, "exact": True, "charged": 250},
            **{"latency_ms": 812.5, "queue_ms": 0.1, "first_ms": 41.2, "retries": 0},
        }
        text = json.dumps(told, separators=(",", ":")).encode()
        lines.append(b"%08x %b\n" % (zlib.crc32(text), text))
    for start in range(0, RECORDS, OF_A_SEGMENT):
        path = folder / f"{time.time_ns():020d}-1-{start}.usage"
        path.write_bytes(b"".join(lines[start : start + OF_A_SEGMENT]))


def shipped(folder: Path, cluster: Cluster) -> float:
    """Records a second, by a companion that has a core for itself."""
    spooled(folder / "spool")
    config = cluster.config(cluster.database(), folder)
    assert config.database is not None
    store = Postgres(config, config.database)
    store.prepare()
    shipper = Shipper(folder / "spool", store, {})
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {GATEWAY_CORE})
    began = time.monotonic()
    shipper.ship(lambda: False)
    seconds = time.monotonic() - began
    os.sched_setaffinity(0, before)
    store.close()
    assert shipper.shipped == RECORDS
    return RECORDS / seconds


def section(found: dict[str, Any]) -> str:
    off = found["rates"]["everything off"]
    lines = [
        f"{benchmark.machine()}, {datetime.now(UTC).date()}, load average {found['load']} before. "
        f"`make bench-companion`, everything in one run: the gateway has a core to itself, {CONNECTIONS} connections "
        "ask for whole answers of a kilobyte, the best of three rounds. PostgreSQL 15 on a socket, with fsync.",
        "",
        "| gateway | requests/s | of everything off |",
        "|---|---|---|",
        *(f"| {name} | {one:,.0f} | {one / off:.3f} |" for name, one in found["rates"].items()),
        "",
        "| what | measured | aim |",
        "|---|---|---|",
        f"| usage on and shipped, of the rate with everything off | {min(found['rates'].values()) / off:.3f} | "
        f"at least {AIM_KEPT} |",
        f"| a record, ten in a turn of the loop | {found['record']['10']:.1f} µs | under {AIM_RECORD:.0f} µs |",
        f"| a record, alone in its turn, with a write to the kernel | {found['record']['1']:.1f} µs | |",
        f"| records shipped to PostgreSQL a second, on one core | {found['shipped']:,.0f} | at least {AIM_SHIPPED:,} |",
    ]
    cache, shared, search = found["cache"], found["shared"], found["search"]
    hit, bare = cache[f"asked {CONNECTIONS}"], cache[f"not asked {CONNECTIONS}"]
    added = search["through"] - search["alone"]
    lines += [
        f"| cache: rate of hits, of that of a model server that answers at once | {hit['rate'] / bare['rate']:.2f} | "
        "at least 0.8 |",
        f"| cache: median of a hit on one connection, on {CONNECTIONS} | {cache['asked 1']['p50']:.2f} ms, "
        f"{hit['p50']:.2f} ms | under 1 ms |",
        f"| two gateways that share limits, requests a second | {shared['shared']['rate']:,.0f}, "
        f"{shared['shared']['rate'] / shared['own']['rate']:.2f} of what they do without | at least 5,000 |",
        f"| ... of the processor for a request: in a gateway, in Redis | {shared['shared']['gateway']:.0f} µs "
        f"({shared['own']['gateway']:.0f} µs without), {shared['shared']['redis']:.0f} µs | |",
        f"| a search among {searching.POINTS:,} vectors: added to {search['alone']:.1f} ms of the engine | "
        f"{added:.1f} ms | under 3 ms |",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each rate")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--python", help="for the gateway, as it is deployed")
    parser.add_argument("--compiled", help="what tools/toolchain.py makes of the gateway")
    told = parser.parse_args()
    RUNTIME.python = told.python or RUNTIME.python
    RUNTIME.paths = told.compiled or RUNTIME.paths
    folder = Path(tempfile.mkdtemp(prefix="bench-companion-"))
    found: dict[str, Any] = {"load": f"{os.getloadavg()[0]:.2f}"}
    try:
        with running(durable=True) as cluster, backends(folder):
            found["record"] = record()
            found["shipped"] = shipped(folder / "shipped", cluster)
            print(f"  {found['shipped']:,.0f} records/s shipped", flush=True)
            found["rates"] = rates(folder, told.seconds, cluster)
            found["cache"] = hits(folder / "cache", told.seconds)
            found["shared"] = sharing.compare(folder / "shared", told.seconds / 2)
            found["search"] = searches(folder / "search", cluster)
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = section(found)
    print(text)
    if told.write:
        write("companion", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
