"""What the plan gave each model of a release, beside what it takes now that it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..needs import TOLERANCE, deviation
from ..observed import memory_in_use
from ..placement import gib
from .layout import Layout
from .manifest import Manifest
from .services import environment_of


@dataclass(frozen=True)
class Use:
    model: str
    planned: int
    cache: int  # the part of the plan that fills by and by
    used: int

    @property
    def off(self) -> float:
        return deviation(self.used, self.planned, self.cache)

    @property
    def note(self) -> str:
        """A sentence where the plan was wrong, for whoever deploys."""
        if abs(self.off) <= TOLERANCE:
            return ""
        return (
            f"{self.model}: the capacity plan was off by {self.off:+.0%}, it expected {gib(self.planned)} and "
            f"{gib(self.used)} are in use"
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "off": round(self.off, 3), "note": self.note}


def compare(layout: Layout, manifest: Manifest) -> list[Use]:
    """For every model that runs and whose release says what it was planned with."""
    used = memory_in_use(layout.root / "proc")
    found = []
    for service in manifest.wanted():
        if service.kind == "model" and used.get(service.name):
            file = layout.release(manifest.id) / f"config/models/{service.name}.env"
            said = environment_of(file.read_text(encoding="utf-8"))
            planned, cache = (int(said.get(f"CITADEL_{name}_BYTES", 0)) for name in ("RUNNING", "CACHE"))
            if planned:
                found.append(Use(service.name, planned, cache, used[service.name]))
    return found
