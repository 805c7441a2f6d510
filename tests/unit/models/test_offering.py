"""What a host has of each model, and what it could make."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from citadel import fetch, making, offering
from citadel.needs import Knowledge
from citadel.sources import source_of
from citadel.topology import GIB, Host


def test_what_is_there_what_could_be_and_what_cannot(models: Any, tiny: Path, tmp_path: Path) -> None:
    place = {"kind": "directory", "path": str(tiny / "phi-3-mini")}
    (phi,) = [model for model in models() if model.name == "phi-3-mini"]
    base = phi.weights["bf16"]
    folder, _ = fetch.fetch("phi-3-mini", source_of("phi-3-mini", "", base.revision, place), base.revision, tmp_path)
    made, _ = making.make(folder, base.repository, "int8", making.Workshop(Path(sys.executable)))
    host = Host.sketched(16, 128 * GIB)
    lines = list(offering.lines(models(), host, Knowledge(), tmp_path, {"phi-3-mini": "int8"}))
    found = {tuple(line[2:].split()[:2]): line for line in lines}
    assert len(found) == 12
    assert f"here as {base.revision}" in found["phi-3-mini", "bf16"]
    assert f"here as {made.name}, error 0.7" in found["phi-3-mini", "int8"]
    assert found["phi-3-mini", "int8"].startswith("* ")
    assert f"can be made here of {base.revision}" in found["phi-3-mini", "int4"]
    assert "can be made here of main" in found["hermes-2", "int8"]
    assert "needs AMX" in found["mixtral-8x7b", "int4"]
    assert "can be fetched: mistralai/Mixtral-8x7B-Instruct-v0.1 at 41bd4c9e" in found["mixtral-8x7b", "bf16"]
