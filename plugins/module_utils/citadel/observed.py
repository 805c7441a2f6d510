"""What the instances of a running host really take."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .needs import Measured

UNIT = re.compile(r"citadel-llm@(?P<instance>[^/]+)\.service")
LOAD_SECONDS = "load-seconds.json"  # written by a release that proved its models


def observe(state: Path, proc: Path = Path("/proc")) -> dict[str, Measured]:
    memory, loads = memory_in_use(proc), load_seconds(state)
    return {instance: Measured(memory.get(instance, 0), loads.get(instance, 0.0)) for instance in {*memory, *loads}}


def memory_in_use(proc: Path) -> dict[str, int]:
    """Proportional set sizes, so that libraries which several models share are counted once in all."""
    found: dict[str, int] = {}
    for folder in proc.glob("[0-9]*"):
        try:
            unit = UNIT.search((folder / "cgroup").read_text(encoding="utf-8"))
            if unit:
                size = proportional((folder / "smaps_rollup").read_text(encoding="ascii"))
                found[unit["instance"]] = found.get(unit["instance"], 0) + size
        except OSError:
            continue  # a process that ended while it was looked at
    return found


def proportional(rollup: str) -> int:
    line = next((line for line in rollup.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
    return int(line.split()[1]) * 1024


def load_seconds(state: Path) -> dict[str, float]:
    try:
        found = json.loads((state / LOAD_SECONDS).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}
