"""What the models say of themselves, for Prometheus: they listen on loopback, and this is the way in.

One model that does not answer is a 503 of its own and keeps nobody else's figures back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from citadel_gateway.upstream import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from citadel_gateway.fleet import Fleet, Replica

PATIENCE = 5.0  # half of what a scrape may take
MOST = 16 * 1024 * 1024


async def of_replica(replica: Replica) -> bytes:
    """The bytes as they come, or UpstreamError."""
    connection = await replica.pool.request(b"GET /metrics%b\r\n" % replica.call_head, PATIENCE)
    try:
        if connection.status != 200:
            raise UpstreamError("protocol", f"it says {connection.status}")
        return await connection.read_all(MOST)
    finally:
        connection.finish()


async def of_replicas(replicas: Iterable[Replica]) -> list[tuple[Replica, bytes | UpstreamError]]:
    """All at once; what one could not say is its error."""

    async def one(replica: Replica) -> tuple[Replica, bytes | UpstreamError]:
        try:
            return replica, await of_replica(replica)
        except UpstreamError as error:
            return replica, error

    return list(await asyncio.gather(*map(one, replicas)))


def named(fleet: Fleet, name: str) -> list[Replica]:
    """One replica by its name, or all of a model."""
    one = [replica for replica in fleet.replicas() if replica.name == name]
    model = fleet.models.get(name)
    return one or (list(model.replicas) if model is not None else [])


def merged(parts: Iterable[tuple[dict[str, str], bytes]]) -> bytes:
    """Expositions as one: each family stands once, and each sample gets the labels of its part."""
    families: dict[bytes, list[bytes]] = {}
    for labels, text in parts:
        told = ",".join(f'{name}="{value}"' for name, value in labels.items()).encode()
        family = b""
        headed = set(families)
        for line in text.splitlines():
            words = line.split(b" ", 3)
            if line.startswith((b"# HELP ", b"# TYPE ")) and len(words) > 2:
                family = words[2]
                lines = families.setdefault(family, [])
                if family not in headed:
                    lines.append(line)
            elif line and not line.startswith(b"#"):
                name = words[0].partition(b"{")[0]
                if not family or not name.startswith(family):
                    family = name
                families.setdefault(family, []).append(_labelled(line, told))
    return b"\n".join(line for lines in families.values() for line in lines) + b"\n"


def _labelled(line: bytes, labels: bytes) -> bytes:
    if not labels:
        return line
    name = line.partition(b" ")[0]
    if b"{" not in name:
        return b"%b{%b}%b" % (name, labels, line[len(name) :])
    name, _, rest = line.partition(b"{")
    return b"%b{%b%b%b" % (name, labels, b"" if rest.startswith(b"}") else b",", rest)
