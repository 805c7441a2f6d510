"""The contract of an LLM host: what everybody else on the network may rely on.

It follows from the catalogue and the variables of the host alone, so every play can read it, whether the host is
there or not. What only a plan on the host can know, such as the variant that fits, is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .architecture import Architecture
from .catalogue import Model
from .known_models import KNOWN_MODELS

# what listens on an LLM host besides the models
SERVICES = {
    "api": "the gateway",
    "management": "the management interface",
    "health": "the health port",
    "export": "the metrics export",
    "node": "the node exporter",
}

# What Prometheus asks of an LLM host. The names are the estate's; rules and dashboards select by them.
MODELS, GATEWAY, HOST = "citadel-llm-models", "citadel-llm-gateway", "citadel-llm-server"
JOBS = (MODELS, GATEWAY, HOST)
HOST_SLOWER = 2  # the host is asked half as often as what serves
LONGEST_SCRAPE = 10


class ContractError(ValueError):
    """Ports that can't be meant."""


@dataclass(frozen=True)
class Instance:
    name: str
    port: int


@dataclass(frozen=True)
class Service:
    """One model, as clients, dashboards and databases know it."""

    name: str
    kind: str
    aliases: tuple[str, ...]
    context: int
    endpoints: tuple[str, ...]
    capabilities: tuple[str, ...]
    objectives: Mapping[str, Any]
    vector_size: int  # 0: no embeddings, or known once its files are on the host
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class Target:
    """What Prometheus asks for: a path at an address, and what it calls the answer."""

    job: str
    address: str
    path: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Contract:
    host: str
    address: str
    ports: Mapping[str, int]
    models: Mapping[str, Service]
    tls: bool

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "url": self.url, "scraped": [asdict(each) for each in self.scraped]}

    @property
    def url(self) -> str:
        """Where clients find the models."""
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.ports['api']}"

    @property
    def scraped(self) -> list[Target]:
        """Models answer on loopback only, so their figures come through the metrics export."""
        export, host = f"{self.address}:{self.ports['export']}", {"citadel_host": self.host}
        models = [
            Target(MODELS, export, f"/metrics/{instance.name}", {**host, "model": name, "replica": instance.name})
            for name, model in self.models.items()
            for instance in model.instances
        ]
        node = Target(HOST, f"{self.address}:{self.ports['node']}", "/metrics", host)
        return [*models, Target(GATEWAY, export, "/metrics/gateway", host), node]


def taken(ports: Mapping[str, Any]) -> dict[int, str]:
    """Port -> whose it is."""
    owners: dict[int, str] = {}
    for service, name in SERVICES.items():
        try:
            port = int(ports[service])
        except (KeyError, TypeError, ValueError):
            raise ContractError(f"citadel_ports.{service} is {ports.get(service)!r}: give the port of {name}") from None
        if port in owners:
            raise ContractError(f"citadel_ports.{service} = {port}: {owners[port]} has that port already; change one")
        owners[port] = name
    return owners


def contract(
    host: str, address: str, ports: Mapping[str, Any], models: Sequence[Model], tls: Mapping[str, Any]
) -> Contract:
    taken(ports)
    if tls and (set(tls) != {"certificate", "key"} or not all(str(path).startswith("/") for path in tls.values())):
        raise ContractError(f"citadel_tls is {dict(tls)}: give the paths of two files on {host}, certificate and key")
    numbers = {name: int(ports[name]) for name in SERVICES}
    return Contract(host, address, numbers, {model.name: service(model) for model in models}, bool(tls))


def service(model: Model) -> Service:
    return Service(
        name=model.name,
        kind=model.kind,
        aliases=model.aliases,
        context=model.context,
        endpoints=tuple(model.endpoints),
        capabilities=tuple(model.capabilities),
        objectives=dict(model.objectives),
        vector_size=vector_size(model),
        instances=tuple(Instance(name, port) for name, port in model.instances()),
    )


def vector_size(model: Model) -> int:
    if model.kind != "embeddings" or model.vector_size:
        return model.vector_size if model.kind == "embeddings" else 0
    known = KNOWN_MODELS.get(model.weights["bf16"].repository)
    return Architecture.of(known["config"]).hidden if known else 0


def target_groups(published: Mapping[str, Any], interval: int = 0) -> list[dict[str, Any]]:
    """Targets of a published contract, in the form of Prometheus' file_sd. The labels with underscores are its own:
    they set path and interval for these targets alone, and no scrape may take longer than that."""
    return [
        {"targets": [target["address"]], "labels": {"job": target["job"], **target["labels"], **own(target, interval)}}
        for target in published["scraped"]
    ]


def own(target: Mapping[str, Any], interval: int) -> dict[str, str]:
    labels = {"__metrics_path__": target["path"]}
    if interval:
        seconds = interval * (HOST_SLOWER if target["job"] == HOST else 1)
        labels |= {"__scrape_interval__": f"{seconds}s", "__scrape_timeout__": f"{min(seconds, LONGEST_SCRAPE)}s"}
    return labels
