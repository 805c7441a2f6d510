"""Measures what a variant costs: vLLM reads a text as the original and as the variant, one after the other.

With the options, the environment and the kernels of a unit, in a process that lets everything else go first. A variant
that cannot be run here gets a report that says why; what was lost of its matrices stands in `citadel-errors.json`.
"""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import accuracy, fetch, passages, safetensors, serving, store
from .accuracy import Reading, Report
from .catalogue import VARIANTS, Model
from .needs import Knowledge, Need, needs_of_model
from .placement import Placed, gib
from .sources import MANIFEST, source_of
from .topology import Host, read_meminfo
from .variants import hindrance

if TYPE_CHECKING:
    from . import evaluator  # noqa: F401 Ansible sends what is imported, and this has to be sent

WINDOW = 512  # tokens that are read at once
TOP = 64  # candidates whose probabilities are compared


class MeasureError(RuntimeError):
    """Nothing was measured; the message says what to do."""


@dataclass(frozen=True)
class Bench:
    """Where it is done, as whom, on which host, and whom to tell how far it is."""

    root: Path
    places: serving.Places  # its cache is a folder to work in
    host: Host
    user: str = ""
    source: Mapping[str, str] | None = None
    tell: Callable[[str], None] = lambda line: None
    yields: bool = True  # to whatever else runs here
    text: str = passages.TEXT


def measure(model: Model, bench: Bench) -> Iterator[Report]:
    """A report for each variant of the model that the store has, written beside its manifest."""
    found = [one for one in VARIANTS[1:] if one in model.weights and (folder(model, one, bench) / MANIFEST).exists()]
    if not found:
        there = ", ".join(sorted(path.parent.name for path in (bench.root / model.name).glob(f"*/{MANIFEST}")))
        raise MeasureError(
            f"{model.name}: the store has no variant of it to measure, only {there or 'nothing'}; deploy one, or "
            "make it by hand as docs/models.md says"
        )
    knowledge = Knowledge(details_of(model, found, bench))
    original: Reading | None = None
    for variant in found:
        target = folder(model, variant, bench)
        report = Report(variant, store.digest_of(store.verify(target, deep=False)), text=passages.DIGEST)
        reason = obstacle(model, variant, knowledge, bench)
        if reason:
            report = replace(report, reason=reason)
        else:
            original = original or read(model, "bf16", knowledge, bench)
            figures: dict[str, Any] = accuracy.compared(original, read(model, variant, knowledge, bench))
            today = datetime.now(UTC).date().isoformat()
            report = replace(report, measured=today, engine=bench.places.environment, **figures)
        accuracy.write(target, report)
        yield report


def folder(model: Model, variant: str, bench: Bench) -> Path:
    return bench.root / model.name / model.weights[variant].revision


def details_of(model: Model, variants: list[str], bench: Bench) -> dict[str, dict[str, Any]]:
    """What the files say. The original has the shape of a variant, as long as it is not here itself."""
    found = {variant: safetensors.describe(folder(model, variant, bench)) for variant in variants}
    try:
        found["bf16"] = safetensors.describe(folder(model, "bf16", bench))
    except (safetensors.WeightsError, OSError):
        found["bf16"] = {"config": found[variants[0]]["config"]}
    return {f"{model.name}/{model.weights[variant].revision}": told for variant, told in found.items()}


def need_of(model: Model, variant: str, knowledge: Knowledge) -> Need:
    """What a unit would need that serves one window at a time."""
    window = replace(model, context=WINDOW + 1, batched_tokens=WINDOW + 1, sequences=1, kv_cache_gib=0.0)
    return needs_of_model(window, variant, knowledge)[0]


def obstacle(model: Model, variant: str, knowledge: Knowledge, bench: Bench) -> str:
    """Why the two cannot be run here, one after the other; empty if they can."""
    needs = [need_of(model, one, knowledge) for one in ("bf16", variant)]
    problem = hindrance(model, variant, needs[0].architecture, bench.host.processor)
    if problem:
        return f"{problem}, which this host has not got"
    most = max(need.total for need in needs)
    available = read_meminfo(Path("/proc/meminfo").read_text(encoding="ascii"))["MemAvailable"]
    if most > available:
        return (
            f"reading the text takes {gib(most)} and {gib(available)} are available; stop a model for that time, or "
            "measure on a host with more"
        )
    return ""


def read(model: Model, variant: str, knowledge: Knowledge, bench: Bench) -> Reading:
    """How vLLM reads the text with these weights."""
    if variant == "bf16":
        fetch_original(model, bench)
    need = need_of(model, variant, knowledge)
    place = Placed(need, 0, bench.host.cpus, 0)
    with tempfile.TemporaryDirectory(prefix=".measuring-", dir=bench.places.cache) as work:
        if bench.user:
            shutil.chown(work, bench.user)
        places = replace(bench.places, cache=work)
        order = {
            "options": {**serving.options(place, places), "max-logprobs": TOP},
            "text": bench.text,
            "window": WINDOW,
            "top": TOP,
            "yields": bench.yields,
        }
        environment = {**serving.environment(place, places), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        with (Path(work) / "log").open("w+", encoding="utf-8") as log:
            return Engine(f"{model.name} as {variant}", bench).read(order, environment, log)


def fetch_original(model: Model, bench: Bench) -> None:
    """The store keeps what a variant was made of only until the next release is committed."""
    weights = model.weights["bf16"]
    try:
        store.verify(folder(model, "bf16", bench), deep=False)
    except store.StoreError:
        source = source_of(model.name, weights.repository, weights.revision, {**(bench.source or {}), **weights.source})
        fetch.fetch(model.name, source, weights.revision, bench.root, bench.tell)


class Engine:
    """One process of vLLM that reads the text."""

    def __init__(self, name: str, bench: Bench) -> None:
        self.name, self.bench = name, bench

    def read(self, order: Mapping[str, Any], environment: Mapping[str, str], log: IO[str]) -> Reading:
        program = pkgutil.get_data(__package__, "evaluator.py") or b""
        command = [f"{self.bench.places.environment}/bin/python", "-W", "ignore", "-c", program.decode()]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(log.name).parent,
            env={"PATH": os.environ.get("PATH", ""), **environment},
            user=self.bench.user or None,
            group=self.bench.user or None,
            extra_groups=[] if self.bench.user else None,
        ) as process:
            assert process.stdin and process.stdout  # noqa: S101 they are pipes
            self.bench.tell(f"{self.name}: vLLM starts")
            try:
                json.dump(order, process.stdin)
                process.stdin.close()
                reading = self.follow(process.stdout)
            except (OSError, ValueError, KeyError):
                process.kill()
                reading = Reading()
        if process.returncode or not reading.tokens:
            raise MeasureError(f"{self.name} could not read the text: {self.last_words(process.returncode, log)}")
        return reading

    def follow(self, answers: IO[str]) -> Reading:
        reading, began = Reading(), time.monotonic()
        total = json.loads(answers.readline())["windows"]
        for number, line in enumerate(answers, start=1):
            reading.add(json.loads(line))
            left = (time.monotonic() - began) / number * (total - number)
            self.bench.tell(f"{self.name}: {number} of {total} windows read, {left:.0f} s to go")
        return reading

    @staticmethod
    def last_words(status: int, log: IO[str]) -> str:
        log.seek(0)
        words = next((line.strip() for line in reversed(log.read().splitlines()) if line.strip()), "it said nothing")
        return f"vLLM was ended by signal {-status}, perhaps for want of memory" if status < 0 else words[:500]
