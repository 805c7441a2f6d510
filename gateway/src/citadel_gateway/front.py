"""What the listeners answer: their tables of routes, and the answers that the gateway gives itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from citadel_gateway import __version__, figures
from citadel_gateway.endpoints import ENDPOINTS
from citadel_gateway.errors import Refusal
from citadel_gateway.exchange import Exchange
from citadel_gateway.protocol import ClientGone
from citadel_gateway.reports import describe, health_report
from citadel_gateway.routes import Routes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from citadel_gateway.docs import Pages
    from citadel_gateway.gateway import Gateway
    from citadel_gateway.protocol import Cycle
    from citadel_gateway.routes import Handler

    Respond = Callable[[Exchange], Awaitable[None]]

_NO_ENDPOINT = "other"
_PLAIN = "text/plain; charset=utf-8"
_FIGURES = "figures"  # never recorded: a scrape that fails is Prometheus' to tell, and comes every few seconds
_UNWRITTEN = frozenset(("health", "preflight"))  # in the access log, unless they fail


class Front:
    """Answers without a model. Each request becomes an exchange, and is recorded like those of the walk."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.pages: Pages | None = None  # comes after the clients' port is open

    def api(self) -> Routes:
        gateway = self._gateway
        routes = self._with_health(metrics=gateway.config.profile == "development")
        self._add_models(routes)
        routes.add("GET", "/docs", self.built_in(_NO_ENDPOINT, self._documentation))
        routes.add("GET", "/openapi.json", self.built_in(_NO_ENDPOINT, self._documentation))
        if gateway.config.companion is not None:
            from citadel_gateway.companion import Companion  # noqa: PLC0415 - most gateways have none

            companion = Companion(gateway, gateway.config.companion)
            for path in gateway.config.companion.routes:
                routes.add("GET POST PUT PATCH DELETE", path, self.built_in("companion", companion))
        return routes

    def inner(self) -> Callable[[Cycle], Awaitable[None]]:
        """The models for the companion, which asks in the names of clients that the gateway has told it."""
        routes = Routes(self._refused, self._preflight)
        self._add_models(routes)

        def serve(cycle: Cycle) -> Awaitable[None]:
            cycle.vouched = True
            return routes.serve(cycle)

        return serve

    def _add_models(self, routes: Routes) -> None:
        for name, endpoint in ENDPOINTS.items():
            routes.add("POST", endpoint.path, self._to_models(name))
        models = self.built_in("models", self._models)
        routes.add("GET", "/v1/models", models)
        routes.add("GET", "/v1/models/*", models)

    def health(self) -> Routes:
        return self._with_health(metrics=True)

    def export(self) -> Routes:
        """For Prometheus, which has no key."""
        routes = Routes(self._refused, self._preflight)
        routes.add("GET", "/metrics", self.built_in(_FIGURES, self._all_figures))
        routes.add("GET", "/metrics/gateway", self.built_in(_FIGURES, self._metrics))
        routes.add("GET", "/metrics/*", self.built_in(_FIGURES, self._figures))
        return routes

    def management(self, respond: Respond, *, trusted: bool) -> Routes:
        """`respond` is the management's own application, to which everything else leads."""
        routes = self._with_health(metrics=trusted)
        handler = self.built_in("management", respond)
        for path in ("/management/*", "/docs", "/openapi.json"):
            routes.add("GET POST PUT PATCH DELETE", path, handler)
        return routes

    def built_in(self, endpoint: str, respond: Respond) -> Handler:
        async def handler(cycle: Cycle) -> None:
            await self._serve(cycle, endpoint, respond)

        return handler

    async def _serve(self, cycle: Cycle, endpoint: str, respond: Respond) -> None:
        gateway = self._gateway
        exchange = Exchange(cycle, endpoint, gateway.proxies.address(cycle.peer, cycle.headers))
        try:
            await respond(exchange)
        except Refusal as refusal:
            await gateway.walk.refuse(exchange, refusal)
        except (ClientGone, asyncio.CancelledError):
            exchange.outcome = 499
        except Exception as error:
            gateway.audit.event("bug", outcome="failed", request_id=exchange.id, error=repr(error)[:500])
            gateway.report_bug(error)
            await gateway.walk.refuse(exchange, Refusal(500, "gateway_error", "The gateway failed."))
        finally:
            status = exchange.outcome or exchange.status
            if endpoint != _FIGURES and (status >= 400 or endpoint not in _UNWRITTEN):
                gateway.recorder.record(exchange)

    def _to_models(self, endpoint: str) -> Handler:
        walk = self._gateway.walk
        return lambda cycle: walk(cycle, endpoint)

    def _with_health(self, *, metrics: bool) -> Routes:
        routes = Routes(self._refused, self._preflight)
        routes.add("GET", "/", self.built_in(_NO_ENDPOINT, self._greeting))
        routes.add("GET", "/health", self.built_in("health", self._health))
        routes.add("GET", "/health/detailed", self.built_in("health", self._health))
        routes.add("GET", "/metrics", self.built_in("health", self._metrics if metrics else self._guarded_metrics))
        return routes

    # answers

    async def _refused(self, cycle: Cycle, refusal: Refusal) -> None:
        async def respond(_: Exchange) -> None:
            raise refusal

        await self._serve(cycle, _NO_ENDPOINT, respond)

    async def _preflight(self, cycle: Cycle, methods: str) -> None:
        async def respond(exchange: Exchange) -> None:
            exchange.status = 204
            lines = self._gateway.walk.lines(exchange) + b"allow: %b\r\n" % methods.encode()
            if b"access-control-allow-origin" in lines:
                asked = exchange.headers.get(b"access-control-request-headers", b"authorization, content-type")
                lines += (
                    b"access-control-allow-methods: %b\r\naccess-control-allow-headers: %b\r\n"
                    b"access-control-max-age: %d\r\n"
                    % (methods.encode(), asked, self._gateway.config.server.cors.max_age)
                )
            await exchange.answer(lines, b"")

        await self._serve(cycle, "preflight", respond)

    async def _greeting(self, exchange: Exchange) -> None:
        await self.send(exchange, 200, orjson.dumps({"message": "Citadel LLM gateway", "version": __version__}))

    async def _health(self, exchange: Exchange) -> None:
        detailed = "/detailed" in exchange.path
        report = health_report(self._gateway, detailed=detailed)
        companion = self._gateway.config.companion
        if detailed and companion is not None:
            from citadel_gateway.companion import is_there  # noqa: PLC0415 - most gateways have none

            there = await is_there(companion.socket)
            report["dependencies"]["companion"] = {"status": "healthy" if there else "unavailable"}
        await self.send(exchange, 503 if report["status"] == "unhealthy" else 200, orjson.dumps(report))

    async def _guarded_metrics(self, exchange: Exchange) -> None:
        self._gateway.identity.administrator(exchange)
        await self._metrics(exchange)

    async def _metrics(self, exchange: Exchange) -> None:
        await self.send(exchange, 200, generate_latest(self._gateway.metrics.registry), CONTENT_TYPE_LATEST)

    async def _all_figures(self, exchange: Exchange) -> None:
        """The gateway's own and every model's, for people; those of a model that does not answer are absent."""
        parts: list[tuple[dict[str, str], bytes]] = [({}, generate_latest(self._gateway.metrics.registry))]
        for replica, told in await figures.of_replicas(self._gateway.fleet.replicas()):
            if isinstance(told, bytes):
                parts.append(({"model": replica.model.name, "replica": replica.name}, told))
        await self.send(exchange, 200, figures.merged(parts), CONTENT_TYPE_LATEST)

    async def _figures(self, exchange: Exchange) -> None:
        """One replica's, as they come; a model's, with a label if it has several replicas."""
        name = exchange.path.removeprefix("/metrics/").rstrip("/")
        replicas = figures.named(self._gateway.fleet, name)
        if not replicas:
            known = ", ".join(["gateway", *(replica.name for replica in self._gateway.fleet.replicas())])
            await self.send(exchange, 404, f"{name[:100]} has no figures; known are {known}\n".encode(), _PLAIN)
            return
        answers = await figures.of_replicas(replicas)
        told = [({"replica": replica.name}, text) for replica, text in answers if isinstance(text, bytes)]
        if not told:
            why = "; ".join(f"{replica.name} does not answer ({error!s})" for replica, error in answers)
            await self.send(exchange, 503, f"{why}\n".encode(), _PLAIN)
            return
        text = told[0][1] if len(replicas) == 1 else figures.merged(told)
        await self.send(exchange, 200, text, CONTENT_TYPE_LATEST)

    async def _models(self, exchange: Exchange) -> None:
        gateway = self._gateway
        exchange.principal = gateway.identity.of(exchange)
        allowed = exchange.principal.models
        name = exchange.path.removeprefix("/v1/models").strip("/")
        if name:
            model = gateway.fleet.names.get(name)
            if model is None or (allowed and model.name not in allowed):
                raise Refusal(404, "model_not_found", f"The model {name[:100]!r} does not exist.", param="model")
            await self.send(exchange, 200, orjson.dumps(describe(model)))
            return
        shown = [model for model in gateway.fleet.models.values() if not allowed or model.name in allowed]
        await self.send(exchange, 200, orjson.dumps({"object": "list", "data": [describe(model) for model in shown]}))

    async def _documentation(self, exchange: Exchange) -> None:
        if self.pages is None:
            raise Refusal(503, "not_ready", "The documentation is being made.", retry_after=1.0)
        lines, body = self.pages[exchange.path.rstrip("/")]
        exchange.status = 200
        await exchange.answer(self._gateway.walk.lines(exchange) + lines, body)

    async def send(self, exchange: Exchange, status: int, body: bytes, kind: str = "application/json") -> None:
        exchange.status = status
        await exchange.answer(b"%bcontent-type: %b\r\n" % (self._gateway.walk.lines(exchange), kind.encode()), body)
