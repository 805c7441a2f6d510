"""The parts of a gateway without a gateway: models that are ready, and requests that nobody sent."""

from __future__ import annotations

import asyncio
from typing import Any

from citadel_gateway.budget import Budget
from citadel_gateway.config import Config, Server, Tier
from citadel_gateway.exchange import Exchange
from citadel_gateway.fleet import Fleet, Model, Replica
from citadel_gateway.identity import Principal
from citadel_gateway.protocol import ClientConnection, Cycle
from tests.gateway.harness import merged

MINIMAL: dict[str, Any] = {
    "auth": {"keys_file": "unused.json", "anonymous": {"enabled": True, "tier": "default"}},
    "limits": {"overall": None, "tiers": {"default": {}}},
}


class Clock:
    """What `time.monotonic` says in a test that holds it."""

    def __init__(self) -> None:
        self.now = 100_000.0

    def __call__(self) -> float:
        return self.now


async def _connection() -> ClientConnection:
    async def serve(_: Cycle) -> None:
        """Nothing answers it."""

    return ClientConnection(serve, Budget(Server(), set()))


_CONNECTION = asyncio.run(_connection())


def config_of(models: dict[str, dict[str, Any]] | None = None, **over: Any) -> Config:
    """A configuration: of each model what differs from one replica and a context of 4096."""
    full = {
        name: {"replicas": [{"name": f"{name}-1", "url": "http://127.0.0.1:9"}], "context": 4096, **settings}
        for name, settings in (models or {"phi": {}}).items()
    }
    return Config.model_validate({**merged(MINIMAL, over), "models": full})


def fleet_of(config: Config) -> Fleet:
    fleet = Fleet(config, lambda replica, state: None)
    for replica in fleet.replicas():
        replica.state = "ready"
    return fleet


def model_of(settings: dict[str, Any] | None = None, **over: Any) -> Model:
    return fleet_of(config_of({"phi": settings or {}}, **over)).models["phi"]


def replicas_of(*settings: dict[str, Any], **model: Any) -> list[Replica]:
    """Replicas a, b, c, ... of one model."""
    names = "abcdefgh"
    replicas = [
        {"name": names[index], "url": f"http://127.0.0.1:{index + 1}", **own} for index, own in enumerate(settings)
    ]
    return model_of({"replicas": replicas, **model}).replicas


def principal_of(name: str = "me", tier: Tier | None = None, **more: Any) -> Principal:
    return Principal(name, name, "user", "default", tier or Tier(), **{"anonymous": False, **more})


def exchange_of(
    endpoint: str = "chat",
    headers: dict[bytes, bytes] | None = None,
    body: bytes = b'{"messages":[{"role":"user","content":"hello"}]}',
    principal: Principal | None = None,
) -> Exchange:
    exchange = Exchange(Cycle(_CONNECTION, "POST", "/", headers or {}), endpoint, "192.0.2.1")
    exchange.principal = principal or principal_of()
    exchange.body = body
    exchange.deadline = exchange.started + 3.0  # of a test: whoever waits longer is not called
    return exchange
