"""The companion and the stand-in for Qdrant, each with a loop of its own; an embeddings model that compares words."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvicorn

from citadel_companion.app import application
from citadel_companion.config import Config
from citadel_gateway.config import Tls
from lab.qdrant import Face
from tests.companion.test_shipping import until
from tests.gateway.harness import Lab, running

SIZE = 64
MODELS: dict[str, dict[str, Any]] = {
    "phi": {"context": 4096},
    "nomic": {"endpoints": ["embeddings"], "context": 8192, "vector_size": SIZE},
}
ROUTES = ["/v1/vectors", "/v1/vectors/*"]


def words(text: str) -> list[float]:
    """A vector that is near to those of texts with the same words."""
    vector = [0.0] * SIZE
    for word in re.findall(r"\w+", str(text).lower()):
        vector[zlib.crc32(word.encode()) % SIZE] += 1.0
    length = math.hypot(*vector) or 1.0
    return [one / length for one in vector] if any(vector) else [1.0] + [0.0] * (SIZE - 1)


@contextlib.contextmanager
def served(app: Any, **where: Any) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **where))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield
    finally:
        server.should_exit = True
        thread.join(20)


class Qdrant:
    """One that can be stopped and started again with what it has stored."""

    def __init__(self, folder: Path, tls: Tls | None = None) -> None:
        self._folder = folder
        self._tls = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key} if tls is not None else {}
        folder.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http{'s' if tls is not None else ''}://127.0.0.1:{self.port}"
        self.api_key = "secret"
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        face = Face(self._folder, self.api_key)
        self._running.callback(face.close)
        self._running.enter_context(served(face.application(), host="127.0.0.1", port=self.port, **self._tls))

    def stop(self) -> None:
        self._running.close()


class Estate:
    def __init__(self, lab: Lab, qdrant: Qdrant) -> None:
        self.lab = lab
        self.qdrant = qdrant
        self.client = lab.client
        self.embedder = lab.simulators["nomic"]


@contextlib.asynccontextmanager
async def estate(
    folder: Path,
    *,
    over: dict[str, Any] | None = None,
    vectors: dict[str, Any] | None = None,
    models: dict[str, dict[str, Any]] | None = None,
    tls: Tls | None = None,
    up: bool = True,
) -> AsyncIterator[Estate]:
    """A gateway, simulated models, a companion and Qdrant's engine, which know each other."""
    qdrant = Qdrant(folder / "qdrant", tls)
    if up:
        await anyio.to_thread.run_sync(qdrant.start)
    (folder / "api-key").write_text(f"{qdrant.api_key}\n")
    path = str(folder / "companion.sock")
    told = {"companion": {"socket": path, "routes": ROUTES, "timeout": 5.0}, **(over or {})}
    try:
        async with running(told, models={**MODELS, **(models or {})}) as lab:
            lab.simulators["nomic"].embed = words
            settings = {
                "url": qdrant.url,
                "api_key_file": str(folder / "api-key"),
                "timeout": 2.0,
                "embeddings": {"model": "nomic", "batch": 64},
                "collections": {"phi": {"name": "phi_embeddings", "size": SIZE}},
                **(vectors or {}),
            }
            spool = folder / "spool"
            spool.mkdir()
            config = Config.model_validate(
                {
                    "socket": path,
                    "gateway": str(lab.process.ports["inner"]),
                    "state": str(folder / "state"),
                    "spool": str(spool),
                    "vectors": settings,
                }
            )
            companion = contextlib.ExitStack()
            await anyio.to_thread.run_sync(companion.enter_context, served(application(config), uds=path))
            try:
                yield Estate(lab, qdrant)
            finally:
                await anyio.to_thread.run_sync(companion.close)
                await anyio.to_thread.run_sync(qdrant.stop)  # the harness counts what is open
    finally:
        await anyio.to_thread.run_sync(qdrant.stop)
