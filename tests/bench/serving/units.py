"""A stanza as the unit of its model gets it: the same plan, options and environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from citadel import capacity, catalogue, safetensors, serving
from citadel.catalogue import Model
from citadel.needs import Knowledge
from citadel.settings import Settings
from citadel.topology import Host
from tests.bench.serving.servers import Server

ROOT = Path(__file__).resolve().parents[3]
TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"


@dataclass(frozen=True)
class Unit:
    model: Model
    instance: Mapping[str, Any]
    server: Server
    cores: int


def committed() -> dict[str, Any]:
    """The catalogue as it comes."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "group_vars/all/models.yml").read_text(encoding="utf-8"))
    return found


def unit(label: str, model: str, stanza: Mapping[str, Any], environment: Path, work: Path) -> Unit:
    """`work`/models is the store that it is served from; the stanza gets all cores of this machine."""
    host = Host.here(work)
    whole = catalogue.complete({model: {**stanza, "cores": len(host.cpus)}}, committed()["citadel_models_defaults"])
    parsed = catalogue.parse(whole)
    details = {
        f"{model}/{weights.revision}": safetensors.describe(folder)
        for weights in parsed[0].weights.values()
        if (folder := work / "models" / model / weights.revision).is_dir()
    }
    (placed,) = capacity.plan(parsed, host, Settings(reserve_gib=1), Knowledge(details)).placed
    libraries = (TCMALLOC, str(environment / "lib/libiomp5.so"))
    places = serving.Places(
        environment=str(environment),
        models=str(work / "models"),
        cache=str(work / "cache"),
        settings=Settings(libraries=tuple(path for path in libraries if Path(path).exists()), drain=5),
    )
    instance = serving.instance(placed, places)
    config = work / f"{label}.yml".replace(" ", "-")
    config.write_text(yaml.safe_dump(dict(instance["options"])))
    command = ("taskset", "-c", instance["cpus"], *api_server(environment), "--config", str(config))
    server = Server(label, command, instance["port"], model, instance["environment"])
    return Unit(parsed[0], instance, server, len(placed.cpus))


def api_server(environment: Path) -> tuple[str, ...]:
    return (str(environment / "bin/python"), "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server")
