"""The gateway put together: the objects that live as long as the process, and the applications on its ports."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from citadel_gateway import config as configuration
from citadel_gateway.admission import Admission
from citadel_gateway.cache import Cache
from citadel_gateway.exchange import header_lines
from citadel_gateway.fleet import Fleet, Replica, State
from citadel_gateway.identity import Identity, TrustedProxies
from citadel_gateway.keys import KeyFileError, KeyStore
from citadel_gateway.knowledge import Knowledge
from citadel_gateway.limits import Limits
from citadel_gateway.logs import AuditLog, JsonLog
from citadel_gateway.metrics import Metrics, Now, Outside
from citadel_gateway.probes import Prober
from citadel_gateway.quarantine import Quarantine
from citadel_gateway.record import Recorder, to_access, to_audit, to_metrics
from citadel_gateway.spool import Spool
from citadel_gateway.tracing import Tracer
from citadel_gateway.walk import Walk

if TYPE_CHECKING:
    from typing import Any

    from citadel_gateway.behind import Behind
    from citadel_gateway.budget import Budget
    from citadel_gateway.config import Config
    from citadel_gateway.redis_client import Redis
    from citadel_gateway.step import Step

logger = logging.getLogger("citadel_gateway")

_SWEEP = 0.25
_AT_START = ("listen", "logs", "tracing", "usage", "redis")
_SECURITY = header_lines(
    (b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer")
)
_EXPOSED = (
    b"x-request-id, x-citadel-model, x-citadel-replica, x-citadel-queue-ms, x-citadel-upstream-ms, x-citadel-cache, "
    b"x-citadel-knowledge, x-citadel-sources, age, retry-after"
)


class Gateway:
    def __init__(self, config: Config, path: Path) -> None:
        self.config = config
        self.path = path
        self.started = time.time()
        self.metrics = Metrics()
        self.metrics.prepare(config)
        self.keys = KeyStore(Path(config.auth.keys_file))
        self.identity = Identity(config, self.keys)
        self.proxies = TrustedProxies(config.server.trusted_proxies)
        self.limits = Limits(config.limits)
        self.redis: dict[str, Redis] = {}  # by what it is used for
        if config.limits.shared and config.redis is not None:
            from citadel_gateway.shared import Shared  # noqa: PLC0415 - most gateways are alone

            self.limits.shared = Shared(self.limits, config.redis)
            self.redis["limits"] = self.limits.shared.redis
        self.metrics.registry.register(Outside(self.redis, self.limits))
        self.fleet = Fleet(config, self._replica_changed)
        self.admission = Admission(config.admission, self.fleet)
        self.metrics.registry.register(
            Now(self.admission, lambda: [each.endpoint for each in self.walk.running], self._cached)
        )
        self.connections: set[Any] = set()
        self.budgets: dict[str, Budget] = {}  # of each listener
        self.metrics.connections.set_function(lambda: len(self.connections))
        self.audit = AuditLog(config.logs.audit, self._dropped("audit"))
        self.access = JsonLog(config.logs.access, self._dropped("access"))
        self.recorder = Recorder(
            self.report_bug,
            to_metrics(self.metrics),
            to_access(self.access, prompts=config.logs.prompts),
            to_audit(self.audit),
        )
        self.tracer = Tracer(config.tracing, self.metrics) if config.tracing is not None else None
        if self.tracer is not None:
            self.recorder.sinks.append(self.tracer.sink())
        self.spool = Spool(config.usage, self.metrics) if config.usage is not None else None
        if self.spool is not None:
            self.recorder.sinks.append(self.spool.sink())
        self.quarantine = Quarantine()
        self.cache: Cache | None = None
        self.steps: tuple[Step, ...] = ()  # before the model, in this order
        self._set_steps(config)
        self.walk = Walk(self)
        self.fixed_lines = _SECURITY
        self.stopping = False
        self.prober: Prober | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None  # of a cache that is no longer wanted

    def start(self) -> None:
        """Begin to look after the replicas and the running requests; needs the loop."""
        self.prober = Prober(self.fleet, self.config.health, self._awaited, self._opened)
        self._sweeper = asyncio.create_task(self._sweep(), name="sweep")
        if self.tracer is not None:
            self.tracer.start()
        if self.spool is not None:
            self.spool.start()
        if self.limits.shared is not None:
            self.limits.shared.start()
        if self.cache is not None:
            self.cache.start()
        self.audit.event("start", models=list(self.fleet.models))

    async def close(self) -> None:
        self.audit.event("stop")
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self.prober is not None:
            await self.prober.close()
        if self.tracer is not None:
            await self.tracer.close()
        if self.spool is not None:
            await self.spool.close()
        if self.limits.shared is not None:
            await self.limits.shared.close()
        if self.cache is not None:
            await self.cache.close()
        for replica in self.fleet.replicas():
            replica.pool.close()
        self.keys.write_uses()
        self.access.close()
        self.audit.close()

    def reload(self, actor: str = "signal") -> str | None:
        """Take over the file as it is now, whole or not at all; returns what is wrong with it."""
        self.access.reopen()  # the audit log gets a line in any case
        try:
            fresh = configuration.load(self.path)
            keys = KeyStore(Path(fresh.auth.keys_file))
        except (configuration.ConfigError, KeyFileError) as error:
            self.metrics.reloads.labels("refused").inc()
            self.audit.event("reload", outcome="refused", actor=actor, error=str(error))
            logger.warning("configuration refused, the old one stays: %s", error)
            return str(error)
        if any(getattr(fresh, name) != getattr(self.config, name) for name in _AT_START):
            logger.warning("%s are read at the start only; restart the gateway for them", ", ".join(_AT_START))
        if fresh.limits.shared != self.config.limits.shared:
            logger.warning("limits.shared is read at the start only; restart the gateway for it")
        # from here on nothing can be refused
        if self.keys.adopt(keys):
            self.keys_changed()
        gone = self.fleet.apply(fresh)
        self.config = fresh
        self.metrics.prepare(fresh)
        self.admission.apply(fresh.admission)
        self.limits.apply(fresh.limits)
        self.identity.apply(fresh)
        self._change_cache(fresh)
        self.proxies = TrustedProxies(fresh.server.trusted_proxies)
        for budget in self.budgets.values():
            budget.apply(fresh.server)
        if self.prober is not None:
            self.prober.apply(fresh.health)
        for replica in gone:
            replica.pool.close_idle()  # what runs there still ends in peace
        self.admission.dispatch()
        self.metrics.reloads.labels("ok").inc()
        self.audit.event("reload", actor=actor)
        return None

    def _set_steps(self, config: Config) -> None:
        if config.cache is None:
            self.cache = None
        elif self.cache is None:
            self.cache = Cache(config.cache, self.metrics, self._behind(config, config.cache.database))
        else:
            self.cache.apply(config.cache)
        self.redis.pop("answers", None)
        if self.cache is not None and self.cache.behind is not None:
            self.redis["answers"] = self.cache.behind.redis
        # what is put into the context is a part of what the cache is asked for
        steps: list[Step] = []
        if config.knowledge is not None and config.companion is not None:
            steps.append(Knowledge(config.knowledge, config.companion, self.limits, self.metrics))
        if self.cache is not None:
            steps.append(self.cache)
        self.steps = tuple(steps)

    def _change_cache(self, fresh: Config) -> None:
        before = self.cache
        self._set_steps(fresh)
        if self.cache is before:
            return
        if self.cache is not None:
            self.cache.start()
        if before is not None:
            self._closing = asyncio.create_task(before.close())

    def _behind(self, config: Config, database: int | None) -> Behind | None:
        if config.redis is None or database is None:
            return None
        from citadel_gateway.behind import Behind  # noqa: PLC0415 - most gateways have no Redis

        return Behind(config.redis, database, self.metrics)

    def _cached(self, model: str) -> int:
        return self.cache.answers.models.get(model, 0) if self.cache is not None else 0

    async def speaks(self, replica: Replica) -> bool:
        """Whether a replica gives a token to the gateway itself."""
        return self.prober is None or await self.prober.speaks(replica)

    def _opened(self, replica: Replica) -> None:
        logger.warning("breaker of %s opened", replica.name)
        self.audit.event("breaker_open", outcome="failed", replica=replica.name)
        # requests that wait for it go on when trial calls are allowed
        asyncio.get_running_loop().call_later(replica.breaker.settings.recovery + 0.001, self.admission.dispatch)

    def report_bug(self, error: Exception) -> None:
        logger.error("a bug in the gateway", exc_info=error)

    def cors_lines(self, origin: bytes) -> bytes:
        origins = self.config.server.cors.origins
        if "*" in origins:
            allowed = b"*"
        elif origin.decode("latin-1") in origins:
            allowed = origin
        else:
            return b""
        return header_lines(
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        )

    def _awaited(self, replica: Replica) -> bool:
        lane = self.admission.lanes.get(replica.model)
        return lane is not None and lane.waiting > 0

    def _replica_changed(self, replica: Replica, state: State) -> None:
        logger.info("%s is %s: %s", replica.name, state, replica.reason)
        if state == "failed":
            replica.pool.close_idle()
        if hasattr(self, "admission"):
            self.admission.dispatch()
        if hasattr(self, "audit"):
            self.audit.event("replica", replica=replica.name, state=state, reason=replica.reason)

    def keys_changed(self) -> None:
        """Revoked keys lose what they have running, too."""
        self.identity.forget()
        now = time.time()
        usable = {f"key:{key.id}" for key in self.keys.all() if key.usable(now)}
        for exchange in list(self.walk.running):
            principal = exchange.principal
            if not principal.anonymous and principal.id not in usable:
                self.walk.cut(exchange, 401, "revoked_api_key", "This API key has been revoked.")

    def _dropped(self, name: str) -> Any:
        return lambda count: self.metrics.dropped_logs.labels(name).inc(count)

    async def _sweep(self) -> None:
        """What is looked at from time to time, so that the path need not set timers for it."""
        turn = 0
        while True:
            await asyncio.sleep(_SWEEP)
            turn += 1
            self._cut_the_slow()
            if self.cache is not None:
                self.cache.let_go()
            if turn % 2 == 0:
                try:
                    if self.keys.refresh():
                        self.keys_changed()
                except KeyFileError as error:
                    logger.warning("keys stay as they were: %s", error)
            if turn % 8 == 0:
                self.audit.summarize()
            if turn % 240 == 0:
                self.limits.sweep()
                self.identity.wrong.sweep()
                if self.cache is not None:
                    self.cache.answers.sweep()
                await asyncio.to_thread(self.keys.write_uses)

    def _cut_the_slow(self) -> None:
        now = time.monotonic()
        server = self.config.server
        for exchange in list(self.walk.running):
            if exchange.write_blocked and now - exchange.write_blocked > server.write_timeout:
                self.walk.cut(exchange, 408, "client_too_slow", "The client takes its answer too slowly.")
