"""A model made on the spot, large enough to be bound by memory; its variants as the store makes them; its units."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from citadel import catalogue, fetch, making, safetensors
from citadel.architecture import Architecture
from citadel.sources import source_of
from citadel.topology import GIB, Host
from citadel.variants import hindrance
from lab import tiny_models
from tests.bench.serving.servers import Server
from tests.bench.serving.units import committed, unit

NAME, REVISION = "large", "1"
STANZA = {
    "repository": "made/here",
    "revision": REVISION,
    "context": 2048,
    "batched_tokens": 2048,
    "sequences": 32,
    "concurrent": 64,
    "timeout": 60,
    "kv_cache_gib": 1,
}


class Made:
    def __init__(self, parameters: float, vllm: Path, port: int, work: Path) -> None:
        self.vllm, self.port, self.work = vllm, port, work
        self.store = work / "models"
        self.seconds: dict[str, float] = {}  # variant -> for a GiB of bf16
        self.source = work / "source"
        tiny_models.make_large(parameters, self.source)
        place = {"kind": "directory", "path": str(self.source)}
        fetch.fetch(NAME, source_of(NAME, "", REVISION, place), REVISION, self.store)
        self.stanza = {**STANZA, "source": place, "port": port}
        self.gib = safetensors.describe(self.folder("bf16"))["weight_bytes"] / GIB

    def model(self) -> catalogue.Model:
        defaults = committed()["citadel_models_defaults"]
        (model,) = catalogue.parse(catalogue.complete({NAME: {**self.stanza, "cores": 1}}, defaults))
        return model

    def folder(self, variant: str) -> Path:
        return self.store / NAME / self.model().weights[variant].revision

    def hindrance(self, variant: str) -> str:
        architecture = Architecture.of(safetensors.describe(self.folder("bf16"))["config"])
        return hindrance(self.model(), variant, architecture, Host.here(self.work).processor)

    def make(self, variant: str) -> None:
        began = time.monotonic()
        workshop = making.Workshop(self.vllm / "bin/python")
        making.make(self.folder("bf16"), STANZA["repository"], variant, workshop)  # type: ignore[arg-type]
        self.seconds[variant] = (time.monotonic() - began) / self.gib
        print(f"{variant}: made at {self.seconds[variant]:.1f} s for each GiB of bf16", flush=True)

    def weights(self, variant: str) -> int:
        found: int = safetensors.describe(self.folder(variant))["weight_bytes"]
        return found

    def tuned(self, label: str, variant: str, **engine: Any) -> Server:
        """Served as its unit would."""
        return unit(label, NAME, {**self.stanza, "variant": variant, "engine": engine}, self.vllm, self.work).server
