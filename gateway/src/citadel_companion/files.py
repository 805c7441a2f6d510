"""OpenAI's files: what clients upload, and what their batches give. Bytes on the disk, the rest in the store."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from citadel_companion.home import home
from citadel_companion.services import Problem, Services, Who, page
from citadel_companion.shelf import Shelf
from citadel_companion.store import Thing

logger = logging.getLogger("citadel_companion")

PURPOSES = ("batch", "user_data", "assistants")
MOST_LISTED = 10_000
_PAGE = 500
_SWEEP = 600.0  # seconds between two looks for bytes that nothing is known of
_STALE = 3600.0  # seconds after which such bytes are nobody's work in progress
_SHORTEST = 3600  # seconds that a client may have a file kept, as with OpenAI


class Files:
    def __init__(self, services: Services) -> None:
        state = Path(services.config.state)
        self.services = services
        self.bounds = services.config.files
        self.home = home(state)
        self.kind = f"file:{self.home}"
        self.shelf = Shelf(state / "files")
        self.coming: set[str] = set()  # ids whose bytes may be there before anything is known of them
        self._turn = asyncio.Lock()

    async def get(self, ident: str, owner: str, param: str | None = None) -> Thing:
        found: Thing | None = None
        if is_id(ident):
            found = await self.services.kept(self.services.store.get, self.kind, ident, owner)
        if found is None:
            raise Problem(404, "file_not_found", f"You have no file {ident[:100]!r}.", param)
        return found

    async def of(self, owner: str) -> list[Thing]:
        """The newest first. There are somewhat more than one may upload, since results of batches are not refused."""
        most = 2 * self.bounds.of_user
        found: list[Thing] = await self.services.kept(self.services.store.listed, self.kind, owner, None, most)
        return found

    async def room(self, owner: str, size: int = 0) -> None:
        """Whether an owner may have one more, of so many bytes."""
        bounds = self.bounds
        if size > bounds.most_bytes:
            told = f"The file has {size} bytes; {bounds.most_bytes} are the most."
            raise Problem(413, "file_too_large", told, "file")
        own = await asyncio.to_thread(self.shelf.held, owner)
        if own.files >= bounds.of_user or own.size + size > bounds.of_user_bytes:
            raise Problem(
                413,
                "files_full",
                f"You have {own.files} files of {own.size} bytes together, and this one has {size}; {bounds.of_user} "
                f"files and {bounds.of_user_bytes} bytes are the most. Delete some.",
                "file",
            )
        everybody = await asyncio.to_thread(self.shelf.held)
        if everybody.files >= bounds.in_all or everybody.size + size > bounds.in_all_bytes:
            raise Problem(503, "storage_full", "There is no room for files now; some expire every day.")

    async def upload(
        self, owner: str, source: IO[bytes], size: int, *, name: str, purpose: str, seconds: float | None = None
    ) -> Thing:
        async with self._turn:
            await self.room(owner, size)
            ident = new_id()
            try:
                await asyncio.to_thread(self.shelf.put, owner, ident, source)
                return await self.known(owner, ident, name, purpose, seconds)
            except BaseException as error:
                await asyncio.shield(asyncio.to_thread(self.shelf.drop, owner, ident))
                if isinstance(error, OSError):
                    raise _no_disk(error) from error
                raise

    async def known(self, owner: str, ident: str, name: str, purpose: str, seconds: float | None = None) -> Thing:
        """What the shelf has becomes a file that its owner finds."""
        size = (await asyncio.to_thread(self.shelf.path(owner, ident).stat)).st_size
        now = datetime.now(UTC)
        until = now + (timedelta(seconds=seconds) if seconds is not None else timedelta(days=self.bounds.days))
        file = Thing(self.kind, ident, owner, now, until, {"filename": name, "purpose": purpose, "bytes": size})
        await self.services.kept(self.services.store.put, file)
        return file

    async def drop(self, ident: str, owner: str) -> bool:
        there: bool = await self.services.kept(self.services.store.drop, self.kind, ident, owner)
        if there:
            await asyncio.to_thread(self.shelf.drop, owner, ident)
        return there

    async def path(self, file: Thing) -> Path:
        path = self.shelf.path(file.owner, file.id)
        if not await asyncio.to_thread(path.is_file):
            logger.warning("the bytes of %s are gone, so it goes, too", file.id)
            await self.drop(file.id, file.owner)
            raise Problem(404, "file_not_found", f"The content of {file.id} is gone.")
        return path

    async def sweep(self) -> None:
        """What was left by a process that died, or has expired."""
        known: set[str] = set(self.coming)
        lost: list[Thing] = []
        after = None
        while page := await self.services.kept(self.services.store.listed, self.kind, None, after, _PAGE):
            known |= {file.id for file in page}
            lost += await asyncio.to_thread(self._without_bytes, page)
            after = page[-1].id
        for path in await asyncio.to_thread(self.shelf.stale, known, _STALE):
            logger.warning("%s is no file of anybody any more, and goes", path.name)
            path.unlink(missing_ok=True)
        for file in lost:
            logger.warning("the bytes of %s are gone, so it goes, too", file.id)
            await self.services.kept(self.services.store.drop, self.kind, file.id, file.owner)

    def _without_bytes(self, files: list[Thing]) -> list[Thing]:
        return [file for file in files if not self.shelf.path(file.owner, file.id).exists()]

    async def keep_clean(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            with contextlib.suppress(Problem):
                await self.sweep()


def shown(file: Thing) -> dict[str, Any]:
    """As OpenAI shows it."""
    return {
        "id": file.id,
        "object": "file",
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at is not None else None,
        **file.body,
        "status": "processed",
        "status_details": None,
    }


def is_id(text: str) -> bool:
    """Not even asked of the store otherwise: no database likes a zero byte."""
    return len(text) <= 100 and text.isascii() and text.isprintable()


def new_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def routes(files: Files) -> APIRouter:
    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(files.keep_clean())
        yield
        sweeper.cancel()

    router = APIRouter(lifespan=lifespan)

    @router.post("/v1/files")
    async def upload(request: Request, who: Who) -> dict[str, Any]:
        kind = request.headers.get("content-type", "")
        if not kind.startswith("multipart/form-data"):
            raise Problem(400, "invalid_request", f"A file comes as multipart/form-data, not as {kind[:100]!r}.")
        with contextlib.ExitStack() as stack:
            try:
                form = await request.form(max_files=1, max_fields=8)
            except HTTPException as error:
                raise Problem(400, "invalid_request", f"The form cannot be read: {error.detail}") from None
            except OSError as error:
                raise _no_disk(error) from error
            stack.callback(lambda: [part.file.close() for part in form.values() if isinstance(part, UploadFile)])
            given = form.get("file")
            if not isinstance(given, UploadFile):
                raise Problem(400, "missing_required_parameter", "The form has no file.", "file")
            purpose, seconds = _purpose(form), _seconds(form, files.bounds.days)
            name = _name(given.filename)
            return shown(
                await files.upload(who.user, given.file, given.size or 0, name=name, purpose=purpose, seconds=seconds)
            )

    @router.get("/v1/files")
    async def listed(
        who: Who,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        found = [file for file in await files.of(who.user) if purpose is None or file.body["purpose"] == purpose]
        if order == "asc":
            found.reverse()
        return page([shown(file) for file in found], after, limit)

    @router.get("/v1/files/{ident}")
    async def one(ident: str, who: Who) -> dict[str, Any]:
        return shown(await files.get(ident, who.user))

    @router.get("/v1/files/{ident}/content")
    async def content(ident: str, who: Who) -> FileResponse:
        path = await files.path(await files.get(ident, who.user))
        return FileResponse(path, media_type="application/octet-stream")

    @router.delete("/v1/files/{ident}")
    async def drop(ident: str, who: Who) -> dict[str, Any]:
        file = await files.get(ident, who.user)
        await files.drop(file.id, who.user)
        return {"id": file.id, "object": "file", "deleted": True}

    return router


def _purpose(form: FormData) -> str:
    purpose = form.get("purpose")
    if purpose not in PURPOSES:
        told = "is missing" if purpose is None else f"{str(purpose)[:100]!r} is not served here"
        raise Problem(400, "invalid_purpose", f"purpose {told}; it is one of {', '.join(PURPOSES)}.", "purpose")
    return str(purpose)


def _seconds(form: FormData, days: int) -> float | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    return lasting(anchor, seconds, days, "expires_after") if anchor is not None or seconds is not None else None


def lasting(anchor: object, seconds: object, days: int, param: str) -> float:
    """How long a client wants something kept, within what the product keeps at all."""
    if anchor != "created_at":
        raise Problem(400, "invalid_value", f"{param}.anchor is created_at.", f"{param}.anchor")
    most = days * 86_400
    text = str(seconds)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and min(_SHORTEST, most) <= int(text) <= most):
        told = f"{param}.seconds is a whole number from {min(_SHORTEST, most)} to {most}, not {text[:30]!r}."
        raise Problem(400, "invalid_value", told, f"{param}.seconds")
    return float(text)


def _name(given: str | None) -> str:
    """A label and no path; no database has a place for a zero byte or half a character."""
    name = "".join(letter for letter in given or "" if letter.isprintable() and not "\ud800" <= letter <= "\udfff")
    return name[-255:] or "file"


def _no_disk(error: OSError) -> Problem:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Problem(503, "storage_full", "The disk of the companion is full; models are not affected.")
    return Problem(503, "storage_unavailable", f"The file cannot be kept now: {error.strerror}.")
