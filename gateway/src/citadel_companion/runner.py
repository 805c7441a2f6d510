"""Runs batches: a few requests at once, at low priority, each in the name of its batch's owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson

from citadel_companion.files import Files, new_id
from citadel_companion.lines import Asked
from citadel_companion.services import Asker, Problem
from citadel_companion.store import Thing
from citadel_companion.turns import Turns
from citadel_companion.work import ERRORS, OUTPUT, Unusable, Work

logger = logging.getLogger("citadel_companion")

OVER = frozenset(("completed", "failed", "expired", "cancelled"))
_PAGE = 200
_BACKOFF = 0.5  # seconds, doubled with each failure in a row
_LONGEST = 30.0  # seconds between two attempts at the store or the disk
_LOW = {"x-priority": "low"}
_MAY_PASS = frozenset((408, 429, 500, 502, 503, 504))
# what the model itself made of it; all else that passes is no fault of the request
_ITS_FAULT = ("upstream_failed", "upstream_error", "upstream_timeout", "gateway_error")


class Answer(NamedTuple):
    status: int
    request_id: str
    body: Any
    code: str = ""
    again: bool = False
    wait: float = 0.0


class GoneError(Exception):
    """Its owner has been forgotten, or its time is over."""


class Job:
    """A batch that is not over."""

    def __init__(self, thing: Thing, work: Work) -> None:
        self.thing = thing
        self.work = work
        self.told: dict[str, Any] = thing.body["batch"]
        self.task: asyncio.Task[None] | None = None
        self.stopping = asyncio.Event()
        self.ready_at = 0.0  # nothing of it is asked before
        self.failures = 0  # in a row

    @property
    def owner(self) -> str:
        return self.thing.owner

    def shown(self) -> dict[str, Any]:
        counts = self.work.counts
        if self.work.total and self.told["status"] not in OVER:
            done = {"completed": counts[OUTPUT], "failed": counts[ERRORS]}
            self.told["request_counts"] = {"total": self.work.total, **done}
        return {"id": self.thing.id, **self.told}

    def put_off(self, wait: float, longest: float) -> None:
        self.failures += 1
        backoff = min(_BACKOFF * 2 ** min(self.failures - 1, 20), longest)
        self.ready_at = max(self.ready_at, time.monotonic() + max(backoff, min(wait, longest)))

    async def ready(self) -> None:
        """It may be put off further meanwhile."""
        while self.ready_at > (now := time.monotonic()):  # noqa: ASYNC110 - time passes by itself
            await asyncio.sleep(self.ready_at - now)


class Runner:
    def __init__(self, files: Files) -> None:
        self.files = files
        self.services = files.services
        self.bounds = files.services.config.batches
        self.kind = f"batch:{files.home}"
        self.folder = Path(files.services.config.state) / "batches"
        self.jobs: dict[str, Job] = {}
        self.resumed = asyncio.Event()
        self.lines = {"completed": 0, "failed": 0}
        self._turns = Turns(self.bounds.at_once)
        self._loading = asyncio.Lock()
        self._resuming: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._resuming = asyncio.create_task(self._resume())

    async def stop(self) -> None:
        """What is being asked is asked again by the next process."""
        tasks = [self._resuming, *(job.task for job in self.jobs.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    def work_of(self, ident: str, endpoint: str) -> Work:
        return Work(self.folder / ident, ident, endpoint, self.bounds)

    def run(self, thing: Thing, work: Work) -> Job:
        job = Job(thing, work)
        self.jobs[thing.id] = job
        self.files.coming |= set(thing.body["results"].values())
        job.task = asyncio.create_task(self._run(job))
        return job

    async def cancel(self, job: Job) -> None:
        if job.stopping.is_set() or "ends_as" in job.thing.body:
            return
        job.stopping.set()
        job.told.update(status="cancelling", cancelling_at=_now())
        await self._tell(job)

    async def forget(self, owner: str) -> int:
        """Nothing of it runs any more, and nothing is left on the disk."""
        jobs = [job for job in self.jobs.values() if job.owner == owner]
        for job in jobs:
            await self._abandon(job)
        return len(jobs)

    async def drop_lost(self) -> None:
        """Batches whose owner was forgotten elsewhere, by a companion that shares the database."""
        for job in list(self.jobs.values()):
            found = await self.services.kept(self.services.store.get, self.kind, job.thing.id, job.owner)
            if found is None and job.thing.id in self.jobs:
                await self._abandon(job)

    async def _abandon(self, job: Job) -> None:
        if job.task is not None and job.task is not asyncio.current_task():
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)
        await asyncio.to_thread(job.work.remove)
        self._ended(job)

    # a batch from its beginning to its end

    async def _resume(self) -> None:
        try:
            await self._begin_anew()
        except Exception:
            logger.exception("a bug in the companion; no batch runs")
        else:
            self.resumed.set()

    async def _begin_anew(self) -> None:
        """Batches that an earlier process has not ended."""
        folders = {path.name: path for path in self.folder.iterdir()} if self.folder.is_dir() else {}
        found: list[Thing] = []
        after = None
        store = self.services.store
        while page := await self._surely(partial(self.services.kept, store.listed, self.kind, None, after, _PAGE)):
            found += [thing for thing in page if thing.body["batch"]["status"] not in OVER]
            after = page[-1].id
        for thing in reversed(found):
            folders.pop(thing.id, None)
            self.run(thing, self.work_of(thing.id, thing.body["batch"]["endpoint"]))
        for name, path in folders.items():
            logger.info("%s is no batch of anybody that runs any more, and goes", name)
            await asyncio.to_thread(Work(path, name, "", self.bounds).remove)

    async def _run(self, job: Job) -> None:
        try:
            if "ends_as" not in job.thing.body:
                try:
                    ends_as = await self._lines(job)
                except Unusable as error:
                    self._fail(job, error.errors)
                    await self._keep(job)
                    await asyncio.to_thread(job.work.remove)
                    self._ended(job)
                    return
                job.shown()  # the last figures
                if ends_as != "cancelled":
                    job.told.update(status="finalizing", finalizing_at=_now())
                job.thing.body["ends_as"] = ends_as
                await self._keep(job)
            await self._finish(job)
        except GoneError:
            logger.info("%s is nobody's any more", job.thing.id)
            await asyncio.to_thread(job.work.remove)
            self._ended(job)
        except Exception:
            logger.exception("a bug in the companion; %s waits for its next start", job.thing.id)

    async def _lines(self, job: Job) -> str:
        """How the batch ends."""
        await self._load(job)
        if job.told["status"] == "validating":
            job.told.update(status="in_progress", in_progress_at=_now())
        job.shown()
        await self._keep(job)
        if job.told["status"] == "cancelling":
            return "cancelled"
        workers = asyncio.gather(*(self._worker(job) for _ in range(self.bounds.at_once)))
        stopped = asyncio.create_task(job.stopping.wait())
        try:
            left = max(0.0, job.told["expires_at"] - time.time())
            both: set[asyncio.Future[Any]] = {workers, stopped}
            await asyncio.wait(both, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if workers.done():
                workers.result()
                return "completed"
        finally:
            stopped.cancel()
            workers.cancel()
            await asyncio.gather(workers, return_exceptions=True)
        if job.stopping.is_set():
            return "cancelled"
        told = "This request could not be executed before the completion window expired."
        await self._on_disk(job, lambda: job.work.fail_rest("batch_expired", told))
        return "expired"

    async def _load(self, job: Job) -> None:
        wait = _BACKOFF
        while True:
            try:
                async with self._loading:  # one at a time, for the sake of memory
                    return await asyncio.to_thread(job.work.load)
            except FileNotFoundError:
                lost = {"code": "work_lost", "message": "The companion has lost its work on this batch; send it again."}
                raise Unusable([{**lost, "param": None, "line": None}]) from None
            except OSError as error:
                logger.warning("%s waits for the disk: %s", job.thing.id, error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST)
            job.work = self.work_of(job.thing.id, job.told["endpoint"])

    async def _worker(self, job: Job) -> None:
        while (place := job.work.take()) is not None:
            try:
                await self._line(job, place)
            except asyncio.CancelledError:
                job.work.give_back(place)
                raise

    async def _line(self, job: Job, place: int) -> None:
        request = await asyncio.to_thread(job.work.read, place)
        bounds = self.bounds
        attempts = 0
        while True:
            await job.ready()
            async with self._turns.turn(job.owner):
                answer = await self._asked(job, request)
            if not answer.again:
                break
            attempts += answer.code in _ITS_FAULT
            if attempts >= bounds.attempts:
                break
            job.put_off(answer.wait, bounds.longest_wait)
        job.failures = 0
        if answer.status:
            told = (request.custom_id, answer.status, answer.request_id, answer.body)
            await self._on_disk(job, lambda: job.work.answer(place, *told))
        else:
            await self._on_disk(job, lambda: job.work.fail(place, request.custom_id, answer.code, answer.body))
        self.lines["completed" if answer.status == 200 else "failed"] += 1
        if answer.status == 401:
            why = answer.body["error"]["message"]
            await self._on_disk(
                job, lambda: job.work.fail_rest(answer.code, f"The batch's owner is let in no more: {why}")
            )
        elif job.work.size > bounds.most_output_bytes:
            why = f"The results of this batch have reached {bounds.most_output_bytes} bytes, the most that are kept."
            await self._on_disk(job, lambda: job.work.fail_rest("output_too_large", why))

    async def _asked(self, job: Job, request: Asked) -> Answer:
        who = Asker(job.owner, job.thing.body["address"])
        most = self.bounds.most_answer_bytes
        try:
            body = orjson.dumps(request.body)
            async with self.services.ask(who, job.told["endpoint"], body, headers=_LOW) as answer:
                content = bytearray()
                async for part in answer.aiter_bytes():
                    content += part
                    if len(content) > most:
                        return Answer(0, "", f"The answer is larger than {most} bytes.", "answer_too_large")
                return _answer(answer, bytes(content))
        except Problem as problem:
            return Answer(0, "", problem.message, problem.code, again=True)
        except httpx.HTTPError as error:
            return Answer(0, "", f"The gateway's answer could not be read: {error}.", "gateway_unavailable", again=True)

    async def _finish(self, job: Job) -> None:
        """May be done twice, after a kill in the middle."""
        thing, results = job.thing, job.thing.body["results"]
        await asyncio.to_thread(job.work.close)
        seconds = job.thing.body.get("seconds") or self.bounds.days * 86_400
        for name, shown_as in ((OUTPUT, "output_file_id"), (ERRORS, "error_file_id")):
            ident = results[name]
            path = job.work.folder / name
            if path.exists() and path.stat().st_size:
                await self._on_disk(job, partial(self.files.shelf.take, thing.owner, ident, path))
            if self.files.shelf.path(thing.owner, ident).exists():
                label = f"{thing.id}_{'output' if name == OUTPUT else 'error'}.jsonl"
                await self._check(job)
                await self._surely(partial(self.files.known, thing.owner, ident, label, "batch_output", seconds))
                job.told[shown_as] = ident
        status = thing.body["ends_as"]
        job.told.update({"status": status, f"{status}_at": _now()})
        await self._keep(job)
        await asyncio.to_thread(job.work.remove)
        self._ended(job)

    def _fail(self, job: Job, errors: list[dict[str, Any]]) -> None:
        job.told.update(status="failed", failed_at=_now(), errors={"object": "list", "data": errors})

    def _ended(self, job: Job) -> None:
        self.jobs.pop(job.thing.id, None)
        self.files.coming -= set(job.thing.body["results"].values())

    # the store and the disk may be away for a while

    async def _keep(self, job: Job) -> None:
        await self._check(job)
        await self._surely(lambda: self._tell(job))

    async def _check(self, job: Job) -> None:
        store, thing = self.services.store, job.thing
        if await self._surely(lambda: self.services.kept(store.get, self.kind, thing.id, thing.owner)) is None:
            raise GoneError

    async def _tell(self, job: Job) -> None:
        until = None
        if job.told["status"] in OVER:
            until = datetime.now(UTC) + timedelta(days=self.bounds.days)
        job.thing = job.thing._replace(expires_at=until)
        await self.services.kept(self.services.store.put, job.thing)

    async def _surely(self, work: Callable[[], Awaitable[Any]]) -> Any:
        wait = _BACKOFF
        while True:
            try:
                return await work()
            except Problem:
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST)

    async def _on_disk(self, job: Job, work: Callable[[], None]) -> None:
        wait = _BACKOFF
        while True:
            attempt = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                await asyncio.shield(attempt)
                break
            except asyncio.CancelledError:
                await asyncio.gather(attempt, return_exceptions=True)  # a thread cannot be taken back
                raise
            except OSError as error:
                logger.warning("%s waits for the disk: %s", job.thing.id, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST)


def _answer(answer: httpx.Response, content: bytes) -> Answer:
    request_id = answer.headers.get("x-request-id", "")
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        told = f"The gateway answered {answer.status_code} with something that is no JSON."
        return Answer(0, request_id, told, "invalid_answer")
    if answer.status_code == 200:
        return Answer(200, request_id, body)
    error = body.get("error") if isinstance(body, dict) else None
    code = str(error.get("code")) if isinstance(error, dict) else ""
    asked = answer.headers.get("x-should-retry")
    again = asked == "true" if asked is not None else answer.status_code in _MAY_PASS
    wait = 0.0
    with contextlib.suppress(ValueError):
        wait = max(0.0, float(answer.headers.get("retry-after", "0")))
    return Answer(answer.status_code, request_id, body, code, again, wait)


def new_results() -> dict[str, str]:
    """Ids of what a batch will give, so that they are the same however often it is begun."""
    return {OUTPUT: new_id(), ERRORS: new_id()}


def _now() -> int:
    return int(time.time())
