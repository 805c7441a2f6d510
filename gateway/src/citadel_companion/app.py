"""What clients ask of the companion, through the gateway, which has verified who they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from citadel_companion import __version__
from citadel_companion.config import Config
from citadel_companion.shipping import Shipper
from citadel_companion.store import Feedback, StoreError, opened

MOST_DAYS = 366


class Problem(Exception):
    """Told to the client in OpenAI's shape."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


class GivenFeedback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(min_length=1, max_length=128)
    satisfaction_score: float | None = Field(default=None, ge=1, le=10)
    accuracy_feedback: float | None = Field(default=None, ge=0, le=1)
    use_case: str | None = Field(default=None, max_length=100)
    comment: str | None = Field(default=None, max_length=4000)


def application(config: Config) -> FastAPI:
    asking = opened(config)  # a connection of its own, so that nobody waits for a batch of the shipper's
    shipper = Shipper(Path(config.spool), opened(config), config.retention.model_dump())
    turn = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        shipper.start()
        yield
        await asyncio.to_thread(shipper.stop)
        asking.close()

    app = FastAPI(title="Citadel companion", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.shipper = shipper

    async def kept(work: Callable[..., Any], *values: Any) -> Any:
        async with turn:
            try:
                return await asyncio.to_thread(work, *values)
            except StoreError as error:
                raise Problem(
                    503, "store_unavailable", "What is kept cannot be read now; models are not affected."
                ) from error

    @app.exception_handler(Problem)
    async def told(_: Request, problem: Problem) -> JSONResponse:
        kind = "server_error" if problem.status >= 500 else "invalid_request_error"
        error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
        headers = {"retry-after": "5"} if problem.status == 503 else {}
        return JSONResponse({"error": error}, problem.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or None
        return await told(request, Problem(400, "invalid_request", f"{where or 'The body'}: {first['msg']}.", where))

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
        }

    @app.get("/v1/usage")
    async def usage(
        user: Annotated[str, Depends(principal)],
        days: Annotated[float, Query(gt=0, le=MOST_DAYS)] = 30,
    ) -> dict[str, Any]:
        """What the one who asks has used, by model."""
        until = datetime.now(UTC)
        since = until - timedelta(days=days)
        data = await kept(asking.usage, user, since, until)
        return {"object": "list", "user": user, "since": since.isoformat(), "until": until.isoformat(), "data": data}

    @app.post("/v1/feedback")
    async def feedback(given: GivenFeedback, user: Annotated[str, Depends(principal)]) -> dict[str, Any]:
        """Of a request of one's own; given again, it replaces what was said before."""
        if given.satisfaction_score is None and given.accuracy_feedback is None:
            raise Problem(400, "nothing_given", "Give satisfaction_score (1 to 10) or accuracy_feedback (0 to 1).")
        model = await kept(asking.model_of, user, given.request_id)
        if model is None:
            raise Problem(
                404, "request_not_found", f"You have no request {given.request_id!r} that is known yet.", "request_id"
            )
        said = given.model_dump(exclude={"request_id"})
        await kept(asking.give, Feedback(user_id=user, visible_id=given.request_id, **said), model)
        return {"object": "feedback", "request_id": given.request_id, "model": model, **said}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(figures(shipper)), media_type="text/plain; version=0.0.4")

    return app


async def principal(
    x_citadel_principal: Annotated[str, Header()] = "", x_citadel_address: Annotated[str, Header()] = ""
) -> str:
    """Who asks, as the gateway has found; nobody else sets that header, and nobody else reaches the socket."""
    if not x_citadel_principal:
        raise Problem(401, "unknown_principal", "The gateway has not said who asks.")
    return x_citadel_principal


def figures(shipper: Shipper) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("citadel_companion_shipped", "Records that were kept", registry=registry).inc(shipper.shipped)
    Counter("citadel_companion_torn_lines", "Lines of the spool that were no record", registry=registry).inc(
        shipper.torn
    )
    Gauge("citadel_companion_store_up", "Whether the store takes records", registry=registry).set(not shipper.trouble)
    Gauge("citadel_companion_spool_behind_seconds", "Age of the oldest record that is not kept", registry=registry).set(
        shipper.behind()
    )
    return registry
