"""The process: its listeners, its signals, and what it tells systemd."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from citadel_gateway.front import Front
from citadel_gateway.gateway import Gateway
from citadel_gateway.protocol import ClientConnection
from citadel_gateway.sockets import open_all

if TYPE_CHECKING:
    from citadel_gateway.config import Config

logger = logging.getLogger("citadel_gateway")


def notify(message: str) -> None:
    """sd_notify(3); silent without systemd."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.sendall(message.encode())


class _Listener(uvicorn.Server):
    """uvicorn without its signal handlers: several of them share one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Process:
    def __init__(self, config: Config, path: Path, bind: dict[str, str]) -> None:
        self.gateway = Gateway(config, path)
        self._bind = bind
        self._listeners: list[_Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
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
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        notify(f"STOPPING=1\nSTATUS=draining {len(self.gateway.walk.running)} requests")
        await self.stop()
        watchdog.cancel()

    async def start(self) -> None:
        gateway = self.gateway
        sockets = open_all(gateway.config.listen, self._bind, os.environ)
        gateway.start()
        # the clients' side first: the documents and the management side take longer to load
        late = _Late()
        for name, sock in sockets.items():
            app: Any
            if name == "api":
                app = Front(gateway, late.documents)
            elif name == "health":
                app = Front(gateway, health_only=True)
            else:
                app = late.management(trusted=name == "management_socket")
            self._tasks.append(asyncio.create_task(self._serve(app, sock), name=f"listen {name}"))
            where = sock.getsockname()
            self.ports[name] = where if isinstance(where, str) else where[1]
            logger.info("%s on %s", name, where)
        await asyncio.sleep(0)
        late.load(gateway)

    def _serve(self, app: Any, sock: socket.socket) -> Any:
        gateway = self.gateway

        def connection(server_state: Any, **_: Any) -> ClientConnection:
            return ClientConnection(app, server_state, gateway.config.server, gateway.connections)

        listener = _Listener(
            uvicorn.Config(
                app,
                http=connection,  # type: ignore[arg-type]  # uvicorn asks for a class, and only calls it
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                backlog=1024,
                # the gateway's own drain ends what remains, with a reason, before uvicorn would
                timeout_graceful_shutdown=int(gateway.config.server.drain) + 5,
            )
        )
        self._listeners.append(listener)
        return listener.serve(sockets=[sock])

    def _reload(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        error = self.gateway.reload()
        notify("READY=1\nSTATUS=" + ("serving" if error is None else "serving; the new configuration was refused"))

    async def stop(self) -> None:
        """No new connections; what runs has its time, then it is ended with a reason."""
        gateway = self.gateway
        gateway.stopping = True
        for listener in self._listeners:
            listener.should_exit = True
        _, pending = await asyncio.wait(self._tasks, timeout=gateway.config.server.drain)
        if pending:
            for exchange in list(gateway.walk.running):
                gateway.walk.cut(exchange, 503, "gateway_stopping", "The gateway stops; send the request again.")
            _, pending = await asyncio.wait(pending, timeout=2.0)
        for listener in self._listeners:
            listener.force_exit = True
        if pending:
            await asyncio.wait(pending, timeout=5.0)
        await gateway.close()


class _Late:
    """Applications that are loaded after the clients' port is open."""

    def __init__(self) -> None:
        self._documents: Any = None
        self._management: Any = None

    def load(self, gateway: Gateway) -> None:
        from citadel_gateway.docs import documents  # noqa: PLC0415
        from citadel_gateway.management import management  # noqa: PLC0415

        self._documents = documents()
        self._management = management(gateway)

    async def documents(self, scope: Any, receive: Any, send: Any) -> None:
        await self._documents(scope, receive, send)

    def management(self, *, trusted: bool) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            # on the unix socket the file's mode has said already who may
            scope["citadel.trusted"] = trusted
            await self._management(scope, receive, send)

        return app


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
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    uvloop.run(main())
