"""A request's walk through the stations, and the end of it in every case."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from citadel_gateway import envelope, relay, reservation, settlement
from citadel_gateway.errors import Refusal, error_body, error_event
from citadel_gateway.exchange import Exchange, header_lines
from citadel_gateway.protocol import ClientGone
from citadel_gateway.route import choose_replica, fallbacks

if TYPE_CHECKING:
    from citadel_gateway.fleet import Model, Replica
    from citadel_gateway.gateway import Gateway
    from citadel_gateway.protocol import Cycle


def _check_manner(exchange: Exchange) -> None:
    if exchange.principal.role == "reader":
        raise Refusal(403, "role_not_allowed", "A key with the role reader may not ask models.")


class Walk:
    """The hot path."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.running: dict[Exchange, None] = {}

    async def __call__(self, cycle: Cycle, endpoint: str) -> None:
        gateway = self._gateway
        exchange = Exchange(cycle, endpoint, gateway.proxies.address(cycle.peer, cycle.headers))
        self.running[exchange] = None
        try:
            exchange.principal = gateway.identity.establish(exchange.headers, exchange.address)
            _check_manner(exchange)
            await envelope.read_body(exchange)
            model = envelope.open_envelope(exchange, gateway.config, gateway.fleet, gateway.load)
            reservation.reserve(exchange, model, gateway.limits)
            await self._serve(exchange, model)
        except Refusal as refusal:
            await self.refuse(exchange, refusal)
        except relay.BrokenStream:
            pass
        except ClientGone:
            exchange.outcome = 499
        except asyncio.CancelledError:
            await self._cut(exchange)
        except Exception as error:
            gateway.audit.event("bug", outcome="failed", request_id=exchange.id, error=repr(error)[:500])
            gateway.report_bug(error)
            await self.refuse(exchange, Refusal(503, "gateway_error", "The gateway failed."))
        finally:
            del self.running[exchange]
            settlement.settle(exchange)
            gateway.recorder.record(exchange)

    async def _serve(self, exchange: Exchange, model: Model) -> None:
        gateway = self._gateway
        retry = gateway.config.retry
        tried: set[Replica] = set()
        again = False
        attempts = 0
        while True:
            model = await self._enter(exchange, model, again=again)
            replica = choose_replica(model, gateway.config.routing.policy, exchange.session, tried)
            again = True
            if replica is None:
                settlement.release_permit(exchange)
                continue
            exchange.replica = replica
            exchange.on_replica = True
            replica.in_flight += 1
            try:
                await relay.call(exchange, replica, self.lines, gateway.config.server)
            except relay.CallFailed as failure:
                attempts += failure.counts
                gateway.judge(replica, failure.kind, blame=failure.blame)
                tried.add(replica)
                settlement.release_permit(exchange)
                if not failure.again or attempts >= retry.attempts or time.monotonic() >= exchange.deadline:
                    raise failure.refusal from None
                exchange.retries += 1
                gateway.metrics.retries.labels(model.name).inc()
                if failure.counts and not self._elsewhere(model, tried):
                    await asyncio.sleep(min(retry.backoff * 2 ** (attempts - 1), retry.max_backoff))
            except relay.BrokenStream as broken:  # a name of its own: compiled, a name has one type
                gateway.judge(replica, broken.kind, blame=True)
                raise
            else:
                self._praise(exchange, replica)
                return

    async def _enter(self, exchange: Exchange, model: Model, *, again: bool) -> Model:
        """Wait for a permit of the model, or of the one that may stand in for it."""
        while True:
            waited = time.monotonic()
            try:
                exchange.permit = await self._gateway.admission.enter(exchange, model, again=again)
            except Refusal:
                other = self._fallback(exchange, model)
                if other is None:
                    raise
                model = other
            finally:
                exchange.queued += time.monotonic() - waited
            if exchange.permit is not None:
                return model

    def _praise(self, exchange: Exchange, replica: Replica) -> None:
        replica.breaker.success()
        if exchange.status == 200:
            seconds = exchange.first_byte - exchange.upstream_started
            replica.first_byte.add(seconds)
            replica.model.first_byte.add(seconds)

    @staticmethod
    def _elsewhere(model: Model, tried: set[Replica]) -> bool:
        return any(replica.usable and replica not in tried for replica in model.replicas)

    def _fallback(self, exchange: Exchange, model: Model) -> Model | None:
        """Another model that may answer, if the client or the configuration allows it."""
        allowed = exchange.principal.models
        for other in fallbacks(model, self._gateway.fleet) if exchange.fallback_allowed else ():
            fits = exchange.prompt_estimate + exchange.max_tokens <= other.settings.context
            if other is not model and fits and exchange.endpoint in other.settings.endpoints:
                if allowed and other.name not in allowed:
                    continue
                exchange.body = envelope.outbound_body(exchange.body, other)
                exchange.model = other
                exchange.fallback_allowed = False
                self._gateway.metrics.fallbacks.labels(model.name, other.name).inc()
                return other
        return None

    def lines(self, exchange: Exchange) -> bytes:
        """What every answer carries."""
        lines = b"x-request-id: %b\r\n%b" % (exchange.id.encode(), self._gateway.fixed_lines)
        replica = exchange.replica
        if replica is not None:
            lines += b"%bx-citadel-queue-ms: %.2f\r\n" % (replica.answer_lines, exchange.queued * 1000)
            if exchange.first_byte:
                spent = exchange.first_byte - exchange.upstream_started
                lines += b"x-citadel-upstream-ms: %.2f\r\n" % (spent * 1000)
        elif exchange.model is not None:
            lines += b"x-citadel-model: %b\r\n" % exchange.model.name.encode()
        origin = exchange.headers.get(b"origin")
        if origin is not None:
            lines += self._gateway.cors_lines(origin)
        return lines

    async def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        gateway = self._gateway
        exchange.error_code = refusal.code
        if exchange.status:  # too late for a status: the answer has begun
            exchange.outcome = refusal.status
            return
        exchange.status = refusal.status
        model = exchange.model.name if exchange.model is not None else "unknown"
        gateway.metrics.rejections.labels(model, refusal.code).inc()
        lines = (
            self.lines(exchange)
            + reservation.limit_lines(exchange)
            + header_lines(*refusal.headers(), (b"content-type", b"application/json"))
        )
        # what it holds goes back first: a client that reads slowly must not keep it
        settlement.settle(exchange)
        await exchange.answer(lines, refusal.body())

    async def _cut(self, exchange: Exchange) -> None:
        """The client left, or the gateway ends the exchange itself (`exchange.cut` says why)."""
        if exchange.cut is None:
            exchange.outcome = 499
            return
        if exchange.task is not None:
            exchange.task.uncancel()  # it goes on with the connection's next request
        status, code, message = exchange.cut
        exchange.outcome = status
        exchange.error_code = code
        if exchange.write_blocked:
            exchange.client.abort()  # it takes nothing, so it cannot be told
            return
        settlement.settle(exchange)
        if not exchange.status:
            exchange.status = status
            lines = self.lines(exchange) + b"content-type: application/json\r\nx-should-retry: false\r\n"
            await exchange.answer(lines, error_body(status, code, message))
        elif exchange.stream:
            await exchange.end(error_event(status, code, message))

    def cut(self, exchange: Exchange, status: int, code: str, message: str) -> None:
        if exchange.cut is None and exchange.task is not None:
            exchange.cut = (status, code, message)
            exchange.task.cancel()
