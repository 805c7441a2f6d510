"""Checks that a model can start, and says in one sentence why it cannot."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import making, safetensors, store
from .release.services import environment_of
from .release.systemd import Systemctl
from .topology import GIB, nearest_existing, read_meminfo

CACHE_LEAST = GIB  # for compiled kernels


def problems(
    instance: str, environment: Mapping[str, str], config: Path, available: int | None = None
) -> Iterator[str]:
    """Everything that is wrong, the cheapest to look at first."""
    missing = [
        name
        for name in ("CITADEL_ENVIRONMENT", "CITADEL_MODEL", "CITADEL_PORT", "CITADEL_NEED_BYTES", "VLLM_CACHE_ROOT")
        if not environment.get(name)
    ]
    if missing:
        yield f"{instance}.env does not set {', '.join(missing)}; deploy again"
        return
    if not config.is_file():
        yield f"{config} is missing; deploy again"
    whole = Path(environment["CITADEL_ENVIRONMENT"])
    if not (whole / "complete").exists():
        yield f"the environment {whole} is missing or half built; deploy again"
    yield from model_problems(Path(environment["CITADEL_MODEL"]))
    yield from port_problems(environment["CITADEL_PORT"])
    yield from memory_problems(int(environment["CITADEL_NEED_BYTES"]), available)
    cache = nearest_existing(Path(environment["VLLM_CACHE_ROOT"]))
    if shutil.disk_usage(cache).free < CACHE_LEAST:
        yield f"{cache} has less than {CACHE_LEAST // GIB} GiB free for compiled kernels; make room"


def model_problems(folder: Path) -> Iterator[str]:
    try:
        making.made_by(store.verify(folder, deep=False), folder)
        safetensors.describe(folder)
    except (store.StoreError, safetensors.WeightsError, OSError) as error:
        yield str(error)


def port_problems(address: str) -> Iterator[str]:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            yield f"{address} cannot be had: {error.strerror}; `ss -ltnp sport = :{port}` tells who has it"


def memory_problems(need: int, available: int | None) -> Iterator[str]:
    if available is None:
        available = read_meminfo(Path("/proc/meminfo").read_text(encoding="ascii"))["MemAvailable"]
    if available < need:
        yield (
            f"the plan gives this model {need / GIB:.1f} GiB and {available / GIB:.1f} GiB are available; "
            "`make capacity` shows the sum, `systemd-cgtop -m` who has the rest"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", help="which instance is about to start")


def run(arguments: argparse.Namespace) -> int:
    name = arguments.instance
    config = Path(__file__).resolve().parents[2] / "config" / "models" / f"{name}.yml"
    settings = config.with_suffix(".env")
    if not settings.is_file():
        known = ", ".join(sorted(path.stem for path in config.parent.glob("*.env")))
        print(f"{name} cannot start: {settings} is missing; there are {known or 'none'}", file=sys.stderr)
        return 1
    pid = Systemctl().show(f"citadel-llm@{name}.service").pid if "CITADEL_MODEL" not in os.environ else 0
    if pid:
        print(f"{name} runs already, as process {pid}; its port and its memory are its own")
        return 0
    environment = {**environment_of(settings.read_text(encoding="utf-8")), **os.environ}
    found = list(problems(name, environment, config))
    for problem in found:
        print(f"{name} cannot start: {problem}", file=sys.stderr)
    if not found:
        print(f"{name} can start")
    return 1 if found else 0
