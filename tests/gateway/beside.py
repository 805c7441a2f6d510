"""A companion of the tests' own beside a gateway: the real one, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.gateway.harness import Lab, merged, running
from tests.gateway.simulator import until


class Beside:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.socket = folder / "companion.sock"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, gateway: str) -> None:
        config = {
            "socket": str(self.socket),
            "gateway": gateway,
            "state": str(self.folder / "state"),
            "spool": str(self.folder / "spool"),
            **self._settings,
        }
        file = self.folder / "companion.yml"
        file.write_text(yaml.safe_dump(config))
        # it finds what this process has found
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it is waited for elsewhere
            [sys.executable, "-m", "citadel_companion", "--config", file], env=paths
        )
        await until(self.socket.exists, 20.0)

    async def stop(self) -> None:
        if self._process is not None:
            process = self._process
            process.terminate()
            await until(lambda: process.poll() is not None, 20.0)
            self.socket.unlink(missing_ok=True)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@asynccontextmanager
async def companion(
    routes: list[str], over: dict[str, Any] | None = None, *, models: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Lab, Beside]]:
    """A gateway with a companion that serves these paths."""
    with tempfile.TemporaryDirectory() as folder:
        beside = Beside(Path(folder), **settings)
        own = {"companion": {"socket": str(beside.socket), "routes": routes}}
        async with running(merged(own, over or {}), models=models) as lab:
            try:
                await beside.start(str(lab.process.ports["inner"]))
                yield lab, beside
                await beside.stop()
            finally:
                beside.kill()
