"""What the clients of one listener may have at once: connections, all of them and each address, and bytes of bodies.

Each listener has its own, so that a crowd on one of them leaves the others as they were.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Any

from citadel_gateway.errors import Refusal
from citadel_gateway.identity import TrustedProxies

if TYPE_CHECKING:
    from citadel_gateway.config import Server

_LOCAL = "local"


class Budget:
    def __init__(self, settings: Server, everyone: set[Any], *, side: bool = False) -> None:
        self._side = side
        self._everyone = everyone  # the connections of all listeners
        self._of_address: dict[str, int] = {}
        self.connections: set[Any] = set()
        self._refused: set[Any] = set()  # of those, the ones that are being told so, and take nobody's place
        self.held = 0  # bytes of bodies
        self.empty = asyncio.Event()
        self.empty.set()
        self._workers: set[asyncio.Task[None]] = set()
        self.apply(settings)

    def apply(self, settings: Server) -> None:
        self.settings = settings
        self.most = settings.side_connections if self._side else settings.connections
        own = None if self._side else settings.connections_per_address
        self.most_of_address = own if own is not None else max(1, self.most // 4)
        self._exempt = TrustedProxies(settings.trusted_proxies)

    def entered(self, connection: Any, peer: str) -> Refusal | None:
        """Count it, and say why it cannot stay if it cannot."""
        self.connections.add(connection)
        self._everyone.add(connection)
        self.empty.clear()
        owner = _owner(peer)
        count = self._of_address[owner] = self._of_address.get(owner, 0) + 1
        if count > self.most_of_address and peer != _LOCAL and not self._exempt.trusts(peer):
            refusal = Refusal(
                429, "too_many_connections", f"One address may have {self.most_of_address} connections; close some."
            )
        elif len(self.connections) - len(self._refused) > self.most:
            refusal = Refusal(503, "too_many_connections", "The gateway has as many connections as it may have.")
        else:
            return None
        self._refused.add(connection)
        return refusal

    @property
    def crowded(self) -> bool:
        """So many are being refused that the next one is not even told."""
        return len(self._refused) > self.most

    def left(self, connection: Any, peer: str) -> None:
        self.connections.discard(connection)
        self._refused.discard(connection)
        self._everyone.discard(connection)
        owner = _owner(peer)
        count = self._of_address.get(owner, 0) - 1
        if count > 0:
            self._of_address[owner] = count
        else:
            self._of_address.pop(owner, None)
        self._look_whether_empty()

    def runs(self, worker: asyncio.Task[None]) -> None:
        """What serves a connection may outlive it by a moment."""
        self._workers.add(worker)
        worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        self._look_whether_empty()

    def _look_whether_empty(self) -> None:
        if not self.connections and not self._workers:
            self.empty.set()

    def taken(self, size: int) -> bool:
        """So much more of a body is held; False if that is more than all of them together may be."""
        self.held += size
        return self.held <= self.settings.max_held_bytes

    def released(self, size: int) -> None:
        self.held -= size


def _owner(peer: str) -> str:
    """Whoever has one address of IPv6 has all of its /64."""
    return peer if ":" not in peer else str(ipaddress.IPv6Network((peer.partition("%")[0], 64), strict=False))
