"""The process: its listeners, its signals, and what it tells systemd."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Gauge

from citadel_gateway.budget import Budget
from citadel_gateway.errors import Refusal
from citadel_gateway.front import Front
from citadel_gateway.gateway import Gateway
from citadel_gateway.listener import Listener
from citadel_gateway.notify import notify
from citadel_gateway.sockets import open_all
from citadel_gateway.tls import Certificate

if TYPE_CHECKING:
    from citadel_gateway.config import Config
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.protocol import Cycle

logger = logging.getLogger("citadel_gateway")

_LOOK_AT_FILES = 2.0


class Process:
    def __init__(self, config: Config, path: Path, bind: dict[str, str]) -> None:
        self.gateway = Gateway(config, path)
        self._bind = bind
        self._listeners: list[Listener] = []
        self._certificate: Certificate | None = None
        self._watching: asyncio.Task[None] | None = None
        self.ports: dict[str, int | str] = {}

    async def run(self) -> None:
        """From the first socket to the last answer."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        await self.start()
        # what lives as long as the process is not looked through again: that costs every client 40 ms
        gc.collect()
        gc.freeze()
        notify("READY=1\nSTATUS=serving")
        watchdog = asyncio.create_task(_watchdog())
        await stop.wait()
        notify(f"STOPPING=1\nSTATUS=draining {len(self.gateway.walk.running)} requests")
        await self.stop()
        watchdog.cancel()

    async def start(self) -> None:
        gateway = self.gateway
        settings = gateway.config.server
        if settings.tls is not None:
            self._certificate = Certificate(settings.tls)
            self._watching = asyncio.create_task(self._watch(self._certificate), name="certificate")
        sockets = open_all(gateway.config.listen, self._bind, os.environ)
        gateway.start()
        # the clients' side first: the documents and the management side take longer to load
        front = Front(gateway)
        late = _Late()
        for name, sock in sockets.items():
            serve: Callable[[Cycle], Awaitable[None]]
            context = None
            if name == "api":
                serve = front.api().serve
                context = self._certificate.context if self._certificate is not None else None
            elif name == "health":
                serve = front.health().serve
            elif name == "export":
                serve = front.export().serve
            elif name == "inner":
                serve = front.inner()
            else:
                trusted = name == "management_socket"
                serve = front.management(functools.partial(late, trusted=trusted), trusted=trusted).serve
            budget = gateway.budgets[name] = Budget(settings, gateway.connections, side=name != "api")
            listener = Listener(sock, serve, budget, context)
            self._listeners.append(listener)
            await listener.open()
            where = sock.getsockname()
            self.ports[name] = where if isinstance(where, str) else where[1]
            logger.info("%s on %s", name, where)
        await asyncio.sleep(0)
        late.load(gateway, front)

    async def _watch(self, certificate: Certificate) -> None:
        """Files that change are taken over without a signal: who renews them need not know the gateway."""
        gateway = self.gateway
        left = Gauge(
            "llm_tls_certificate_expiry_seconds",
            "Until the certificate of the clients' port expires",
            registry=gateway.metrics.registry,
        )
        left.set_function(lambda: certificate.expires - time.time())
        while True:
            await asyncio.sleep(_LOOK_AT_FILES)
            settings = gateway.config.server.tls
            error = certificate.refresh(settings) if settings is not None else None
            if error:
                logger.warning("the certificate stays as it was: %s", error)
            if error is not None:
                gateway.audit.event("certificate", outcome="refused" if error else "ok", error=error or None)

    def _reload(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        error = self.gateway.reload()
        notify("READY=1\nSTATUS=" + ("serving" if error is None else "serving; the new configuration was refused"))

    async def stop(self) -> None:
        """No new connections; what runs has its time, then it is ended with a reason."""
        gateway = self.gateway
        gateway.stopping = True
        for listener in self._listeners:
            listener.close()
        closed = [asyncio.ensure_future(listener.closed()) for listener in self._listeners]
        if self._watching is not None:
            self._watching.cancel()
        pending = await _ended(closed, gateway.config.server.drain)
        if pending:
            for exchange in list(gateway.walk.running):
                gateway.walk.cut(exchange, 503, "gateway_stopping", "The gateway stops; send the request again.")
            pending = await _ended(pending, 2.0)
        if pending:
            for connection in list(gateway.connections):
                connection.abort()
            await _ended(pending, 5.0)
        await gateway.close()


async def _ended(tasks: Iterable[asyncio.Future[None]], seconds: float) -> set[asyncio.Future[None]]:
    """Those that are not done by then."""
    waiting = [task for task in tasks if not task.done()]
    return (await asyncio.wait(waiting, timeout=seconds))[1] if waiting else set()


class _Late:
    """The management's application, which is loaded after the clients' port is open."""

    def __init__(self) -> None:
        self._answers: Callable[..., Callable[[Exchange], Awaitable[None]]] | None = None

    def load(self, gateway: Gateway, front: Front) -> None:
        from citadel_gateway.docs import pages  # noqa: PLC0415
        from citadel_gateway.management import service  # noqa: PLC0415

        front.pages = pages()
        self._answers = service(gateway)

    async def __call__(self, exchange: Exchange, *, trusted: bool) -> None:
        if self._answers is None:
            raise Refusal(503, "not_ready", "The management side is being loaded.", retry_after=1.0)
        await self._answers(trusted=trusted)(exchange)


async def _watchdog() -> None:
    """A loop that hangs is restarted by systemd, if the unit sets WatchdogSec=."""
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 1e6 / 3)


def serve(config: Config, path: Path, bind: dict[str, str]) -> None:
    import uvloop  # noqa: PLC0415

    async def main() -> None:
        await Process(config, path, bind).run()

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvloop.run(main())
