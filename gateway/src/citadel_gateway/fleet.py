"""The models and their replicas as they are now: states, breakers, figures from the engines.

States: unknown (not yet probed; may be tried), loading (nothing listens, a start is plausible), ready,
draining (an operator asked), failed. A request may wait for a model that is loading or draining, since it comes
back; for one that has failed it does not.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from citadel_gateway.breaker import Breaker
from citadel_gateway.config import split_address
from citadel_gateway.exchange import header_lines
from citadel_gateway.upstream import Pool

if TYPE_CHECKING:
    from citadel_gateway.config import Config
    from citadel_gateway.config import Model as ModelSettings
    from citadel_gateway.config import Replica as ReplicaSettings

State = Literal["unknown", "loading", "ready", "draining", "failed"]
_SMOOTHING = 0.2
_LEAVE = 120.0  # seconds after which one that said that it stops, and did not, is believed again


class Average:
    """An exponentially weighted mean that starts with its first sample."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        self.value = sample if not self.count else self.value + _SMOOTHING * (sample - self.value)
        self.count += 1


class Replica:
    def __init__(self, model: Model, settings: ReplicaSettings, config: Config) -> None:
        self.model = model
        self.name = settings.name
        self.settings = settings
        host, port = split_address(settings.url.removeprefix("http://"))
        # what is the same in every request to it, and in every answer from it
        authority = settings.url.removeprefix("http://").encode()
        self.call_head = b" HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n" % authority
        self.answer_lines = header_lines(
            (b"x-citadel-model", model.name.encode()), (b"x-citadel-replica", self.name.encode())
        )
        self.pool = Pool(host, port, config.server.connect_timeout)
        self.breaker = Breaker(config.breaker)
        self.state: State = "unknown"
        self.reason = "not probed yet"
        self.since = time.monotonic()
        self.drained = False
        self.in_flight = 0
        self.current_weight = 0  # of the smooth weighted round robin
        self.first_byte = Average()
        self.good_probes = 0
        self.bad_probes = 0
        self.away_since: float | None = None
        self.leaving_until = 0.0  # its own /health says 200 to its very end
        self.load_times = config.health.load_times
        self.load_seconds = self._last_load() or model.settings.load_seconds
        self.poke = asyncio.Event()  # somebody waits for it: look now
        self.idle = asyncio.Event()  # the last request has left
        # from the engine's own metrics
        self.running = 0.0
        self.waiting = 0.0
        self.cache_used = 0.0
        self.progress = -1.0
        self.progress_at = time.monotonic()
        self.memory = 0.0
        self.started = 0.0  # when its process began, by its own word
        self.restarts = 0
        self.deaths = 0  # with requests in flight
        self.died_at = 0.0

    @property
    def usable(self) -> bool:
        return self.state in ("ready", "unknown") and self.breaker.allows(self.in_flight)

    def room(self) -> int:
        """How many requests it may have in flight now, those that it has included."""
        if self.state not in ("ready", "unknown"):
            return 0
        if self.breaker.state == "closed":
            return self.model.settings.concurrency
        if self.breaker.opens_in() > 0:
            return 0
        return min(self.model.settings.concurrency, self.breaker.settings.half_open_calls)

    def become(self, state: State, reason: str) -> None:
        if self.drained and state != "draining":
            # probes go on under a drain, and what they find counts once it is lifted
            return
        if state == "ready" and self.state in ("loading", "failed"):
            self.breaker.reset()
        changed = state != self.state
        self.reason = reason
        if changed:
            self.state = state
            self.since = time.monotonic()
            self.model.changed(self, state)

    def drain(self) -> None:
        self.drained = True
        self.become("draining", "asked for by an operator")

    def undrain(self) -> None:
        self.drained = False
        self.good_probes = self.bad_probes = 0
        self.become("unknown", "not probed since the drain")

    def started_at(self, moment: float) -> None:
        """Another moment is another process: it was restarted, whoever did it and however short it was away."""
        if moment and self.started and moment != self.started:
            self.restarts += 1
            self.leaving_until = 0.0
        self.started = moment or self.started

    @property
    def leaving(self) -> bool:
        return time.monotonic() < self.leaving_until

    def leaves(self) -> None:
        """It only ends the requests that it has: whatever it says of its health, it is on its way out."""
        self.good_probes = 0
        self.leaving_until = time.monotonic() + _LEAVE
        self.become("loading", "it is stopping and will be back")

    def dies(self) -> None:
        """Its engine has died; the server around it answers errors until it ends, and another one starts."""
        self.good_probes = 0
        self.leaving_until = time.monotonic() + _LEAVE
        self.become("loading", "its engine died; it will be back")

    def refused(self) -> None:
        """Nothing listens. It was there or may yet come: loading, until its load time has long passed."""
        now = time.monotonic()
        self.good_probes = 0
        self.leaving_until = 0.0
        if self.away_since is None:
            self.away_since = now
            self.load_seconds = self._last_load() or self.model.settings.load_seconds
        if now - self.away_since <= 1.5 * max(self.load_seconds, self.model.settings.load_seconds):
            self.become("loading", "nothing listens on its port; it is starting or stopped")
        else:
            self.become("failed", "nothing has listened on its port for longer than it needs to load")

    def _last_load(self) -> float:
        """How long its last start took, as whoever starts the models has written it down."""
        try:
            return float(json.loads(Path(self.load_times).read_bytes())[self.name]) if self.load_times else 0.0
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def back_in(self) -> float:
        """Seconds until it is likely to take requests, as far as can be told."""
        if self.state in ("ready", "unknown"):
            return self.breaker.opens_in()
        if self.away_since is not None:
            return max(1.0, self.away_since + self.load_seconds - time.monotonic())
        return self.load_seconds


class Model:
    def __init__(self, name: str, settings: ModelSettings, on_change: Callable[[Replica, State], None]) -> None:
        self.name = name
        self.changed = on_change
        self.replicas: list[Replica] = []
        self.service = Average()  # seconds from the permit to its return
        self.first_byte = Average()
        self.created = int(time.time())
        self.apply(settings)

    def apply(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.served_name = settings.served_name or self.name

    def capacity(self) -> int:
        return sum(replica.room() for replica in self.replicas)

    def back_in(self) -> float:
        return min((replica.back_in() for replica in self.replicas), default=self.settings.load_seconds)

    def comes_back(self) -> bool:
        """Whether waiting is sensible: some replica is on its way, or can be tried."""
        return any(replica.state in ("loading", "draining", "ready", "unknown") for replica in self.replicas)

    def status(self) -> str:
        states = {replica.state for replica in self.replicas if replica.breaker.state != "open"}
        for state in ("ready", "unknown", "loading", "draining"):
            if state in states:
                return state
        return "failed"


class Fleet:
    def __init__(self, config: Config, on_change: Callable[[Replica, State], None]) -> None:
        self.models: dict[str, Model] = {}
        self.names: dict[str, Model] = {}
        self._on_change = on_change
        self.apply(config)

    def apply(self, config: Config) -> list[Replica]:
        """Take over a configuration; replicas that stay keep their state. Returns those that left."""
        before = set(self.replicas())
        models: dict[str, Model] = {}
        for name, settings in config.models.items():
            model = self.models.get(name) or Model(name, settings, self._on_change)
            model.apply(settings)
            kept = {(replica.name, replica.settings.url): replica for replica in model.replicas}
            model.replicas = []
            for wanted in settings.replicas:
                replica = kept.get((wanted.name, wanted.url)) or Replica(model, wanted, config)
                replica.settings = wanted
                replica.breaker.settings = config.breaker
                replica.load_times = config.health.load_times
                model.replicas.append(replica)
            models[name] = model
        self.models = models
        self.names = dict(models)
        for name, settings in config.models.items():
            self.names.update(dict.fromkeys(settings.aliases, models[name]))
        return [replica for replica in before if replica not in set(self.replicas())]

    def replicas(self) -> Iterator[Replica]:
        for model in self.models.values():
            yield from model.replicas

    def status(self) -> str:
        states = [model.status() for model in self.models.values()]
        good = sum(state == "ready" for state in states)
        if good == len(states):
            return "healthy"
        return "degraded" if good else "unhealthy"
