"""Serving, side by side in one run: the tuned unit, vLLM as it comes, and llama.cpp's server on the same weights.

    python -m tests.bench.serving --vllm ENVIRONMENT [--llama ENVIRONMENT] [--parameters 0.5e9] [--write]

The model is made on the spot and large enough to be bound by memory. Servers run one after the other; ratios are of
one run on one machine, and only ratios are worth comparing between machines.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from citadel import capacity, catalogue, safetensors, serving
from citadel.needs import Knowledge
from citadel.settings import Settings
from citadel.topology import GIB, Host
from lab import tiny_models
from tests.bench.serving.bandwidth import reading
from tests.bench.serving.load import Seen, measure
from tests.bench.serving.servers import Server, running

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- serving: begin -->", "<!-- serving: end -->"
CLIENTS = (1, 4, 16)
TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
KV_BYTES = GIB


@dataclass
class Result:
    starts: list[float] = field(default_factory=list)
    seen: dict[int, Seen] = field(default_factory=dict)


def tuned(folder: Path, environment: Path, work: Path, port: int, options: Mapping[str, Any]) -> tuple[Server, int]:
    """Told what a unit is told: by the same plan, options and environment; and the cores that compute."""
    stanza = {
        "repository": "made/here",
        "revision": "large",
        "kind": "chat",
        "port": port,
        "replicas": 1,
        "cores": len(Host.here(work).cpus),
        "context": 2048,
        "batched_tokens": 2048,
        "sequences": 32,
        "concurrent": 64,
        "timeout": 60,
        "kv_cache_gib": KV_BYTES / GIB,
        "variant": "bf16",
        "generation": {},
        "engine": dict(options),
    }
    model = catalogue.parse({"large": stanza})
    knowledge = Knowledge(details={"large/large": safetensors.describe(folder)})
    (placed,) = capacity.plan(model, Host.here(work), Settings(reserve_gib=1), knowledge).placed
    places = serving.Places(
        environment=str(environment),
        models=str(work),
        cache=str(work / "cache"),
        settings=Settings(
            libraries=tuple(path for path in (TCMALLOC, str(environment / "lib/libiomp5.so")) if Path(path).exists()),
            drain=5,
        ),
    )
    instance = serving.instance(placed, places)
    config = work / "tuned.yml"
    config.write_text(yaml.safe_dump({**instance["options"], "model": str(folder)}))
    command = ("taskset", "-c", instance["cpus"], *api_server(environment), "--config", str(config))
    return Server("tuned", command, port, environment=instance["environment"]), len(placed.cpus)


def default_engine() -> dict[str, Any]:
    """What the catalogue gives to every model."""
    text = (ROOT / "group_vars/all/models.yml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["citadel_models_defaults"]["engine"]
    return found


def api_server(environment: Path) -> tuple[str, ...]:
    return (str(environment / "bin/python"), "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server")


def untuned(folder: Path, environment: Path, work: Path, port: int) -> Server:
    """vLLM as it comes, but for the room of its cache: its own choice is nearly all memory of the machine."""
    command = (*api_server(environment), "--model", str(folder), "--served-model-name", "large", "--port", str(port))
    return Server(
        "untuned",
        (*command, "--host", "127.0.0.1", "--kv-cache-memory-bytes", str(KV_BYTES)),
        port,
        environment={**OFFLINE, "VLLM_CACHE_ROOT": str(work / "untuned-cache"), "HOME": str(work / "untuned-cache")},
    )


def llama(folder: Path, environment: Path, work: Path, port: int, threads: int) -> Server:
    file = work / "large.gguf"
    python = str(environment / "bin/python")
    here = Path(__file__).parent
    subprocess.run([python, str(here / "gguf_file.py"), str(folder), str(file)], check=True)
    command = (python, str(here / "llama_server.py"), str(file), str(port), str(threads), str(max(CLIENTS)))
    return Server("llama.cpp", command, port)


def trial(server: Server, work: Path, tokens: int, turns: int) -> Result:
    result = Result()
    for start in (1, 2):
        with running(server, work / f"{server.name}.log") as seconds:
            result.starts.append(seconds)
            print(f"{server.name}: start {start} took {seconds:.1f} s", flush=True)
            if start == 1 and server.name != "llama.cpp":
                continue  # only to fill what it keeps between starts
            measure(server.port, server.model, 2, 1, 8)
            for clients in CLIENTS:
                seen = measure(server.port, server.model, clients, turns if clients > 1 else 2 * turns, tokens)
                result.seen[clients] = seen
                figures = f"{seen.per_second:.1f} tokens/s, first token {seen.first_token:.2f} s"
                print(f"{server.name}: {clients} clients, {figures}", flush=True)
            if start == 1:
                break
    return result


def table(results: Mapping[str, Result], active: int, ceiling: float, threads: int) -> str:
    lines = [
        f"{datetime.now(UTC).date()}, one run on {cpu()}, {os.cpu_count()} cores; a random Mistral of "
        f"{active / 2e9:.2f} billion parameters in bfloat16, which is {active / 1e9:.2f} GB to read for each token. "
        f"{threads} compute thread(s) pull "
        f"{ceiling / 1e9:.1f} GB/s, so one sequence cannot be faster than {ceiling / active:.1f} tokens/s.",
        "",
        "| | ready, first start | ready again | " + " | ".join(f"{n} client{'s' * (n > 1)}" for n in CLIENTS) + " |",
        "|---|---|---|" + "---|" * len(CLIENTS),
    ]
    for name, result in results.items():
        again = f"{result.starts[1]:.0f} s" if len(result.starts) > 1 else "-"
        cells = [f"{one.per_second:.1f} tokens/s, first after {one.first_token:.2f} s" for one in result.seen.values()]
        lines.append(f"| {name} | {result.starts[0]:.0f} s | {again} | {' | '.join(cells)} |")
    own = results["tuned"]
    for name, other in results.items():
        if name == "tuned":
            continue
        ratios = [f"{own.seen[n].per_second / other.seen[n].per_second:.2f} x" for n in CLIENTS]
        again = f"{own.starts[-1] / other.starts[-1]:.2f} x" if len(other.starts) > 1 else "-"
        lines.append(f"| tuned / {name} | {own.starts[0] / other.starts[0]:.2f} x | {again} | {' | '.join(ratios)} |")
    share = own.seen[1].per_second * active / ceiling
    lines += ["", f"Share of the bandwidth ceiling that the tuned unit reaches with one client: {share:.0%}."]
    return "\n".join(lines)


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(text: str) -> None:
    content = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else "# Benchmarks\n"
    if BEGIN not in content:
        content = f"{content.rstrip()}\n\n## Serving\n\n`make bench-serving` writes this section.\n\n{BEGIN}\n{END}\n"
    before, _, rest = content.partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="environment with vLLM")
    parser.add_argument("--llama", type=Path, help="environment with xllamacpp, gguf and numpy")
    parser.add_argument("--parameters", type=float, default=0.5e9)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--port", type=int, default=21490)
    parser.add_argument(
        "--engine", type=yaml.safe_load, default=None, help="options instead of the catalogue's, as YAML"
    )
    parser.add_argument("--only", help="just this one, and no table")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-serving-"))
    try:
        folder = work / "large"
        tiny_models.make_large(options.parameters, folder)
        active = safetensors.describe(folder)["weight_bytes"]
        engine = default_engine() if options.engine is None else options.engine
        first, threads = tuned(folder, options.vllm, work, options.port, engine)
        servers = [first, untuned(folder, options.vllm, work, options.port)]
        if options.llama:
            servers.append(llama(folder, options.llama, work, options.port, threads))
        ceiling = reading(threads)
        results = {
            server.name: trial(server, work, options.tokens, options.turns)
            for server in servers
            if options.only in (None, server.name)
        }
        if options.only:
            return 0
        text = table(results, active, ceiling, threads)
    finally:
        shutil.rmtree(work)
    print(f"\n{text}")
    if options.write:
        write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
