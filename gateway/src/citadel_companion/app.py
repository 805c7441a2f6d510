"""What clients ask of the companion, through the gateway, which has verified who they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from citadel_companion import __version__, batches, files, forgetting, history, responses
from citadel_companion.config import Config
from citadel_companion.runner import Runner
from citadel_companion.services import Asker, Problem, Services, asker
from citadel_companion.shipping import Shipper
from citadel_companion.store import Feedback, opened
from citadel_companion.vectors import Vectors, routes

MOST_DAYS = 366
_SMALL = 128 * 1024  # bytes of a body, but where its path bounds it: each unknown key of it would be told apart
_LARGE = ("/v1/files", "/v1/responses", "/v1/vectors/", "/internal/")


class GivenFeedback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(min_length=1, max_length=128)
    satisfaction_score: float | None = Field(default=None, ge=1, le=10)
    accuracy_feedback: float | None = Field(default=None, ge=0, le=1)
    use_case: str | None = Field(default=None, max_length=100)
    comment: str | None = Field(default=None, max_length=4000)


class SmallBodies:
    """A body is refused by its length, before it is read: a megabyte of keys takes seconds of everybody's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(_LARGE):
            length = Headers(scope=scope).get("content-length", "0")
            if not length.isdigit() or len(length) > 18 or int(length) > _SMALL:
                told = {
                    "message": f"A body here has at most {_SMALL} bytes.",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "body_too_large",
                }
                await JSONResponse({"error": told}, 413)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def application(config: Config) -> FastAPI:
    services = Services(config, opened(config))  # a connection of its own: nobody waits for a batch of the shipper's
    shipping = opened(config)
    look = history.Historian(Path(config.release), shipping).look if config.release is not None else None
    shipper = Shipper(Path(config.spool), shipping, config.retention.model_dump(), look)
    kept, store = services.kept, services.store
    vectors = Vectors(services, config.vectors) if config.vectors is not None else None
    shelves = files.Files(services)
    runner = Runner(shelves)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        shipper.start()
        yield
        await asyncio.to_thread(shipper.stop)
        await services.close()
        store.close()

    app = FastAPI(title="Citadel companion", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(SmallBodies)
    app.state.shipper = shipper
    app.state.runner = runner
    parts = [
        history.routes(services),
        responses.routes(services),
        files.routes(shelves),
        batches.routes(batches.Batches(runner)),
        forgetting.routes(forgetting.Forgetter(services, shipper, runner, vectors)),
    ]
    if vectors is not None:
        parts.append(routes(vectors))
    for part in parts:
        app.include_router(part)

    @app.exception_handler(Problem)
    async def told(_: Request, problem: Problem) -> JSONResponse:
        kind = "server_error" if problem.status >= 500 else "invalid_request_error"
        error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
        headers = {"retry-after": "5"} if problem.status == 503 else {}
        return JSONResponse({"error": error}, problem.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # keys that a client has chosen stand in it
        where = ".".join(str(part) for part in first["loc"][1:])[:200].encode("utf-8", "replace").decode() or None
        return await told(request, Problem(400, "invalid_request", f"{where or 'The body'}: {first['msg']}.", where))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        what = f"{request.method} {request.url.path[:200]}: {str(error.detail).lower()}."
        return await told(request, Problem(error.status_code, "unknown_path", what))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        behind = await asyncio.to_thread(shipper.behind)
        return {
            "status": "degraded" if shipper.trouble else "healthy",
            "version": __version__,
            "store": "postgresql" if config.database is not None else "sqlite",
            "trouble": shipper.trouble or None,
            "shipped": shipper.shipped,
            "spool_behind_seconds": round(behind, 1),
            "vectors": vectors.told() if vectors is not None else None,
        }

    @app.get("/v1/usage")
    async def usage(
        who: Annotated[Asker, Depends(asker)],
        days: Annotated[float, Query(gt=0, le=MOST_DAYS)] = 30,
    ) -> dict[str, Any]:
        """What the one who asks has used, by model."""
        until = datetime.now(UTC)
        since = until - timedelta(days=days)
        data = await kept(store.usage, who.user, since, until)
        return {
            "object": "list",
            "user": who.user,
            "since": since.isoformat(),
            "until": until.isoformat(),
            "data": data,
        }

    @app.post("/v1/feedback")
    async def feedback(given: GivenFeedback, who: Annotated[Asker, Depends(asker)]) -> dict[str, Any]:
        """Of a request of one's own; given again, it replaces what was said before."""
        if given.satisfaction_score is None and given.accuracy_feedback is None:
            raise Problem(400, "nothing_given", "Give satisfaction_score (1 to 10) or accuracy_feedback (0 to 1).")
        model = await kept(store.model_of, who.user, given.request_id)
        if model is None:
            raise Problem(
                404, "request_not_found", f"You have no request {given.request_id!r} that is known yet.", "request_id"
            )
        said = given.model_dump(exclude={"request_id"})
        await kept(store.give, Feedback(user_id=who.user, visible_id=given.request_id, **said), model)
        return {"object": "feedback", "request_id": given.request_id, "model": model, **said}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        found = await asyncio.to_thread(figures, shipper, runner, vectors)
        return PlainTextResponse(generate_latest(found), media_type="text/plain; version=0.0.4")

    return app


def figures(shipper: Shipper, runner: Runner, vectors: Vectors | None = None) -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("citadel_companion_batches_ready", "Whether batches run", registry=registry).set(runner.resumed.is_set())
    Gauge("citadel_companion_batches_open", "Batches that are not over", registry=registry).set(len(runner.jobs))
    lines = Counter(
        "citadel_companion_batch_lines", "Lines of batches, by how they ended", ["outcome"], registry=registry
    )
    for outcome, count in runner.lines.items():
        lines.labels(outcome).inc(count)
    held = runner.files.shelf.held()
    Gauge("citadel_companion_files_bytes", "Bytes of files that are kept", registry=registry).set(held.size)
    Counter("citadel_companion_shipped", "Records that were kept", registry=registry).inc(shipper.shipped)
    Counter("citadel_companion_torn_lines", "Lines of the spool that were no record", registry=registry).inc(
        shipper.torn
    )
    Gauge("citadel_companion_store_up", "Whether the store takes records", registry=registry).set(not shipper.trouble)
    Gauge("citadel_companion_spool_behind_seconds", "Age of the oldest record that is not kept", registry=registry).set(
        shipper.behind()
    )
    if vectors is not None:
        up = Gauge("citadel_companion_collection_up", "Whether it can be used", ["model"], registry=registry)
        for model, told in vectors.told().items():
            up.labels(model).set(told["status"] == "ready")
    return registry
