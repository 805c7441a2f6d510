"""The applications on the ports: the clients' API, and health for monitors. Plain ASGI; see docs.py for OpenAPI."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from citadel_gateway import __version__
from citadel_gateway.errors import Refusal
from citadel_gateway.exchange import Exchange, as_headers, header_lines
from citadel_gateway.identity import peer_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from citadel_gateway.exchange import Receive, Scope, Send
    from citadel_gateway.fleet import Model
    from citadel_gateway.gateway import Gateway

    Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

ENDPOINTS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
_JSON = b"content-type: application/json\r\n"


class Front:
    """What clients reach; `documents` serves /docs and /openapi.json."""

    def __init__(self, gateway: Gateway, documents: Asgi | None = None, *, health_only: bool = False) -> None:
        self._gateway = gateway
        self._documents = documents
        self._health_only = health_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        endpoint = None if self._health_only else ENDPOINTS.get(path)
        if endpoint is not None and scope["method"] != "OPTIONS":
            await self._gateway.walk(scope, receive, send, endpoint)
            return
        exchange = Exchange(scope, send, "other", self._gateway.proxies.address(peer_of(scope), dict(scope["headers"])))
        try:
            await self._other(exchange, scope, receive, send)
        except Refusal as refusal:
            exchange.error_code = refusal.code
            exchange.status = refusal.status
            lines = self._gateway.walk.lines(exchange) + header_lines(*refusal.headers()) + _JSON
            await exchange.answer(lines, refusal.body())
        except asyncio.CancelledError:
            return
        if exchange.endpoint != "health" or exchange.status >= 400:
            self._gateway.recorder.record(exchange)

    async def _other(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        path, method = exchange.path, exchange.method
        if method == "OPTIONS":
            await self._preflight(exchange)
            return
        if path in ("/health", "/health/detailed", "/metrics"):
            _only_get(exchange)
            exchange.endpoint = "health"
            if path == "/metrics":
                self._may_read_metrics(exchange)
                await self._send(exchange, 200, generate_latest(gateway.metrics.registry), CONTENT_TYPE_LATEST)
                return
            report = health_report(gateway, detailed=path == "/health/detailed")
            status = 503 if report["status"] == "unhealthy" else 200
            await self._send(exchange, status, orjson.dumps(report))
            return
        if not self._health_only:
            if path == "/v1/models" or path.startswith("/v1/models/"):
                _only_get(exchange)
                exchange.endpoint = "models"
                await self._send(exchange, 200, self._models(exchange, path.removeprefix("/v1/models")))
                return
            if self._documents is not None and path in ("/docs", "/openapi.json", "/redoc"):
                exchange.status = 200
                await self._documents(scope, receive, send)
                return
        raise Refusal(404, "unknown_url", f"There is no {method} {path[:200]} here.")

    def _models(self, exchange: Exchange, rest: str) -> bytes:
        gateway = self._gateway
        exchange.principal = gateway.identity.establish(exchange.headers, exchange.address)
        allowed = exchange.principal.models
        if rest.strip("/"):
            name = rest[1:]
            model = gateway.fleet.names.get(name)
            if model is None or (allowed and model.name not in allowed):
                raise Refusal(404, "model_not_found", f"The model {name[:100]!r} does not exist.", param="model")
            return orjson.dumps(describe(model))
        shown = [model for model in gateway.fleet.models.values() if not allowed or model.name in allowed]
        return orjson.dumps({"object": "list", "data": [describe(model) for model in shown]})

    def _may_read_metrics(self, exchange: Exchange) -> None:
        """Open on the health port, and on the clients' port while developing."""
        gateway = self._gateway
        if self._health_only or gateway.config.profile == "development":
            return
        exchange.principal = gateway.identity.establish(exchange.headers, exchange.address)
        if exchange.principal.role != "admin":
            raise Refusal(403, "role_not_allowed", "Metrics are for the role admin here, or on the health port.")

    async def _preflight(self, exchange: Exchange) -> None:
        exchange.status = 204
        exchange.endpoint = "preflight"
        headers = as_headers(self._gateway.walk.lines(exchange))
        if any(name == b"access-control-allow-origin" for name, _ in headers):
            asked = exchange.headers.get(b"access-control-request-headers", b"authorization, content-type")
            headers += [
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", asked),
                (b"access-control-max-age", b"%d" % self._gateway.config.server.cors.max_age),
            ]
        await exchange.send({"type": "http.response.start", "status": 204, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": b""})

    async def _send(self, exchange: Exchange, status: int, body: bytes, kind: str = "application/json") -> None:
        exchange.status = status
        lines = b"%bcontent-type: %b\r\n" % (self._gateway.walk.lines(exchange), kind.encode())
        await exchange.answer(lines, b"" if exchange.method == "HEAD" else body)


def _only_get(exchange: Exchange) -> None:
    if exchange.method not in ("GET", "HEAD"):
        raise Refusal(405, "method_not_allowed", f"{exchange.path} takes GET.")


def describe(model: Model) -> dict[str, Any]:
    """A model as `/v1/models` shows it: OpenAI's fields, and what this one can do."""
    settings = model.settings
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "citadel",
        "root": settings.served_name or model.name,
        "max_model_len": settings.context,
        "description": settings.description,
        "capabilities": settings.capabilities,
        "endpoints": settings.endpoints,
        "specialisation": settings.specialisation,
        "vector_size": settings.vector_size,
        "aliases": settings.aliases,
        "defaults": settings.defaults.model_dump(exclude_none=True),
        "status": model.status(),
    }


def health_report(gateway: Gateway, *, detailed: bool) -> dict[str, Any]:
    report: dict[str, Any] = {"status": gateway.fleet.status(), "version": __version__, "models": {}}
    if gateway.stopping:
        report["stopping"] = True
    for model in gateway.fleet.models.values():
        state = model.status()
        report["models"][model.name] = {"status": state, "ready": state == "ready"}
        if detailed:
            lane = gateway.admission.lanes[model]
            report["models"][model.name] |= {
                "in_flight": lane.in_flight,
                "waiting": lane.waiting,
                "capacity": model.capacity(),
                "replicas": [replica_report(replica) for replica in model.replicas],
            }
    if detailed:
        report["dependencies"] = {
            "keys": {"status": "healthy", "count": len(gateway.keys.all())},
        }
        report["connections"] = len(gateway.connections)
        report["uptime_seconds"] = round(time.time() - gateway.started, 1)
    return report


def replica_report(replica: Any) -> dict[str, Any]:
    return {
        "name": replica.name,
        "state": replica.state,
        "reason": replica.reason,
        "breaker": replica.breaker.state,
        "in_flight": replica.in_flight,
        "engine_running": replica.running,
        "engine_waiting": replica.waiting,
        "cache_used": replica.cache_used,
        "memory_bytes": replica.memory,
    }
