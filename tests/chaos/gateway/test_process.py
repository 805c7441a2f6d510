"""The process itself: reloads, signals, its sockets, and the things that an operating system can run out of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.gateway.harness import BASE, MESSAGES, Lab, code_of, events, merged, running, text_of
from tests.gateway.simulator import Act, Simulator, eventually, until

pytestmark = pytest.mark.anyio

SOURCES = str(Path(__file__).parents[3] / "gateway" / "src")


class Service:
    """The gateway as a process of its own, as systemd would start it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.config = folder / "gateway.yml"
        self.url = f"http://127.0.0.1:{port}"
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(
        self, *, listener: socket.socket | None = None, limit: int | None = None
    ) -> asyncio.subprocess.Process:
        """With a socket handed over as systemd does, if one is given, and so many open files at most."""
        environment = {**os.environ, "PYTHONPATH": SOURCES}
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.setblocking(False)
        told.bind(str(self.folder / f"notify-{len(self.processes)}"))
        environment["NOTIFY_SOCKET"] = told.getsockname()
        words = [sys.executable, "-m", "citadel_gateway", "serve", "--config", str(self.config)]
        if limit is not None:
            words = ["prlimit", f"--nofile={limit}:{limit}", *words]
        files: tuple[int, ...] = ()
        if listener is not None:
            # LISTEN_PID must be the process's own, and its socket the file 3
            script = 'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api; exec "$@"'
            words = ["bash", "-c", script, str(listener.fileno()), *words]
            files = (listener.fileno(),)
        log = (self.folder / f"process-{len(self.processes)}.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            *words, env=environment, pass_fds=files, stdout=log, stderr=log, cwd=self.folder
        )
        log.close()
        self.processes.append(process)
        with told:
            message = b""
            async with asyncio.timeout(15):
                while b"READY=1" not in message:
                    message = await asyncio.get_running_loop().sock_recv(told, 4096)
        return process

    async def stop(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def service(
    tmp_path: Path, over: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Service, Simulator, socket.socket]]:
    async with Simulator("phi") as simulator:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        port = listener.getsockname()[1]
        own = {
            "listen": {"api": f"127.0.0.1:{port}", "management": None},
            "auth": {"keys_file": str(tmp_path / "keys.json")},
            "logs": {"access": str(tmp_path / "access.log"), "audit": str(tmp_path / "audit.log")},
            "models": {
                "phi": {"context": 4096, "replicas": [{"name": "phi", "url": simulator.url}], "concurrency": 500}
            },
        }
        gateway = Service(tmp_path, port)
        gateway.config.write_text(yaml.safe_dump(merged(merged(BASE, own), over or {})))
        try:
            yield gateway, simulator, listener
        finally:
            listener.close()
            await gateway.stop()


def client(gateway: Service) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    return httpx.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False, limits=limits)


class TestReload:
    async def test_under_load(self, lab: Lab) -> None:
        lab.simulators["phi"].default = Act(tokens=10, gap=0.005)
        streams = [asyncio.create_task(lab.stream()) for _ in range(50)]
        await until(lambda: lab.simulators["phi"].running > 10)
        assert lab.reconfigure({"limits": {"tiers": {"default": {"requests_per_minute": 51}}}}) is None
        assert all(text_of(stream) == "word " * 10 for stream in await asyncio.gather(*streams))
        await lab.settled()
        assert (await lab.chat()).status_code == 200

    async def test_a_broken_file_is_refused_whole(self, lab: Lab) -> None:
        before = lab.gateway.config
        error = lab.reconfigure({"models": {"phi": {"context": -1}}, "limits": {"overall": None}})
        assert error is not None
        assert "models.phi.context: -1" in error
        assert lab.gateway.config is before
        assert (await lab.chat()).status_code == 200
        assert lab.metric("llm_config_reloads_total", outcome="refused") == 1
        assert any(record["event"] == "reload" and record["outcome"] == "refused" for record in lab.records("audit"))

    async def test_a_model_comes_and_another_goes(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(tokens=20, gap=0.01)
        streaming = asyncio.create_task(lab.stream(model="phi"))
        await until(lambda: simulator.running == 1)
        async with Simulator("new") as other:
            config = lab.config
            config["models"] = {"new": {"context": 2048, "replicas": [{"name": "new", "url": other.url}]}}
            assert lab.reconfigure({}) is None
            assert (await lab.chat(model="new")).status_code == 200
            assert (await lab.chat(model="phi")).status_code == 404
            # what was running on the model that went is finished in peace
            assert text_of(await streaming) == "word " * 20
        await until(lambda: lab.gateway.admission.in_flight == 0)

    async def test_counters_survive(self) -> None:
        async with running({"limits": {"tiers": {"default": {"requests_per_minute": 5}}}}) as lab:
            for _ in range(3):
                await lab.chat()
            assert lab.reconfigure({"limits": {"tiers": {"default": {"requests_per_minute": 4}}}}) is None
            assert [(await lab.chat()).status_code for _ in range(3)] == [200, 429, 429]

    async def test_by_signal(self, tmp_path: Path) -> None:
        async with service(tmp_path) as (gateway, _, listener), client(gateway) as user:
            process = await gateway.start(listener=listener)
            config = yaml.safe_load(gateway.config.read_text())
            config["models"]["phi"]["description"] = "changed"
            gateway.config.write_text(yaml.safe_dump(config))
            process.send_signal(signal.SIGHUP)

            async def changed() -> bool:
                return bool((await user.get("/v1/models")).json()["data"][0]["description"] == "changed")

            await eventually(changed)


class TestStopping:
    async def test_a_hundred_streams_finish(self, tmp_path: Path) -> None:
        async with service(tmp_path) as (gateway, simulator, listener), client(gateway) as user:
            simulator.default = Act(tokens=20, gap=0.03)
            process = await gateway.start(listener=listener)

            async def stream() -> str:
                body = {"messages": MESSAGES, "stream": True}
                async with user.stream("POST", "/v1/chat/completions", json=body) as answer:
                    return text_of(events(await answer.aread()))

            tasks = [asyncio.create_task(stream()) for _ in range(100)]
            await until(lambda: simulator.running == 100, 10)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.gather(*tasks) == ["word " * 20] * 100
            assert await asyncio.wait_for(process.wait(), 10) == 0
            audit = [json.loads(line)["event"] for line in (tmp_path / "audit.log").read_text().splitlines()]
            assert audit[-1] == "stop"
            assert len((tmp_path / "access.log").read_text().splitlines()) == 100

    async def test_what_does_not_finish_is_ended_with_a_reason(self) -> None:
        async with running({"server": {"drain": 0.3}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(tokens=1000, gap=0.01)
            streaming = asyncio.create_task(lab.stream())
            waiting = asyncio.create_task(lab.chat())
            await until(lambda: simulator.running == 2 and any(seen.sent > 3 for seen in simulator.seen))
            stopping = asyncio.create_task(lab.process.stop())
            stream = await streaming
            assert stream[-1]["error"]["code"] == "gateway_stopping"
            answer = await waiting
            assert answer.status_code == 503
            await stopping
            await until(lambda: all(seen.state == "aborted" for seen in simulator.seen), 1.0)

    async def test_its_replacement_takes_over_without_a_lost_request(self, tmp_path: Path) -> None:
        """Two processes share the socket; the old one drains while clients keep their connections and come again."""
        async with service(tmp_path) as (gateway, simulator, listener), client(gateway) as user:
            simulator.default = Act(tokens=3, gap=0.003)
            old = await gateway.start(listener=listener)
            statuses: list[int] = []
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    statuses.append((await user.post("/v1/chat/completions", json={"messages": MESSAGES})).status_code)

            users = [asyncio.create_task(ask()) for _ in range(8)]
            await until(lambda: len(statuses) > 50)
            await gateway.start(listener=listener)
            old.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(old.wait(), 10) == 0
            done = len(statuses)
            await until(lambda: len(statuses) > done + 50)
            stop.set()
            await asyncio.gather(*users)
            assert set(statuses) == {200}


class TestWants:
    async def test_of_files(self, tmp_path: Path) -> None:
        """Out of descriptors: nobody is blamed for it, and it is over when the clients have gone."""
        async with service(tmp_path) as (gateway, _, listener), client(gateway) as user:
            await gateway.start(listener=listener, limit=64)
            port = int(gateway.url.rsplit(":", 1)[1])
            idle = []
            for _ in range(80):
                idle.append(await asyncio.open_connection("127.0.0.1", port))
            await asyncio.sleep(0.3)
            for _, writer in idle:
                writer.close()

            async def answers() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await user.post("/v1/chat/completions", json={"messages": MESSAGES})).status_code == 200
                return False

            await eventually(answers, 10)
            health = (await user.get("/health/detailed")).json()
            assert health["models"]["phi"]["replicas"][0]["breaker"] == "closed"

    async def test_of_files_for_the_way_upstream(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        replica = next(lab.gateway.fleet.replicas())
        replica.pool.close_idle()
        monkeypatch.setattr(replica.pool, "_connect", _local_want)
        answer = await lab.chat()
        monkeypatch.undo()
        assert (answer.status_code, code_of(answer)) == (503, "gateway_overloaded")
        assert replica.breaker.state == "closed"
        assert (await lab.chat()).status_code == 200
        await lab.settled()

    async def test_of_disk(self) -> None:
        """A log that cannot be written costs lines, which are counted, never requests."""
        async with running({"logs": {"access": "/dev/full"}}) as lab:
            for _ in range(20):
                assert (await lab.chat()).status_code == 200
            lab.gateway.access.flush()
            assert (await lab.chat()).status_code == 200
            await lab.settled()

    async def test_rotation_loses_nothing(self, lab: Lab) -> None:
        log = lab.folder / "access.log"
        for number in range(30):
            await lab.chat()
            if number % 10 == 9:
                lab.gateway.access.flush()
                log.rename(lab.folder / f"access.log.{number}")
        await lab.settled()
        lab.gateway.access.flush()
        lines = sum(len(path.read_text().splitlines()) for path in lab.folder.glob("access.log*"))
        assert lines == 30

    async def test_a_reload_begins_a_log_that_was_moved_away(self, lab: Lab) -> None:
        """Also where nobody asks for anything: whoever looks for the file finds it."""
        await lab.chat()
        lab.gateway.access.flush()
        log = lab.folder / "access.log"
        log.rename(lab.folder / "access.log.1")
        assert lab.gateway.reload() is None
        assert log.exists() and not log.read_text()


async def _local_want(most: float) -> Any:
    from citadel_gateway.upstream import UpstreamError

    raise UpstreamError("local", "Too many open files")
