"""OpenAI's batches: many requests as a job, results later. What could not be answered is listed, and sent again."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from citadel_companion.files import is_id, lasting
from citadel_companion.runner import OVER, Runner, new_results
from citadel_companion.services import Asker, Problem, Who, page
from citadel_companion.store import Thing
from citadel_companion.work import ERRORS, INPUT, Letter, chosen, letters

WINDOW = 86_400  # seconds, the one window that OpenAI has
_LOOK = 60.0  # seconds between two looks for batches whose owner was forgotten elsewhere
Limit = Annotated[int, Query(ge=1, le=100)]


class Lasting(BaseModel):
    model_config = ConfigDict(extra="forbid")

    anchor: str
    seconds: int


class Given(BaseModel):
    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(min_length=1, max_length=100)
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: Lasting | None = None


class Batches:
    """What clients ask of the runner."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.files = runner.files
        self.services = runner.services
        self.bounds = runner.bounds
        self._turn = asyncio.Lock()

    async def create(self, who: Asker, given: Given, retry_of: str | None = None) -> dict[str, Any]:
        self._check_ready()
        _check_metadata(given.metadata or {})
        seconds = None
        if given.output_expires_after is not None:
            wanted = given.output_expires_after
            seconds = lasting(wanted.anchor, wanted.seconds, self.bounds.days, "output_expires_after")
        async with self._turn:
            file = await self.files.get(given.input_file_id, who.user, "input_file_id")
            if file.body["purpose"] != "batch":
                told = f"{file.id} was uploaded for {file.body['purpose']!r}, not for 'batch'."
                raise Problem(400, "invalid_purpose", told, "input_file_id")
            await self._check_room(who.user)
            source = await self.files.path(file)
            thing = self._thing(who, given, retry_of, seconds)
            work = self.runner.work_of(thing.id, given.endpoint)
            try:
                await asyncio.to_thread(work.begin, source)
                await self.services.kept(self.services.store.put, thing)
            except OSError as error:
                await asyncio.to_thread(work.remove)
                told = f"The batch cannot be kept now: {error.strerror}."
                raise Problem(503, "storage_unavailable", told) from error
            except BaseException:
                await asyncio.shield(asyncio.to_thread(work.remove))
                raise
            # as it is now: it runs on while this is said
            return dict(self.runner.run(thing, work).shown())

    async def get(self, ident: str, owner: str) -> dict[str, Any]:
        job = self.runner.jobs.get(ident)
        if job is not None and job.owner == owner:
            return job.shown()
        found: Thing | None = None
        if is_id(ident):
            found = await self.services.kept(self.services.store.get, self.runner.kind, ident, owner)
        if found is None:
            raise Problem(404, "batch_not_found", f"You have no batch {ident[:100]!r}.")
        return self._shown(found)

    async def of(self, owner: str) -> list[dict[str, Any]]:
        most = self.bounds.kept_of_user + 1
        found = await self.services.kept(self.services.store.listed, self.runner.kind, owner, None, most)
        return [self._shown(thing) for thing in found]

    async def cancel(self, ident: str, owner: str) -> dict[str, Any]:
        batch = await self.get(ident, owner)
        if batch["status"] in OVER:
            raise Problem(409, "batch_over", f"{ident} is {batch['status']}, so there is nothing to cancel.")
        self._check_ready()
        job = self.runner.jobs.get(ident)
        if job is None:
            return batch  # it has ended this moment
        await self.runner.cancel(job)
        return job.shown()

    async def letters(self, batch: dict[str, Any], owner: str) -> list[Letter]:
        if batch["error_file_id"] is not None:
            path = await self.files.path(await self.files.get(batch["error_file_id"], owner))
        else:
            path = self.runner.folder / batch["id"] / ERRORS
        try:
            return await asyncio.to_thread(letters, path)
        except FileNotFoundError:
            return []

    async def retry(self, ident: str, who: Asker) -> dict[str, Any]:
        """Those that failed, as a batch of their own."""
        batch = await self.get(ident, who.user)
        if batch["status"] not in OVER:
            raise Problem(
                409, "batch_runs", f"{ident} is {batch['status']}; send its dead letters again when it is over."
            )
        numbers = {letter.number for letter in await self.letters(batch, who.user)}
        if not numbers:
            raise Problem(404, "no_dead_letters", f"{ident} has no dead letters.")
        source = await self.files.path(await self.files.get(batch["input_file_id"], who.user))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / INPUT
            choose = (source, numbers, path, batch["endpoint"], self.bounds.most_line_bytes)
            if not await asyncio.to_thread(chosen, *choose):
                raise Problem(400, "no_requests", f"None of the dead letters of {ident} is a request.")
            with path.open("rb") as again:
                size = path.stat().st_size
                file = await self.files.upload(who.user, again, size, name=f"{ident}_again.jsonl", purpose="batch")
        given = Given(
            input_file_id=file.id,
            endpoint=batch["endpoint"],
            completion_window=batch["completion_window"],
            metadata=batch["metadata"],
        )
        try:
            return await self.create(who, given, retry_of=ident)
        except Problem:
            await self.files.drop(file.id, who.user)
            raise

    def _shown(self, thing: Thing) -> dict[str, Any]:
        job = self.runner.jobs.get(thing.id)
        return job.shown() if job is not None else {"id": thing.id, **thing.body["batch"]}

    def _check_ready(self) -> None:
        if self.services.config.gateway is None:
            raise Problem(503, "gateway_unavailable", "The companion was not told where its gateway listens.")
        if not self.runner.resumed.is_set():
            raise Problem(503, "not_ready", "The companion has just begun and looks for its batches.")

    async def _check_room(self, owner: str) -> None:
        bounds, jobs = self.bounds, self.runner.jobs.values()
        own = sum(job.owner == owner for job in jobs)
        if own >= bounds.open_of_user:
            told = f"You have {own} batches that are not over; {bounds.open_of_user} are the most."
            raise Problem(429, "too_many_batches", told)
        if len(jobs) >= bounds.open_in_all:
            raise Problem(503, "too_many_batches", "There are as many batches as the companion runs; come again later.")
        kept = len(await self.of(owner))
        if kept >= bounds.kept_of_user:
            told = f"{bounds.kept_of_user} batches of yours are kept, the most; the oldest go after {bounds.days} days."
            raise Problem(429, "too_many_batches", told)
        await self.files.room(owner)

    def _thing(self, who: Asker, given: Given, retry_of: str | None, seconds: float | None) -> Thing:
        now = int(time.time())
        moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        batch = {
            "object": "batch",
            "endpoint": given.endpoint,
            "errors": None,
            "input_file_id": given.input_file_id,
            "completion_window": given.completion_window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + WINDOW,
            **{f"{moment}_at": None for moment in moments},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": given.metadata,
        }
        if retry_of is not None:
            batch["retry_of"] = retry_of
        body = {"batch": batch, "results": new_results(), "address": who.address, "seconds": seconds}
        ident = f"batch_{secrets.token_hex(12)}"
        return Thing(self.runner.kind, ident, who.user, datetime.now(UTC), None, body)


def routes(batches: Batches) -> APIRouter:
    runner = batches.runner

    async def look() -> None:
        while True:
            await asyncio.sleep(_LOOK)
            with contextlib.suppress(Problem):
                await runner.drop_lost()

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        runner.start()
        looker = asyncio.create_task(look())
        yield
        looker.cancel()
        await runner.stop()

    router = APIRouter(lifespan=lifespan)

    @router.post("/v1/batches")
    async def create(given: Given, who: Who) -> dict[str, Any]:
        return await batches.create(who, given)

    @router.get("/v1/batches")
    async def listed(who: Who, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
        return page(await batches.of(who.user), after, limit)

    @router.get("/v1/batches/{ident}")
    async def one(ident: str, who: Who) -> dict[str, Any]:
        return await batches.get(ident, who.user)

    @router.post("/v1/batches/{ident}/cancel")
    async def cancel(ident: str, who: Who) -> dict[str, Any]:
        return await batches.cancel(ident, who.user)

    @router.get("/v1/batches/{ident}/dead_letters")
    async def dead_letters(ident: str, who: Who, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
        found = await batches.letters(await batches.get(ident, who.user), who.user)
        return page([_letter(letter) for letter in found], after, limit)

    @router.post("/v1/batches/{ident}/dead_letters/retry")
    async def retry(ident: str, who: Who) -> dict[str, Any]:
        return await batches.retry(ident, who)

    return router


def _letter(letter: Letter) -> dict[str, Any]:
    response, error = letter.told["response"], letter.told["error"]
    if response is not None:
        body = response["body"]
        error = body.get("error", body) if isinstance(body, dict) else body
    return {
        "id": letter.told["id"],
        "object": "batch.dead_letter",
        "line": letter.number,
        "custom_id": letter.told["custom_id"],
        "status_code": response["status_code"] if response is not None else None,
        "error": error,
    }


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        told = "metadata has at most 16 keys of 64 characters, with values of 512."
        raise Problem(400, "invalid_value", told, "metadata")
    for text in (*metadata, *metadata.values()):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            told = "metadata has a zero byte or half a character, which no database keeps."
            raise Problem(400, "invalid_value", told, "metadata")
