"""Serving, side by side in one run: vLLM as it comes, as a unit is tuned, with the variants that the store makes, and
llama.cpp built for this processor, all of the same weights.

    python -m tests.bench.serving --vllm ENVIRONMENT --llama FOLDER --gguf ENVIRONMENT [--parameters 0.5e9] [--write]

The model is made on the spot and large enough to be bound by memory. Servers run one after the other; ratios are of
one run on one machine, and only ratios are worth comparing between machines.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from citadel.topology import GIB, Host
from tests.bench.serving import report
from tests.bench.serving.bandwidth import reading
from tests.bench.serving.load import converse, measure
from tests.bench.serving.made import NAME, Made
from tests.bench.serving.report import BF16, CLIENTS, INT4, INT8, Q4, Q8, UNTUNED, Result
from tests.bench.serving.servers import Server, running
from tests.bench.serving.units import api_server

OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# what may win or lose where every turn repeats the turns before
HABITS: Mapping[str, Mapping[str, Any]] = {
    "as the catalogue comes": {},
    "without the cache of prefixes": {"enable-prefix-caching": False},
    "with n-gram speculation": {
        "speculative-config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
    },
}


class Bench:
    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.made = Made(options.parameters, options.vllm, options.port, work)

    def tuned(self, label: str, variant: str) -> tuple[Server, int]:
        return self.made.tuned(label, variant), self.made.weights(variant)

    def untuned(self) -> tuple[Server, int]:
        """vLLM as it comes, but for the room of its cache: its own choice is nearly all memory of the machine."""
        model = ("--model", str(self.made.folder("bf16")), "--served-model-name", NAME)
        command = (*api_server(self.options.vllm), *model)
        more = ("--port", str(self.options.port), "--host", "127.0.0.1", "--kv-cache-memory-bytes", str(GIB))
        cache = str(self.work / "untuned-cache")
        environment = {**OFFLINE, "VLLM_CACHE_ROOT": cache, "HOME": cache}
        server = Server(UNTUNED, (*command, *more), self.options.port, NAME, environment)
        return server, self.made.weights("bf16")

    def llama(self, label: str, kind: str) -> tuple[Server, int]:
        """With a place for each client, every core, and the attention that is fastest."""
        whole, file = self.work / "large.gguf", self.work / f"{kind}.gguf"
        programs = self.options.llama
        if not whole.exists():
            maker = Path(__file__).with_name("gguf_file.py")
            subprocess.run([self.options.gguf / "bin/python", maker, self.made.source, whole], check=True)
        quantise = [programs / "llama-quantize", "--allow-requantize", whole, file, kind]
        subprocess.run(quantise, check=True, capture_output=True)
        cores, clients = str(len(Host.here(self.work).cpus)), max(CLIENTS)
        places = ("--parallel", str(clients), "--ctx-size", str(1024 * clients), "--cont-batching")
        tuned = ("--threads", cores, "--threads-batch", cores, "--flash-attn", "on", "--no-webui")
        command = (str(programs / "llama-server"), "--model", str(file), "--alias", NAME, "--host", "127.0.0.1")
        return Server(label, (*command, "--port", str(self.options.port), *places, *tuned), self.options.port, NAME), (
            file.stat().st_size
        )

    def contenders(self) -> Iterator[tuple[str, Any]]:
        """Each is made when its turn has come; a text says why it is not there."""
        yield UNTUNED, self.untuned
        yield BF16, lambda: self.tuned(BF16, "bf16")
        for label, variant in ((INT8, "int8"), (INT4, "int4")):
            yield label, self.made.hindrance(variant) or (lambda l=label, v=variant: self.tuned(l, v))  # noqa: E741
        for label, kind in ((Q8, "Q8_0"), (Q4, "Q4_0")):
            yield label, lambda l=label, k=kind: self.llama(l, k)  # noqa: E741

    def trial(self, label: str, make: Any) -> Result:
        if isinstance(make, str):
            print(f"{label}: {make}", flush=True)
            return Result(0, missing=make)
        server, weights = make()
        result = Result(weights)
        for start in (1, 2) if label in (UNTUNED, BF16) else (1,):
            with running(server, self.log(label)) as run:
                result.starts.append(run.seconds)
                print(f"{label}: start {start} took {run.seconds:.1f} s", flush=True)
                if start == 1 and label in (UNTUNED, BF16):
                    continue  # only to fill what it keeps between starts
                self.load(server, result)
                result.memory = run.memory()
        return result

    def log(self, label: str) -> Path:
        return self.work / f"{label}.log".replace(" ", "-")

    def load(self, server: Server, result: Result) -> None:
        measure(server.port, server.model, 2, 1, 8)
        for clients in CLIENTS:
            turns = self.options.turns if clients > 1 else 2 * self.options.turns
            seen = measure(server.port, server.model, clients, turns, self.options.tokens)
            result.seen[clients] = seen
            figures = f"{seen.per_second:.1f} tokens/s, first token {seen.first_token:.2f} s"
            print(f"{server.name}: {clients} clients, {figures}", flush=True)

    def conversations(self) -> list[str]:
        """Four clients at once, whose every turn begins with all that was said before."""
        lines = ["| int8, four conversations of four turns | tokens/s | first token |", "|---|---|---|"]
        for label, engine in HABITS.items():
            server = self.made.tuned(label, "int8", **engine)
            try:
                with running(server, self.log(label)):
                    measure(server.port, server.model, 2, 1, 8)
                    seen = converse(server.port, server.model, 4, 4, self.options.tokens)
            except RuntimeError as error:
                lines.append(f"| {label} | does not start: {str(error).strip().splitlines()[-1][:160]} | |")
            else:
                lines.append(f"| {label} | {seen.per_second:.1f} | {seen.first_token:.2f} s |")
            print(lines[-1], flush=True)
        return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="environment with vLLM")
    parser.add_argument("--llama", type=Path, required=True, help="folder with llama.cpp's programs")
    parser.add_argument("--gguf", type=Path, required=True, help="environment with gguf and numpy")
    parser.add_argument("--parameters", type=float, default=0.5e9)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--port", type=int, default=21490)
    parser.add_argument("--only", help="servers whose names contain this, and no table; `conversations` for these")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-serving-"))
    try:
        bench = Bench(options, work)
        only = options.only or ""
        for variant, users in {"int8": (INT8, "conversations"), "int4": (INT4,)}.items():
            if any(only in user for user in users):
                bench.made.make(variant)
        cores = len(Host.here(work).cpus)
        ceiling = reading(cores)
        results = {label: bench.trial(label, make) for label, make in bench.contenders() if only in label}
        spoken = bench.conversations() if only in "conversations" else []
        if only:
            return 0
    finally:
        shutil.rmtree(work)
    made = ", ".join(f"{variant} {seconds:.1f} s" for variant, seconds in bench.made.seconds.items())
    told = [
        f"{report.here()}; a random Mistral of {bench.made.gib * GIB / 2e9:.2f} billion parameters. {cores} cores pull "
        f"{ceiling / 1e9:.1f} GB/s from memory, which is the ceiling: a token of one client reads all weights once. "
        f"Making a variant takes, for each GiB of bf16: {made}.",
    ]
    text = "\n".join([report.written(results, ceiling, told), "", *spoken])
    print(f"\n{text}")
    if options.write:
        report.draw(results)
        report.write("serving", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
