"""Looking after the replicas: what their /health, their metrics and real requests say about them."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from citadel_gateway.config import Health
    from citadel_gateway.fleet import Fleet, Replica

_METRIC = re.compile(
    r"^(vllm:num_requests_running|vllm:num_requests_waiting|vllm:kv_cache_usage_perc"
    r"|vllm:iteration_tokens_total_count|vllm:generation_tokens_total|process_resident_memory_bytes|process_start_time_seconds)"
    r"(?:\{[^}]*\})? ([0-9.eE+-]+)",
    re.MULTILINE,
)
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.usage_in_bytes"),
)


class Prober:
    def __init__(
        self,
        fleet: Fleet,
        settings: Health,
        awaited: Callable[[Replica], bool],
        opened: Callable[[Replica], None],
    ) -> None:
        self._fleet = fleet
        self._awaited = awaited
        self._opened = opened  # a breaker has
        self._asked: dict[Replica, asyncio.Task[bool]] = {}
        self._tasks: dict[Replica, asyncio.Task[None]] = {}
        # verify=False spares the loading of certificates: replicas are spoken to in plain HTTP
        self._client = httpx.AsyncClient(verify=False, trust_env=False, timeout=settings.timeout)  # noqa: S501
        self.apply(settings)

    def apply(self, settings: Health) -> None:
        self.settings = settings
        self._client.timeout = httpx.Timeout(settings.timeout)
        wanted = set(self._fleet.replicas())
        for replica in set(self._tasks) - wanted:
            self._tasks.pop(replica).cancel()
        for replica in wanted - set(self._tasks):
            self._tasks[replica] = asyncio.create_task(self._watch(replica), name=f"probe {replica.name}")

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._client.aclose()

    async def _watch(self, replica: Replica) -> None:
        while True:
            await self.probe(replica)
            settings = self.settings
            if replica.breaker.suspect:
                pause = settings.down_interval
            elif replica.state == "ready":
                pause = settings.interval
            elif self._awaited(replica):
                pause = settings.awaited_interval
            else:
                pause = settings.down_interval
            # never more often than this, however many requests ask for it
            least = min(pause, settings.awaited_interval)
            await asyncio.sleep(least)
            if pause > least and not replica.poke.is_set():
                try:
                    async with asyncio.timeout(pause - least):
                        await replica.poke.wait()
                except TimeoutError:
                    pass
            replica.poke.clear()

    async def probe(self, replica: Replica) -> None:
        try:
            health = await self._client.get(f"{replica.settings.url}/health")
        except httpx.ConnectError:
            replica.refused()
            return
        except httpx.HTTPError as error:
            self._bad(replica, f"its /health does not answer ({type(error).__name__})")
            return
        replica.away_since = None
        if health.status_code != 200:
            self._bad(replica, f"its /health says {health.status_code}")
        elif replica.state == "ready" or await self._serves_the_name(replica):
            await self._look_inside(replica)

    async def _look_inside(self, replica: Replica) -> None:
        """Its health is good; whether its engine is, too."""
        await self._read_metrics(replica)
        if replica.leaving:
            return
        stalled = time.monotonic() - replica.progress_at
        if replica.running > 0 and stalled > self.settings.stalled_after:
            replica.good_probes = 0
            replica.become(
                "failed",
                f"its engine has {replica.running:.0f} requests and made no token for {stalled:.0f} s",
            )
            return
        if replica.breaker.suspect and not await self.confirm(replica):
            return
        replica.bad_probes = 0
        replica.good_probes += 1
        if replica.state in ("unknown", "loading") or replica.good_probes >= self.settings.back_after:
            replica.become("ready", "answers")

    async def confirm(self, replica: Replica) -> bool:
        """Whether a replica that clients saw fail still gives a token; if it does not, it is taken out."""
        if await self.speaks(replica):
            replica.breaker.acquit()
            return True
        if replica.breaker.convict():
            self._opened(replica)
        elif replica.breaker.suspect:
            # the word of one client is not enough: as many bad probes are, as always
            self._bad(replica, "it gives no token when it is asked for one")
        return False

    async def speaks(self, replica: Replica) -> bool:
        """Ask for one token, as a client would; everybody who wants to know at the same time shares the question."""
        task = self._asked.get(replica)
        if task is None:
            task = self._asked[replica] = asyncio.create_task(self._speaks(replica), name=f"ask {replica.name}")
            task.add_done_callback(lambda _: self._asked.pop(replica, None))
        return await asyncio.shield(task)

    async def _speaks(self, replica: Replica) -> bool:
        model = replica.model
        body: dict[str, Any] = {"model": model.served_name, "max_tokens": 1}
        if "embeddings" in model.settings.endpoints:
            path, body = "/v1/embeddings", {"model": model.served_name, "input": "ping"}
        elif "completions" in model.settings.endpoints:
            path, body["prompt"] = "/v1/completions", "ping"
        else:
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "ping"}]
        before = replica.progress
        try:
            answer = await self._client.post(f"{replica.settings.url}{path}", json=body)
            if answer.status_code not in (429, 503):
                return answer.status_code < 500
        except httpx.TimeoutException:
            pass
        except httpx.HTTPError:
            return False
        # too busy to answer is alive, if it makes tokens for others
        await self._read_metrics(replica)
        return replica.progress > before >= 0.0

    def _bad(self, replica: Replica, reason: str) -> None:
        replica.good_probes = 0
        if replica.leaving:
            return  # an engine that died is known to be away, and whoever comes waits for the next one
        replica.bad_probes += 1
        if replica.bad_probes >= self.settings.out_after or replica.state != "ready":
            replica.become("failed", reason)

    async def _serves_the_name(self, replica: Replica) -> bool:
        """A server that answers for another model would be worse than none."""
        try:
            answer = await self._client.get(f"{replica.settings.url}/v1/models")
            names = [item["id"] for item in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            self._bad(replica, "its /v1/models does not answer as OpenAI's")
            return False
        if replica.model.served_name not in names:
            found = ", ".join(map(str, names)) or "nothing"
            self._bad(replica, f"it serves {found} and not {replica.model.served_name}")
            return False
        return True

    async def _read_metrics(self, replica: Replica) -> None:
        try:
            answer = await self._client.get(f"{replica.settings.url}/metrics")
        except httpx.HTTPError:
            return
        sums: dict[str, float] = {}
        if answer.status_code == 200:
            for name, value in _METRIC.findall(answer.text):
                sums[name] = sums.get(name, 0.0) + float(value)
        replica.running = sums.get("vllm:num_requests_running", 0.0)
        replica.waiting = sums.get("vllm:num_requests_waiting", 0.0)
        replica.cache_used = sums.get("vllm:kv_cache_usage_perc", 0.0)
        replica.started_at(sums.get("process_start_time_seconds", 0.0))
        progress = sums.get("vllm:iteration_tokens_total_count", 0.0) + sums.get("vllm:generation_tokens_total", 0.0)
        if progress != replica.progress or not replica.running:
            replica.progress = progress
            replica.progress_at = time.monotonic()
        memory = _unit_memory(replica.settings.unit) if replica.settings.unit else None
        replica.memory = memory if memory is not None else sums.get("process_resident_memory_bytes", 0.0)


def _unit_memory(unit: str) -> float | None:
    """What the kernel counts for a unit of this host, under either version of control groups."""
    template, _, _ = unit.partition("@")
    folders = [f"system.slice/{unit}"]
    if "@" in unit:
        escaped = template.replace("-", r"\x2d")
        folders.insert(0, f"system.slice/system-{escaped}.slice/{unit}")
    for root, file in _CGROUPS:
        for folder in folders:
            try:
                return float((Path(root) / folder / file).read_text())
            except (OSError, ValueError):
                continue
    return None
