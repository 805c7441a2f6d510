"""What Prometheus reads. Every label comes from the configuration or from a short list in the code."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from citadel_gateway import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric

    from citadel_gateway.admission import Admission
    from citadel_gateway.config import Config
    from citadel_gateway.limits import Limits
    from citadel_gateway.redis_client import Redis

# asked for: 0.1 0.5 1 2 5 10 30; the others are the edges of the models' own targets (mean and p95) and timeouts
_DURATIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
_QUEUE = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)

STATES = ("unknown", "loading", "ready", "draining", "failed")
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}
KNOWLEDGE = ("used", "nothing", "too_long", "unavailable", "refused")  # what asking for it comes to
TOKENS = ("prompt", "completion", "cached")
UNKNOWN_MODEL = "unknown"
# by the names that dashboards know them by
_ENDPOINTS = {"chat": "chat_completions"}
_PATH_ENDPOINTS = ("chat_completions", "completions", "embeddings")


def _outcome(status: int) -> str:
    return "success" if status < 400 else "error"


def _endpoint(name: str) -> str:
    return _ENDPOINTS.get(name, name)


class Metrics:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self.rejections = Counter(
            "llm_rejections_total", "Requests refused by the gateway", ["model", "reason"], registry=registry
        )
        self.upstream_errors = Counter(
            "llm_upstream_errors_total",
            "Failed calls of a replica",
            ["model", "replica", "kind"],
            registry=registry,
        )
        self.retries = Counter("llm_retries_total", "Calls made again", ["model"], registry=registry)
        self.fallbacks = Counter(
            "llm_fallbacks_total", "Requests answered by another model", ["model", "by"], registry=registry
        )
        self.cache_hits = Counter("llm_cache_hits_total", "Answers from the cache", ["model"], registry=registry)
        self.cache_misses = Counter(
            "llm_cache_misses_total", "Answers that the cache did not have", ["model"], registry=registry
        )
        self.cache_waits = Counter(
            "llm_cache_waits_total", "Requests that waited for the answer to an equal one", ["model"], registry=registry
        )
        self.cache_evictions = Counter(
            "llm_cache_evictions_total", "Answers that had to make room", ["model"], registry=registry
        )
        self.knowledge = Counter(
            "llm_knowledge_requests_total",
            "Requests that asked for stored knowledge in their context",
            ["outcome"],
            registry=registry,
        )
        self.cache_redis = Counter(
            "llm_cache_redis_total", "What Redis did for the cache", ["outcome"], registry=registry
        )
        self.engine_deaths = Counter(
            "llm_engine_deaths_total",
            "Engines that died with a request in flight",
            ["model", "replica"],
            registry=registry,
        )
        self.steps = Counter(
            "llm_steps_total", "What the steps before the model came to", ["outcome"], registry=registry
        )
        self.dropped_logs = Counter(
            "llm_log_lines_dropped_total", "Log lines that could not be written", ["log"], registry=registry
        )
        self.spooled = Counter("llm_usage_records_total", "Records of usage that were kept", registry=registry)
        self.dropped_usage = Counter(
            "llm_usage_records_dropped_total", "Records of usage that could not be kept", ["reason"], registry=registry
        )
        self.spool_bytes = Gauge("llm_usage_spool_bytes", "What waits in the spool of usage", registry=registry)
        self.sent_spans = Counter("llm_spans_sent_total", "Spans that the collector took", registry=registry)
        self.dropped_spans = Counter(
            "llm_traces_dropped_total", "Sampled traces that were not sent", ["reason"], registry=registry
        )
        self.connections = Gauge("llm_client_connections", "Open client connections", registry=registry)
        self.reloads = Counter(
            "llm_config_reloads_total", "Configuration reloads by outcome", ["outcome"], registry=registry
        )
        Info("llm_gateway", "Version of the gateway", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.work = Work()
        registry.register(self.work)

    def prepare(self, config: Config) -> None:
        """Series that exist before the first event, so that a rate over them is true from the start."""
        if config.knowledge is not None:
            for outcome in KNOWLEDGE:
                self.knowledge.labels(outcome)
        for name, model in config.models.items():
            self.work.prepare(name, model.endpoints)
            for cached in (self.cache_hits, self.cache_misses, self.cache_waits, self.cache_evictions):
                cached.labels(name)
            self.retries.labels(name)
            for replica in model.replicas:
                self.engine_deaths.labels(name, replica.name)


# what rates are asked of: the first of a kind would be nothing to them if it came with its series
_FROM_THE_START = (200, 500, 503, 504)


class Distribution:
    """A histogram as plain numbers."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Distribution) -> None:
        self.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def buckets(self) -> list[tuple[str, float]]:
        edges = [floatToGoString(bound) for bound in (*self.bounds, math.inf)]  # type: ignore[no-untyped-call]
        return list(zip(edges, itertools.accumulate(self.counts), strict=True))


class Work(Collector):
    """What every request counts. One thread does it, so that numbers will do: prometheus_client's own take a lock for
    each of them, and walk through the buckets."""

    def __init__(self) -> None:
        self._requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._durations = defaultdict[tuple[str, str], Distribution](lambda: Distribution(_DURATIONS))
        self._first = defaultdict[str, Distribution](lambda: Distribution(_FIRST_TOKEN))
        self._queued = defaultdict[str, Distribution](lambda: Distribution(_QUEUE))

    def prepare(self, model: str, endpoints: Iterable[str]) -> None:
        for endpoint in endpoints:
            for status in _FROM_THE_START:
                self._requests[model, endpoint, status] += 0
        for kind in TOKENS:
            self._tokens[model, kind] += 0
        for distributions in (self._queued, self._first):
            distributions[model]  # to ask for one is to make it

    def request(self, model: str, endpoint: str, status: int, seconds: float) -> None:
        self._requests[model, endpoint, status] += 1
        self._durations[model, endpoint].observe(seconds)

    def call(self, model: str, queued: float, first: float | None, tokens: tuple[int, int, int]) -> None:
        self._queued[model].observe(queued)
        if first is not None:
            self._first[model].observe(first)
        counts = self._tokens
        for kind, count in zip(TOKENS, tokens, strict=True):
            if count:
                counts[model, kind] += count

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "llm_requests", "Requests by outcome", labels=["model", "endpoint", "status", "code"]
        )
        http: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        for (model, endpoint, status), count in self._requests.items():
            values = _endpoint(endpoint), _outcome(status), str(status)
            requests.add_metric([model, *values], count)
            http[values] += count
        yield requests
        yield from self._http(http)
        tokens = CounterMetricFamily(
            "llm_tokens_processed", f"Tokens by type: {', '.join(TOKENS)}", labels=["model", "type"]
        )
        for (model, kind), count in self._tokens.items():
            tokens.add_metric([model, kind], count)
        yield tokens
        found: tuple[tuple[str, str, list[str], dict[Any, Distribution]], ...] = (
            (
                "llm_request_duration_seconds",
                "From the first byte of a request to the last of its answer",
                ["model", "endpoint"],
                {(model, _endpoint(endpoint)): each for (model, endpoint), each in self._durations.items()},
            ),
            (
                "llm_time_to_first_token_seconds",
                "From the request to the first byte of its answer, waiting included",
                ["model"],
                self._first,
            ),
            ("llm_queue_time_seconds", "Waiting for admission", ["model"], self._queued),
        )
        for name, text, labels, distributions in found:
            family = HistogramMetricFamily(name, text, labels=labels)
            for key, distribution in distributions.items():
                family.add_metric([key] if isinstance(key, str) else key, distribution.buckets(), distribution.sum)
            yield family

    def _http(self, counts: dict[tuple[str, str, str], int]) -> Iterator[Metric]:
        """The same over all models, by the names that a web server's dashboard expects."""
        total = CounterMetricFamily("http_requests", "Requests by outcome", labels=["endpoint", "status", "code"])
        for values, count in counts.items():
            total.add_metric(values, count)
        yield total
        merged: dict[str, Distribution] = {}
        for (_, endpoint), distribution in self._durations.items():
            merged.setdefault(_endpoint(endpoint), Distribution(_DURATIONS)).add(distribution)
        family = HistogramMetricFamily(
            "http_request_duration_seconds", "From the first byte of a request to the last", labels=["endpoint"]
        )
        for endpoint, distribution in merged.items():
            family.add_metric([endpoint], distribution.buckets(), distribution.sum)
        yield family


class Now(Collector):
    """The gauges, read from the live objects when somebody asks."""

    def __init__(
        self, admission: Admission, running: Callable[[], Iterable[str]], cached: Callable[[str], int]
    ) -> None:
        self._admission = admission
        self._cached = cached  # bytes of a model's answers
        self._running = running  # the endpoints of the requests that are not over

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        active = GaugeMetricFamily("llm_active_requests", "Requests in flight", labels=["model"])
        depth = GaugeMetricFamily("llm_queue_depth", "Requests waiting", labels=["model"])
        health = GaugeMetricFamily("llm_model_health", "1 if some replica is ready", labels=["model"])
        capacity = GaugeMetricFamily("llm_model_capacity", "Requests that may be in flight", labels=["model"])
        memory = GaugeMetricFamily("llm_model_memory_usage_bytes", "Memory of the model's servers", labels=["model"])
        cached = GaugeMetricFamily("llm_cache_bytes", "Memory of the answers that are kept", labels=["model"])
        state = GaugeMetricFamily("llm_replica_state", "1 for the state it is in", labels=["model", "replica", "state"])
        breaker = GaugeMetricFamily("llm_breaker_state", "0 closed, 1 half open, 2 open", labels=["model", "replica"])
        restarts = CounterMetricFamily(
            "llm_replica_restarts", "Restarts that this gateway has seen", labels=["model", "replica"]
        )
        for lane in self._admission.lanes.values():
            model = lane.model
            active.add_metric([model.name], lane.in_flight)
            depth.add_metric([model.name], lane.waiting)
            health.add_metric([model.name], float(model.status() == "ready"))
            capacity.add_metric([model.name], model.capacity())
            cached.add_metric([model.name], self._cached(model.name))
            memory.add_metric([model.name], sum(replica.memory for replica in model.replicas))
            for replica in model.replicas:
                breaker.add_metric([model.name, replica.name], BREAKER_STATES[replica.breaker.state])
                restarts.add_metric([model.name, replica.name], replica.restarts)
                for name in STATES:
                    state.add_metric([model.name, replica.name, name], float(replica.state == name))
        flying = GaugeMetricFamily("http_requests_in_flight", "Requests that are not over", labels=["endpoint"])
        flights = Counts(_endpoint(name) for name in self._running())
        for endpoint in dict.fromkeys((*_PATH_ENDPOINTS, *flights)):
            flying.add_metric([endpoint], flights[endpoint])
        yield from (active, depth, health, capacity, memory, cached, state, breaker, restarts, flying)


class Outside(Collector):
    """What the gateway shares with others over Redis; nothing where it shares nothing."""

    def __init__(self, redis: dict[str, Redis], limits: Limits) -> None:
        self._redis = redis  # by what it is used for
        self._limits = limits

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        if self._redis:
            up = GaugeMetricFamily("llm_redis_up", "1 while it answers", labels=["use"])
            losses = CounterMetricFamily("llm_redis_losses", "Connections that were lost in use", labels=["use"])
            for use, redis in self._redis.items():
                up.add_metric([use], float(redis.up))
                losses.add_metric([use], redis.losses)
            yield from (up, losses)
        shared = self._limits.shared
        if shared is not None:
            yield CounterMetricFamily(
                "llm_limits_local",
                "Requests that only this gateway's own limits decided, since Redis was away",
                value=shared.decided_alone,
            )
