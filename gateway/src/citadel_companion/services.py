"""What the parts of the companion share: who asks, the store, and the way to the models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, NamedTuple, TypeVar

import httpx
from fastapi import Depends, Header

from citadel_companion.config import Config
from citadel_companion.store import Store, StoreError

Result = TypeVar("Result")
_POOL = 10.0  # seconds for one of a hundred connections, which slow answers may hold
_CONNECT = 5.0  # seconds; how long an answer may take is the gateway's to say


class Problem(Exception):
    """Told to the client in OpenAI's shape."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


class Asker(NamedTuple):
    user: str  # key:<id> or address:<address>
    address: str = ""
    role: str = "user"
    tier: str = "default"


async def asker(
    x_citadel_principal: Annotated[str, Header()] = "",
    x_citadel_address: Annotated[str, Header()] = "",
    x_citadel_role: Annotated[str, Header()] = "user",
    x_citadel_tier: Annotated[str, Header()] = "default",
) -> Asker:
    """Who asks, as the gateway has found; nobody else sets those headers, and nobody else reaches the socket."""
    if not x_citadel_principal:
        raise Problem(401, "unknown_principal", "The gateway has not said who asks.")
    return Asker(x_citadel_principal, x_citadel_address, x_citadel_role, x_citadel_tier)


Who = Annotated[Asker, Depends(asker)]


async def administrator(who: Who) -> Asker:
    if who.role != "admin":
        raise Problem(403, "role_not_allowed", "This needs an API key with the role admin.")
    return who


def page(found: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """The part of a list that was asked for, in OpenAI's shape."""
    if after is not None:
        at = next((number for number, one in enumerate(found) if one["id"] == after), None)
        if at is None:
            raise Problem(404, "not_found", f"after: {after[:100]!r} is not in this list.", "after")
        found = found[at + 1 :]
    shown = found[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(found) > limit}


class Services:
    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        # the store is made for one thread, and nobody's files or lines of batches keep it from it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=config.gateway),
            base_url="http://gateway",
            timeout=httpx.Timeout(None, connect=_CONNECT, pool=_POOL),
        )

    async def kept(self, work: Callable[..., Result], *values: Any) -> Result:
        """A method of the store, off the loop, in the order of the asking."""
        try:
            # whoever leaves does not stop what was begun
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work, *values))
        except StoreError as error:
            raise Problem(
                503, "store_unavailable", "What is kept cannot be read now; models are not affected."
            ) from error

    @asynccontextmanager
    async def ask(
        self,
        asker: Asker,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The gateway's answer, as it comes; limits, queue and accounting are its own, in that client's name. Without a
        body it is a GET. Left early, the work ends."""
        if self.config.gateway is None:
            raise Problem(503, "gateway_unavailable", "The companion was not told where its gateway listens.")
        told = {"x-citadel-principal": asker.user, "x-citadel-address": asker.address, **(headers or {})}
        content: dict[str, Any] = {"content": body, "headers": told}
        if body is not None:
            told["content-type"] = "application/json"
        if isinstance(body, dict):
            content["content"] = None
            content["json"] = body
        try:
            async with self._client.stream("GET" if body is None else "POST", path, **content) as answer:
                yield answer
        except httpx.PoolTimeout as error:
            raise Problem(
                503, "too_many_requests", "The companion asks as much of models as it may at once."
            ) from error
        except httpx.TransportError as error:
            raise Problem(503, "gateway_unavailable", f"The gateway does not answer its companion: {error}.") from error

    async def close(self) -> None:
        await self._client.aclose()
        await asyncio.to_thread(self._thread.shutdown)
