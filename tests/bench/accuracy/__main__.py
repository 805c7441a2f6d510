"""What our variants cost in accuracy, on a small language model that is trained on the spot.

    python -m tests.bench.accuracy --vllm ENVIRONMENT [--steps 400] [--write]

Random weights would not do: a model that foretells nothing loses nothing. The text is Python's own library, which
every machine has; a part of it is held out and read by vLLM as bfloat16, int8 and int4, made by our maker. Where the
processor has no kernel for int4, its weights are read as the numbers that they stand for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from citadel import accuracy, catalogue, fetch, making, measuring, safetensors, serving
from citadel.accuracy import Report
from citadel.catalogue import Model
from citadel.needs import Knowledge
from citadel.recipes import GROUP
from citadel.settings import Settings
from citadel.sources import source_of
from citadel.topology import Host
from citadel.variants import obstacle
from tests.weights import matrix, rewritten, tensor
from tools.benchmark import machine

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
NAME, REPOSITORY, REVISION = "trained", "made/here", "r1"
HELD_OUT, EACH = 60_000, 3_000  # characters, and of each file
EVERY = 7  # one file in so many is held out
TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"


def corpus() -> tuple[str, str]:
    """What is learned, and what is read later."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    held = "".join(text[:EACH] for text in texts[::EVERY])
    return "".join(text for number, text in enumerate(texts) if number % EVERY), held[:HELD_OUT]


def trained(environment: Path, text: str, folder: Path, steps: int) -> str:
    """A model in `folder`, and a line about it."""
    source = folder.with_suffix(".txt")
    source.write_text(text, encoding="utf-8")
    command: list[str | Path] = [environment / "bin/python", "-W", "ignore", Path(__file__).with_name("train.py")]
    told = ""
    with subprocess.Popen([*command, source, folder, str(steps)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            told = line.strip()
            print(told, flush=True)
    if process.returncode:
        raise SystemExit(f"the training ended with status {process.returncode}")
    return told


def stanza(repository: str = REPOSITORY) -> Model:
    found = yaml.safe_load((ROOT / "group_vars/all/models.yml").read_text(encoding="utf-8"))
    own = {"repository": repository, "revision": REVISION, "port": 11400, "cores": 1, "context": 512}
    own |= {"batched_tokens": 512, "sequences": 1, "concurrent": 1, "timeout": 60}
    (model,) = catalogue.parse(catalogue.complete({NAME: own}, found["citadel_models_defaults"]))
    return model


def coarse(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two bits for each weight: what nobody should serve."""
    groups = weights.reshape(weights.shape[0], -1, GROUP)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / 2
    return np.asarray((np.clip(np.rint(groups / scale), -2, 1) * scale).reshape(weights.shape))


class Trial:
    """The trained model in a store, and how vLLM reads the held-out text as each of its variants."""

    def __init__(self, environment: Path, work: Path, text: str) -> None:
        self.model = stanza()
        self.host = Host.here(work)
        libraries = [one for one in (TCMALLOC, str(environment / "lib/libiomp5.so")) if Path(one).exists()]
        places = serving.Places(str(environment), str(work / "models"), str(work), Settings(libraries=tuple(libraries)))
        self.bench = measuring.Bench(work / "models", places, self.host, tell=print, yields=False, text=text)
        source = source_of(NAME, REPOSITORY, REVISION, {"kind": "directory", "path": str(work / NAME)})
        self.base, _ = fetch.fetch(NAME, source, REVISION, self.bench.root)
        self.original = self.read("bf16", self.base)

    def read(self, variant: str, folder: Path) -> accuracy.Reading:
        weights = replace(self.model.weights[variant], revision=folder.name)
        model = replace(self.model, weights={**self.model.weights, variant: weights})
        details = {f"{NAME}/{one.name}": safetensors.describe(one) for one in (folder, self.base)}
        return measuring.read(model, variant, Knowledge(details), self.bench)

    def report(self, variant: str, folder: Path) -> Report:
        figures: dict[str, Any] = accuracy.compared(self.original, self.read(variant, folder))
        return Report(variant, "", "", str(datetime.now(UTC).date()), **figures)

    def reports(self) -> Iterator[tuple[str, Report, float]]:
        """How it was read, the figures, and the mean error of the matrices."""
        quantised: list[str] = []
        for variant in ("int8", "int4"):
            made, _ = making.make(self.base, REPOSITORY, variant, making.Workshop(Path(sys.executable)))
            errors = json.loads((made / making.ERRORS).read_text(encoding="utf-8"))
            quantised = list(errors["layers"])
            if not obstacle(variant, False, self.host.processor):
                yield f"{variant}, its own kernel", self.report(variant, made), errors["mean"]
                continue
            plain = made.with_name(f"{variant}-as-bf16")
            rewritten(self.base, plain, quantised, lambda name, made=made: matrix(made, name))  # type: ignore[misc]
            yield f"{variant}, its weights as bfloat16", self.report(variant, plain), errors["mean"]
        bad = self.base.with_name("two-bits")
        rewritten(self.base, bad, quantised, lambda name: coarse(tensor(self.base, name)))
        lost = [error(tensor(self.base, name), tensor(bad, name)) for name in quantised]
        yield "2 bits, as a control", self.report("int4", bad), sum(lost) / len(lost)


def error(was: NDArray[Any], now: NDArray[Any]) -> float:
    return float(np.linalg.norm(now - was) / np.linalg.norm(was))


def table(found: list[tuple[str, Report, float]], model: Model, trained: str) -> str:
    first = found[0][1]
    lines = [
        f"{datetime.now(UTC).date()}, {machine()}. A Llama of {trained} of Python's own library reads "
        f"{first.tokens:,} tokens of files that it has not seen. In bfloat16 its perplexity is {first.original:.2f}.",
        "",
        "| | perplexity | against bfloat16 | allowed | same first choice | divergence | error of matrices |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, report, mean in found:
        verdict = "refused" if accuracy.objection(model, report.variant, report) else "served"
        lines.append(
            f"| {name} | {report.perplexity:.2f} | {report.ratio - 1:+.2%} | "
            f"{model.accuracy[report.variant] - 1:+.0%}: {verdict} | {report.agreement:.1%} | "
            f"{report.divergence:.4f} | {mean:.2%} |"
        )
    return "\n".join(lines)


def write(text: str) -> None:
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="environment with vLLM")
    parser.add_argument("--steps", type=int, default=400, help="of training, each of 2048 tokens")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-accuracy-") as folder:
        work = Path(folder)
        learned, held = corpus()
        line = trained(options.vllm, learned, work / NAME, options.steps)
        trial = Trial(options.vllm, work, held)
        found = list(trial.reports())
        text = table(found, trial.model, line)
    print(f"\n{text}")
    if options.write:
        write(text)
    refused = [bool(accuracy.objection(trial.model, report.variant, report)) for _, report, _ in found]
    if refused != [False, False, True]:
        print("the variants should keep their bounds, and the control should not", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
