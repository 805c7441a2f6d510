"""Qdrant by its REST API, as far as version 1.8 has it, and whether its collections are what the configuration says."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from citadel_companion.config import Collection, Vectors
from citadel_companion.services import Problem
from citadel_gateway.upstream import Pool, UpstreamError

logger = logging.getLogger("citadel_companion")

OWNER = "citadel_owner"  # in a point's payload
_CONNECT = 1.0
_CONNECTIONS = 32
_LONGEST = 64 * 1024 * 1024  # bytes of an answer
_CHECKED, _DOUBTFUL = 30.0, 5.0  # seconds between two looks at what is in order, and at what is not
_AGAIN = 1.0  # ... and at least between two that requests ask for


class QdrantError(Exception):
    """There is no answer, or none that helps."""


class RefusedError(QdrantError):
    """Qdrant says what is wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Qdrant:
    """By the gateway's client of the models, which takes a fifth of httpx' time (docs/decisions/045)."""

    def __init__(self, settings: Vectors) -> None:
        self._settings = settings
        address = urlsplit(settings.url)
        self._host = address.netloc
        tls = ssl.create_default_context() if address.scheme == "https" else None
        port = address.port or (443 if tls else 80)
        self._pool = Pool(address.hostname or "", port, min(_CONNECT, settings.timeout), tls)
        self._turn = asyncio.Semaphore(_CONNECTIONS)

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What Qdrant calls the result."""
        try:
            request = self._request(method, path, orjson.dumps(body) if body is not None else b"")
            async with asyncio.timeout(self._settings.timeout), self._turn:
                connection = await self._pool.request(request, self._settings.timeout)
                try:
                    status, content = connection.status, await connection.read_all(_LONGEST)
                finally:
                    connection.finish()
            told = orjson.loads(content)
        except (UpstreamError, OSError, TimeoutError) as error:
            raise QdrantError(str(error) or "no answer in time") from None
        except orjson.JSONDecodeError:
            raise QdrantError(f"an answer that is not JSON, with status {status}") from None
        if status == 200 and isinstance(told, dict):
            return told.get("result")
        refused = told.get("status") if isinstance(told, dict) else None
        message = refused.get("error") if isinstance(refused, dict) else None
        raise RefusedError(status, str(message or f"status {status}")[:500])

    def _request(self, method: str, path: str, content: bytes) -> bytes:
        key = ""
        if self._settings.api_key_file is not None:
            told = Path(self._settings.api_key_file).read_text().strip()
            if not told.isascii() or not told.isprintable():
                raise QdrantError(f"{self._settings.api_key_file} has no key that a header can carry")
            key = f"api-key: {told}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n{key}"
        return b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(content), content)

    def close(self) -> None:
        self._pool.close()


class State:
    """Of one collection: in order, or why not."""

    def __init__(self, model: str, collection: Collection) -> None:
        self.model = model
        self.collection = collection
        self.ready = False
        self.refused = False  # it is another's, and waiting does not help
        self.trouble = "it has not been looked at yet"
        self.turn = asyncio.Lock()
        self.checked = 0.0

    def told(self) -> dict[str, Any]:
        status = "ready" if self.ready else "refused" if self.refused else "unavailable"
        return {"collection": self.collection.name, "status": status, "trouble": self.trouble or None}


class Collections:
    """Created where they are not there; one of another shape is left as it is, and refused."""

    def __init__(self, qdrant: Qdrant, settings: Vectors) -> None:
        self._qdrant = qdrant
        self.states = {model: State(model, collection) for model, collection in settings.collections.items()}
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="collections")

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._qdrant.close()

    async def ready(self, model: str) -> State:
        state = self.states.get(model)
        if state is None:
            known = ", ".join(self.states)
            raise Problem(404, "collection_not_found", f"{model[:100]!r} has no collection; there are {known}.")
        if not state.ready and (not state.checked or time.monotonic() - state.checked > _AGAIN):
            await self.check(state)
        if state.ready:
            return state
        if state.refused:
            raise Problem(409, "collection_mismatch", state.trouble)
        raise Problem(503, "vectors_unavailable", f"Qdrant cannot be used now ({state.trouble}); models go on.")

    async def call(self, state: State, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Of a collection that is in order; a failure is told to the client."""
        try:
            return await self._qdrant.call(method, f"/collections/{state.collection.name}{path}", body)
        except RefusedError as error:
            if error.status != 404:
                logger.warning("Qdrant refuses %s %s: %s", method, path, error)
                raise Problem(
                    400 if error.status == 400 else 503, "vectors_refused", f"Qdrant refuses this: {error}."
                ) from error
            # somebody has taken the collection away; the next look makes it anew
            trouble = str(error)
        except QdrantError as error:
            trouble = str(error)
        self._doubt(state, trouble)
        raise Problem(503, "vectors_unavailable", f"Qdrant cannot be used now ({trouble}); models go on.")

    async def check(self, state: State) -> None:
        async with state.turn:
            if state.checked and time.monotonic() - state.checked < _AGAIN and not state.ready:
                return  # another request has just looked
            try:
                wrong = await self._wrong(state.collection)
            except QdrantError as error:
                self._doubt(state, str(error))
                return
            finally:
                state.checked = time.monotonic()
            if wrong and wrong != state.trouble:
                logger.error("%s: %s", state.model, wrong)
            if not wrong and not state.ready:
                logger.info("%s: the collection %s is in order", state.model, state.collection.name)
            state.ready, state.refused, state.trouble = not wrong, bool(wrong), wrong

    async def _wrong(self, collection: Collection) -> str:
        path = f"/collections/{collection.name}"
        try:
            found = await self._qdrant.call("GET", path)
        except RefusedError as error:
            if error.status != 404:
                raise
            shape = {"size": collection.size, "distance": collection.distance}
            try:
                await self._qdrant.call("PUT", path, {"vectors": shape})
            except RefusedError:
                logger.info("%s: somebody else may have made it just now", collection.name)
            found = await self._qdrant.call("GET", path)
        try:
            shape = found["config"]["params"]["vectors"]
            size, distance = shape.get("size"), shape.get("distance")
            indexed = OWNER in (found.get("payload_schema") or {})
        except (KeyError, TypeError, AttributeError):
            raise QdrantError(f"what it says of {collection.name} is not understood") from None
        if (size, distance) != (collection.size, collection.distance):
            is_there = f"{size} numbers and distance {distance}" if size is not None else "several named vectors"
            return (
                f"The collection {collection.name} has {is_there}; {collection.size} and {collection.distance} are "
                "wanted. It is left as it is: make a new collection, copy the texts into it with new vectors, and name "
                "it in the configuration or give it an alias that is named there."
            )
        if not indexed:
            index = {"field_name": OWNER, "field_schema": "keyword"}
            await self._qdrant.call("PUT", f"{path}/index?wait=true", index)
        return ""

    def _doubt(self, state: State, trouble: str) -> None:
        if trouble != state.trouble:
            logger.warning("%s: Qdrant cannot be used: %s", state.model, trouble)
        state.ready, state.refused, state.trouble = False, False, trouble

    async def _keep(self) -> None:
        while True:
            for state in self.states.values():
                try:
                    await self.check(state)
                except Exception:
                    logger.exception("a bug in the companion, in looking at %s", state.collection.name)
            await asyncio.sleep(_CHECKED if all(state.ready for state in self.states.values()) else _DOUBTFUL)
