"""The management API on its own port: role admin, or the unix socket of the host. FastAPI, off the clients' path."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import hiredis
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from citadel_gateway import __version__
from citadel_gateway.asgi import respond
from citadel_gateway.errors import Refusal, error_body
from citadel_gateway.gateway import Gateway
from citadel_gateway.keys import KeyFileError, Role
from citadel_gateway.page import CONTENT_SECURITY_POLICY, page
from citadel_gateway.redis_client import Away
from citadel_gateway.reports import describe, health_report, replica_report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Replica

_LONGEST_WAIT = 600.0
_FOR_ALL = ("/docs", "/openapi.json")


class NewKey(BaseModel):
    name: str = Field(min_length=1, max_length=100)
    role: Role = "user"
    tier: str = "default"
    days: float | None = Field(default=None, gt=0, description="valid for so long; for ever if left out")
    models: list[str] = []


class Rotation(BaseModel):
    overlap_seconds: float = Field(default=0.0, ge=0, description="how long the old secret still works")


def _served(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def service(gateway: Gateway) -> Callable[..., Callable[[Exchange], Awaitable[None]]]:
    """What answers on the port, and on the unix socket, where the file's mode has said already who may."""
    app = management(gateway)

    def answers(*, trusted: bool) -> Callable[[Exchange], Awaitable[None]]:
        async def answer(exchange: Exchange) -> None:
            # who asks is looked at before anything of a body is read
            actor = "unix-socket"
            if not trusted and exchange.path not in _FOR_ALL:
                actor = gateway.identity.administrator(exchange)
            await respond(app, exchange, gateway.walk.lines(exchange), actor=actor)

        return answer

    return answers


async def actor(request: Request) -> str:
    return str(request.scope["actor"])


Actor = Annotated[str, Depends(actor)]
Served = Annotated[Gateway, Depends(_served)]
router = APIRouter()


def management(gateway: Gateway) -> FastAPI:
    app = FastAPI(
        title="Citadel gateway: management",
        version=__version__,
        description="For the role admin. On the unix socket of the host no key is needed.",
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            Refusal: _refused,
            StarletteHTTPException: _http_error,
            RequestValidationError: _invalid,
            KeyFileError: _key_error,
        },
    )
    app.state.gateway = gateway
    app.include_router(router)
    return app


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    headers = {"content-security-policy": CONTENT_SECURITY_POLICY}
    return HTMLResponse(page(request.app.openapi()), headers=headers)


@router.get("/management/models/list", tags=["models"])
@router.get("/management/models", tags=["models"])
async def models(gateway: Served, _: Actor) -> dict[str, Any]:
    """Every model: what it can do, what it is doing, its replicas."""
    return {"models": [_model(gateway, name) for name in gateway.fleet.models]}


@router.get("/management/models/{name}", tags=["models"])
async def model(name: str, gateway: Served, _: Actor) -> dict[str, Any]:
    if name not in gateway.fleet.models:
        raise Refusal(404, "model_not_found", f"There is no model {name!r}.")
    return _model(gateway, name)


@router.get("/management/servers/status", tags=["replicas"])
async def servers(gateway: Served, _: Actor) -> dict[str, Any]:
    """The health of everything behind this gateway, and each of its model servers."""
    return {"status": gateway.fleet.status(), "servers": [_replica(replica) for replica in gateway.fleet.replicas()]}


@router.get("/management/replicas", tags=["replicas"])
async def replicas(gateway: Served, _: Actor) -> dict[str, Any]:
    return {"replicas": [_replica(replica) for replica in gateway.fleet.replicas()]}


@router.post("/management/replicas/{name}/drain", tags=["replicas"])
async def drain(
    name: str,
    gateway: Served,
    actor: Actor,
    wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT, description="seconds to wait for it to be idle")] = 0.0,
) -> dict[str, Any]:
    """Give a replica (or all of a model) no new requests; those that come wait, or go to another replica."""
    chosen = _replicas_of(gateway, name)
    for replica in chosen:
        replica.drain()
    gateway.audit.event("drain", actor=actor, target=name)
    idle = await _idle(chosen, wait)
    return {"idle": idle, "replicas": [_replica(replica) for replica in chosen]}


@router.post("/management/replicas/{name}/undrain", tags=["replicas"])
async def undrain(name: str, gateway: Served, actor: Actor) -> dict[str, Any]:
    chosen = _replicas_of(gateway, name)
    for replica in chosen:
        replica.undrain()
        replica.poke.set()
    gateway.audit.event("undrain", actor=actor, target=name)
    return {"replicas": [_replica(replica) for replica in chosen]}


@router.get("/management/stats", tags=["stats"])
async def stats(gateway: Served, _: Actor) -> dict[str, Any]:
    """Figures of this moment; the history is Prometheus's."""
    admission = gateway.admission
    return {
        "version": __version__,
        "uptime_seconds": round(time.time() - gateway.started, 1),
        "running": len(gateway.walk.running),
        "in_flight": admission.in_flight,
        "waiting": admission.waiting,
        "budget": {
            "total": admission.settings.budget,
            "used": sum(lane.cost for lane in admission.lanes.values()),
        },
        "connections": len(gateway.connections),
        "metered": len(gateway.limits),
        "reserved_requests": gateway.limits.open,
        "health": health_report(gateway, detailed=True),
    }


@router.get("/management/requests", tags=["stats"])
async def requests(gateway: Served, _: Actor) -> dict[str, Any]:
    """What is running now; no prompts."""
    now = time.monotonic()
    return {
        "requests": [
            {
                "request_id": exchange.id,
                "principal": exchange.principal.id,
                "model": exchange.model.name if exchange.model else None,
                "replica": exchange.replica.name if exchange.replica else None,
                "stream": exchange.stream,
                "seconds": round(now - exchange.started, 3),
            }
            for exchange in gateway.walk.running
        ]
    }


@router.get("/management/cache", tags=["cache"])
async def cache(gateway: Served, _: Actor) -> dict[str, Any]:
    """What is kept of the models' answers; no answers."""
    kept = gateway.cache
    if kept is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "answers": len(kept.answers),
        "bytes": kept.answers.size,
        "most_bytes": kept.answers.most,
        "redis": kept.behind.redis.report() if kept.behind is not None else None,
        "bytes_by_model": {name: kept.answers.models.get(name, 0) for name in gateway.fleet.models},
    }


@router.post("/management/cache/clear", tags=["cache"])
async def clear_cache(
    gateway: Served, actor: Actor, model: Annotated[str | None, Query(description="only its answers")] = None
) -> dict[str, Any]:
    """Forget the answers of a model, or all; what is on its way now is not kept either."""
    if model is not None and model not in gateway.fleet.models:
        raise Refusal(404, "model_not_found", f"There is no model {model!r}.", param="model")
    cleared = 0
    if gateway.cache is not None:
        try:
            cleared = await gateway.cache.clear(model)
        except (Away, hiredis.HiredisError) as error:
            gateway.audit.event("cache_clear", outcome="failed", actor=actor, target=model or "all", error=str(error))
            text = f"This gateway's memory is clear, Redis is not: {error}. Try again when it is there."
            raise Refusal(503, "redis_unavailable", text, retry_after=1.0) from None
    gateway.audit.event("cache_clear", actor=actor, target=model or "all", answers=cleared)
    return {"cleared": cleared}


@router.get("/management/keys", tags=["keys"])
async def keys(gateway: Served, _: Actor) -> dict[str, Any]:
    return {"keys": gateway.keys.described()}


@router.post("/management/keys", tags=["keys"], status_code=201)
async def create_key(wanted: NewKey, gateway: Served, actor: Actor) -> dict[str, Any]:
    """The secret is in this answer and nowhere else."""
    if wanted.tier not in gateway.config.limits.tiers:
        known = ", ".join(gateway.config.limits.tiers)
        raise Refusal(422, "unknown_tier", f"There is no tier {wanted.tier!r}; there are {known}.", param="tier")
    expires = time.time() + wanted.days * 86400 if wanted.days is not None else None
    key, secret = await asyncio.to_thread(
        gateway.keys.create,
        wanted.name,
        role=wanted.role,
        tier=wanted.tier,
        expires=expires,
        models=tuple(wanted.models),
    )
    gateway.keys_changed()
    gateway.audit.event("key_create", actor=actor, key=key.id, name=key.name, role=key.role, tier=key.tier)
    return {**key.public(), "secret": secret}


@router.post("/management/keys/{key_id}/revoke", tags=["keys"])
async def revoke_key(key_id: str, gateway: Served, actor: Actor) -> dict[str, Any]:
    """At once; what runs with it is ended."""
    key = await asyncio.to_thread(gateway.keys.revoke, key_id)
    gateway.keys_changed()
    gateway.audit.event("key_revoke", actor=actor, key=key_id)
    return key.public()


@router.post("/management/keys/{key_id}/rotate", tags=["keys"])
async def rotate_key(key_id: str, gateway: Served, actor: Actor, rotation: Rotation | None = None) -> dict[str, Any]:
    overlap = rotation.overlap_seconds if rotation is not None else 0.0
    key, secret = await asyncio.to_thread(gateway.keys.rotate, key_id, overlap)
    gateway.keys_changed()
    gateway.audit.event("key_rotate", actor=actor, key=key_id, successor=key.id)
    return {**key.public(), "secret": secret}


@router.post("/management/reload", tags=["configuration"])
async def reload(gateway: Served, actor: Actor) -> dict[str, Any]:
    """As SIGHUP does; a file that is wrong changes nothing."""
    error = gateway.reload(actor)
    if error is not None:
        raise Refusal(422, "invalid_configuration", error)
    return {"reloaded": True}


async def _refused(_: Request, refusal: Refusal) -> Response:
    headers = {name.decode(): value.decode() for name, value in refusal.headers()}
    return Response(refusal.body(), refusal.status, headers, "application/json")


async def _http_error(_: Request, error: HTTPException) -> Response:
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "error")
    body = error_body(error.status_code, code, str(error.detail))
    return Response(body, error.status_code, media_type="application/json")


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return Response(
        error_body(422, "invalid_value", f"{where}: {first['msg']}", where),
        422,
        media_type="application/json",
    )


async def _key_error(_: Request, error: KeyFileError) -> Response:
    status = 404 if "does not exist" in str(error) else 503
    return Response(error_body(status, "keys", str(error)), status, media_type="application/json")


def _replicas_of(gateway: Gateway, name: str) -> list[Replica]:
    """A replica by its name, or all of a model by its."""
    model = gateway.fleet.models.get(name)
    found = [replica for replica in gateway.fleet.replicas() if replica.name == name]
    if found:
        return found
    if model is not None:
        return list(model.replicas)
    raise Refusal(404, "not_found", f"There is no replica or model {name!r}.")


def _model(gateway: Gateway, name: str) -> dict[str, Any]:
    model = gateway.fleet.models[name]
    lane = gateway.admission.lanes[model]
    return {
        **describe(model),
        "in_flight": lane.in_flight,
        "waiting": lane.waiting,
        "capacity": model.capacity(),
        "service_seconds": round(model.service.value, 4),
        "first_byte_seconds": round(model.first_byte.value, 4),
        "replicas": [_replica(replica) for replica in model.replicas],
    }


def _replica(replica: Replica) -> dict[str, Any]:
    return {**replica_report(replica), "model": replica.model.name, "url": replica.settings.url}


async def _idle(replicas: Iterable[Replica], patience: float) -> bool:
    """Whether their last requests have left, within the given time."""
    deadline = time.monotonic() + patience
    for replica in replicas:
        while replica.in_flight:
            replica.idle.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await replica.idle.wait()
            except TimeoutError:
                return False
    return True
