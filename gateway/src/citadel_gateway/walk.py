"""A request's walk through the stations, and the end of it in every case."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from citadel_gateway import envelope, relay, reservation, settlement
from citadel_gateway.errors import Refusal, error_body, error_event
from citadel_gateway.exchange import Exchange, header_lines
from citadel_gateway.protocol import ClientGone
from citadel_gateway.quarantine import DEATHS, breaks, fingerprint
from citadel_gateway.route import choose_replica, fallbacks, settle_model
from citadel_gateway.step import take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from citadel_gateway.fleet import Model, Replica
    from citadel_gateway.gateway import Gateway
    from citadel_gateway.protocol import Cycle
    from citadel_gateway.step import Answer, Step


def _check_manner(exchange: Exchange) -> None:
    if exchange.principal.role == "reader":
        raise Refusal(403, "role_not_allowed", "A key with the role reader may not ask models.")


def _died(model: Model) -> Refusal:
    return Refusal(
        503,
        "upstream_failed",
        f"{model.name} broke off before it answered, and no other replica of it is there.",
        retry_after=max(1.0, model.back_in()),
    )


class Walk:
    """The hot path."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.running: dict[Exchange, None] = {}

    async def __call__(self, cycle: Cycle, endpoint: str) -> None:
        gateway = self._gateway
        exchange = Exchange(cycle, endpoint, gateway.proxies.address(cycle.peer, cycle.headers))
        self.running[exchange] = None
        if gateway.tracer is not None:
            gateway.tracer.begin(exchange)
        try:
            refusal = await self._outcome(exchange)
            if refusal is not None:
                await self.refuse(exchange, refusal)
            elif exchange.cancelled:
                await self._cut(exchange)
        finally:
            del self.running[exchange]
            settlement.settle(exchange)
            gateway.recorder.record(exchange)

    async def _outcome(self, exchange: Exchange) -> Refusal | None:
        """Why it is refused, if it is. Nothing is awaited inside an `except`: compiled, a coroutine that is suspended
        there leaves its exception, and all that this holds, to whoever runs next."""
        gateway = self._gateway
        try:
            exchange.principal = gateway.identity.of(exchange)
            _check_manner(exchange)
            await envelope.read_body(exchange)
            opened = envelope.open_envelope(exchange, gateway.config)
            model = settle_model(exchange, opened, gateway.config.routing, gateway.fleet, gateway.admission.load)
            envelope.fit(exchange, opened, model)
            del opened  # parsed, it is many times as large as the body
            if gateway.limits.shared is None:
                reservation.reserve(exchange, model, gateway.limits)
            else:
                await reservation.reserve_for_all(exchange, model, gateway.limits, gateway.limits.shared)
            if not gateway.steps:
                await self._serve(exchange, model)
            else:
                await self._serve_with(gateway.steps, exchange, model)
        except Refusal as refusal:
            return refusal
        except relay.BrokenStream:
            pass
        except ClientGone:
            exchange.outcome = 499
        except asyncio.CancelledError:
            exchange.cancelled = True
        except Exception as error:
            gateway.audit.event("bug", outcome="failed", request_id=exchange.id, error=repr(error)[:500])
            gateway.report_bug(error)
            return Refusal(503, "gateway_error", "The gateway failed.")
        return None

    async def _serve_with(self, steps: tuple[Step, ...], exchange: Exchange, model: Model) -> None:
        watching: list[Step] = []
        whole: bytes | None = None
        try:
            for step in steps:
                answer = await take(step, exchange, lambda outcome: self._gateway.metrics.steps.labels(outcome).inc())
                if answer is not None:
                    await self._give(exchange, answer)
                    return
                wanted = step.wants(exchange)
                if wanted:
                    watching.append(step)
                    exchange.keep_up_to(wanted)
            await self._serve(exchange, model)
            if exchange.kept is not None and exchange.status == 200 and not exchange.outcome:
                whole = b"".join(exchange.kept)
        finally:
            for step in watching:
                self._tell(step, exchange, whole)

    async def _give(self, exchange: Exchange, answer: Answer) -> None:
        """What a step has answered in the model's place."""
        exchange.prompt_tokens, exchange.completion_tokens = answer.prompt_tokens, answer.completion_tokens
        exchange.usage_exact = True
        exchange.status = answer.status
        kind = b"content-type: %b\r\n%b" % (answer.content_type, answer.lines)
        lines = self.lines(exchange) + reservation.limit_lines(exchange) + kind
        if answer.as_it_is:
            await exchange.send(lines, answer.body)
        else:
            await exchange.answer(lines, answer.body)

    def _tell(self, step: Step, exchange: Exchange, whole: bytes | None) -> None:
        try:
            step.finished(exchange, whole)
        except Exception as error:
            self._gateway.report_bug(error)

    async def _serve(self, exchange: Exchange, model: Model) -> None:
        quarantine = self._gateway.quarantine
        try:
            if len(quarantine) and quarantine.known(exchange):
                await self._take_turn(exchange, model)
            await self._attempts(exchange, model)
        finally:
            if exchange.turn is not None:
                exchange.turn.release()
                exchange.turn = None

    async def _take_turn(self, exchange: Exchange, model: Model) -> None:
        """One that an engine may have died of goes alone among its like."""
        turn = self._gateway.quarantine.turn(model)
        try:
            async with asyncio.timeout(exchange.deadline - time.monotonic()):
                await turn.acquire()
        except TimeoutError:
            raise Refusal(
                503, "queue_timeout", f"{model.name} was busy until the deadline of this request.", retry_after=1.0
            ) from None
        exchange.turn = turn
        self._gateway.quarantine.known(exchange)  # the same may have broken another engine meanwhile

    async def _attempts(self, exchange: Exchange, model: Model) -> None:
        gateway = self._gateway
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
            if exchange.deaths and replica in tried:
                raise _died(model)
            exchange.replica = replica
            exchange.on_replica = True
            replica.in_flight += 1
            failed: relay.CallFailed | None = None
            try:
                await relay.call(exchange, replica, self.lines, gateway.config.server)
            except relay.CallFailed as failure:
                failed = failure
            except relay.BrokenStream as broken:  # a name of its own: compiled, a name has one type
                gateway.metrics.upstream_errors.labels(model.name, replica.name, broken.kind).inc()
                if broken.kind not in relay.DEATHS:
                    self._blame(replica, exchange)
                elif not replica.leaving or broken.kind == "engine_died":
                    self._engine_died(exchange, replica)
                raise
            if failed is None:
                self._praise(exchange, replica)
                return
            attempts += failed.counts
            tried.add(replica)
            settlement.release_permit(exchange)
            gateway.metrics.upstream_errors.labels(model.name, replica.name, failed.kind).inc()
            await self._judge(exchange, replica, failed, attempts, tried)
            exchange.retries += 1
            gateway.metrics.retries.labels(model.name).inc()
            if failed.counts and not self._elsewhere(model, tried):
                retry = gateway.config.retry
                await asyncio.sleep(min(retry.backoff * 2 ** (attempts - 1), retry.max_backoff))

    async def _judge(
        self, exchange: Exchange, replica: Replica, failure: relay.CallFailed, attempts: int, tried: set[Replica]
    ) -> None:
        """Whose fault it was; raises what the client is told unless another try is sensible."""
        gateway = self._gateway
        model = replica.model
        if failure.kind == "engine_died" or (failure.kind == "reset" and not replica.leaving):
            # it may have been this request: never again on the same replica, and never more than once
            if self._engine_died(exchange, replica) >= DEATHS:
                raise breaks(model) from None
            if not self._elsewhere(model, tried):
                raise failure.refusal from None
            if exchange.turn is None:
                await self._take_turn(exchange, model)
            return
        if failure.blame:
            self._blame(replica, exchange)
        most = gateway.config.retry.attempts
        if failure.doubt and failure.doubt != 503:
            most = min(most, 2)  # an answer that says what is wrong with it will say so again
        late = time.monotonic() >= exchange.deadline
        if failure.again and attempts < most and not late:
            return
        if failure.doubt:
            if not late and await gateway.speaks(replica):
                raise relay.unfit(model, failure.doubt) from None
            self._blame(replica, exchange)
        raise failure.refusal from None

    def _blame(self, replica: Replica, exchange: Exchange) -> None:
        """It failed a client; where that happens often, a probe decides."""
        replica.breaker.failure(exchange.principal.id)
        replica.poke.set()

    def _engine_died(self, exchange: Exchange, replica: Replica) -> int:
        gateway = self._gateway
        deaths, news = gateway.quarantine.died(exchange, replica)
        if news:
            replica.poke.set()
            replica.pool.close_idle()
            gateway.metrics.engine_deaths.labels(replica.model.name, replica.name).inc()
        gateway.audit.event(
            "engine_died",
            outcome="failed",
            actor=exchange.principal.id,
            address=exchange.address,
            request_id=exchange.id,
            replica=replica.name,
            fingerprint=fingerprint(exchange).hex(),
            deaths=deaths,
        )
        return deaths

    async def _enter(self, exchange: Exchange, model: Model, *, again: bool) -> Model:
        """Wait for a permit of the model, or of the first in the chain that may stand in for it."""
        first: Refusal | None = None
        chain: Iterator[Model] | None = None
        while True:
            waited = time.monotonic()
            refused: Refusal | None = None
            try:
                exchange.permit = await self._gateway.admission.enter(exchange, model, again=again)
            except Refusal as refusal:
                refused = refusal
            finally:
                exchange.queued += time.monotonic() - waited
            if exchange.permit is not None:
                return model
            if refused is None:
                continue
            if first is None:
                first = refused
            if not exchange.fallback_allowed:
                raise first
            if chain is None:
                chain = fallbacks(model, self._gateway.fleet)
            other = await self._stand_in(exchange, model, chain)
            if other is None:
                raise first
            model = other

    def _praise(self, exchange: Exchange, replica: Replica) -> None:
        replica.breaker.success()
        if len(self._gateway.quarantine):
            self._gateway.quarantine.cleared(exchange)
        if exchange.status == 200:
            seconds = exchange.first_byte - exchange.upstream_started
            replica.first_byte.add(seconds)
            replica.model.first_byte.add(seconds)

    @staticmethod
    def _elsewhere(model: Model, tried: set[Replica]) -> bool:
        return any(replica.usable and replica not in tried for replica in model.replicas)

    async def _stand_in(self, exchange: Exchange, model: Model, chain: Iterator[Model]) -> Model | None:
        """The next of the chain that can serve the request and whose limits have room for it."""
        gateway = self._gateway
        allowed = exchange.principal.models
        for other in chain:
            if (allowed and other.name not in allowed) or other.name in exchange.passed:
                continue
            if not envelope.refit(exchange, other):
                continue
            exchange.model = other
            if not await reservation.move(exchange, model, gateway.limits):
                exchange.model = model
                continue
            exchange.passed += (model.name,)
            gateway.metrics.fallbacks.labels(model.name, other.name).inc()
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
        lines += exchange.more_lines
        if exchange.cache:
            lines += b"x-citadel-cache: %b\r\n" % exchange.cache.encode()
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
