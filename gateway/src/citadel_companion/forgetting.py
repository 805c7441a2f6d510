"""Deletion of all that is kept of somebody: rows, things, files, batches that run, texts and their vectors.

What lies in the spool yet must not come back, so that it happened is remembered for as long as a record could be kept.
"""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from citadel_companion.runner import Runner
from citadel_companion.services import Asker, Problem, Services, administrator
from citadel_companion.shipping import Shipper
from citadel_companion.store import FORGOTTEN, Thing
from citadel_companion.vectors import Vectors

logger = logging.getLogger("citadel_companion")

USER = r"(key|address):[\x21-\x7e]{1,90}"  # as long as the column that has it
_KEEPER = "citadel"  # of what is remembered of a deletion: no user has such a name
_SETTLING = timedelta(seconds=2)  # in which the gateway writes down the requests that a deletion has ended


class Given(BaseModel):
    user: str


class Forgetter:
    def __init__(self, services: Services, shipper: Shipper, runner: Runner, vectors: Vectors | None = None) -> None:
        self._services = services
        self._shipper = shipper
        self._runner = runner
        self._vectors = vectors

    async def forget(self, user: str, by: str) -> dict[str, Any]:
        if not re.fullmatch(USER, user):
            raise Problem(400, "invalid_user", f"{user[:100]!r} is no user: key:ID or address:IP.", "user")
        kept, store = self._services.kept, self._services.store
        # while Qdrant is away nothing is said to be deleted
        points = await self._vectors.forget(user) if self._vectors is not None else 0
        await kept(store.put, self._mark(user))
        batches = await self._runner.forget(user)
        await kept(store.put, self._mark(user))
        # a batch of the shipper's that was begun before it could know
        await asyncio.to_thread(self._shipper.settled)
        rows = await kept(store.forget, user)
        while ended := await self._runner.forget(user):  # begun meanwhile
            batches += ended
            rows += await kept(store.forget, user)
        files = await asyncio.to_thread(self._runner.files.shelf.forget, user)
        logger.info("%s had all of %s deleted: %d rows, %d files, %d batches", by, user, rows, files, batches)
        told = {"rows": rows, "files": files, "batches_ended": batches, "points": points}
        return {"object": "user.deleted", "user": user, "deleted": True, **told}

    def _mark(self, user: str) -> Thing:
        now = datetime.now(UTC)
        days = self._services.config.retention.requests + 1
        until = {"until": (now + _SETTLING).isoformat()}
        return Thing(FORGOTTEN, user, _KEEPER, now, now + timedelta(days=days), until)


def routes(forgetter: Forgetter) -> APIRouter:
    router = APIRouter()

    @router.post("/forget")
    async def by_the_host(given: Given, request: Request) -> dict[str, Any]:
        """For whoever reaches the socket without the gateway: the host's root."""
        if "x-citadel-principal" in request.headers:
            raise Problem(404, "unknown_url", "There is no POST /forget here.")
        return await forgetter.forget(given.user, "the host's root")

    @router.delete("/v1/users/{user}")
    async def by_an_administrator(user: str, who: Annotated[Asker, Depends(administrator)]) -> dict[str, Any]:
        return await forgetter.forget(user, who.user)

    return router
