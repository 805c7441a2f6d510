"""What Prometheus reads. Every label comes from the configuration or from a short list in the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from citadel_gateway import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from citadel_gateway.admission import Admission
    from citadel_gateway.config import Config

# asked for: 0.1 0.5 1 2 5 10 30; the others are the edges of the models' own targets (mean and p95) and timeouts
_DURATIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
_QUEUE = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)

STATES = ("unknown", "loading", "ready", "draining", "failed")
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}
UNKNOWN_MODEL = "unknown"


class Metrics:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "llm_requests_total", "Requests by outcome", ["model", "endpoint", "status"], registry=registry
        )
        self.duration = Histogram(
            "llm_request_duration_seconds",
            "From the first byte of a request to the last of its answer",
            ["model", "endpoint"],
            buckets=_DURATIONS,
            registry=registry,
        )
        self.first_token = Histogram(
            "llm_time_to_first_token_seconds",
            "From the request to the first byte of its answer, waiting included",
            ["model"],
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.queue_time = Histogram(
            "llm_queue_time_seconds", "Waiting for admission", ["model"], buckets=_QUEUE, registry=registry
        )
        self.tokens = Counter(
            "llm_tokens_processed_total",
            "Tokens by type: prompt, completion, cached",
            ["model", "type"],
            registry=registry,
        )
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
        self.dropped_logs = Counter(
            "llm_log_lines_dropped_total", "Log lines that could not be written", ["log"], registry=registry
        )
        self.connections = Gauge("llm_client_connections", "Open client connections", registry=registry)
        self.reloads = Counter(
            "llm_config_reloads_total", "Configuration reloads by outcome", ["outcome"], registry=registry
        )
        Info("llm_gateway", "Version of the gateway", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._requests: dict[tuple[str, str, int], Counter] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}
        self._tokens: dict[str, tuple[Counter, Counter, Counter]] = {}
        self._latencies: dict[str, tuple[Histogram, Histogram]] = {}

    # children are looked up once: `labels` costs more than what it leads to

    def count_request(self, model: str, endpoint: str, status: int, seconds: float) -> None:
        key = (model, endpoint, status)
        counter = self._requests.get(key)
        if counter is None:
            counter = self._requests[key] = self.requests.labels(model, endpoint, str(status))
            self._durations[model, endpoint] = self.duration.labels(model, endpoint)
        counter.inc()
        self._durations[model, endpoint].observe(seconds)

    def count_work(self, model: str, queued: float, first: float | None, tokens: tuple[int, int, int]) -> None:
        found = self._tokens.get(model)
        if found is None:
            found = self._tokens[model] = (
                self.tokens.labels(model, "prompt"),
                self.tokens.labels(model, "completion"),
                self.tokens.labels(model, "cached"),
            )
            self._latencies[model] = self.queue_time.labels(model), self.first_token.labels(model)
        queue_time, first_token = self._latencies[model]
        queue_time.observe(queued)
        if first is not None:
            first_token.observe(first)
        for counter, count in zip(found, tokens, strict=True):
            if count:
                counter.inc(count)

    def prepare(self, config: Config) -> None:
        """Series that exist before the first event, so that a rate over them is true from the start."""
        for name, model in config.models.items():
            for endpoint in model.endpoints:
                self.requests.labels(name, endpoint, "200")
            for kind in ("prompt", "completion", "cached"):
                self.tokens.labels(name, kind)
            self.cache_hits.labels(name)
            self.retries.labels(name)
            self.queue_time.labels(name)
            self.first_token.labels(name)


class Now(Collector):
    """The gauges, read from the live objects when somebody asks."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        active = GaugeMetricFamily("llm_active_requests", "Requests in flight", labels=["model"])
        depth = GaugeMetricFamily("llm_queue_depth", "Requests waiting", labels=["model"])
        health = GaugeMetricFamily("llm_model_health", "1 if some replica is ready", labels=["model"])
        capacity = GaugeMetricFamily("llm_model_capacity", "Requests that may be in flight", labels=["model"])
        memory = GaugeMetricFamily("llm_model_memory_usage_bytes", "Memory of the model's servers", labels=["model"])
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
            memory.add_metric([model.name], sum(replica.memory for replica in model.replicas))
            for replica in model.replicas:
                breaker.add_metric([model.name, replica.name], BREAKER_STATES[replica.breaker.state])
                restarts.add_metric([model.name, replica.name], replica.restarts)
                for name in STATES:
                    state.add_metric([model.name, replica.name, name], float(replica.state == name))
        yield from (active, depth, health, capacity, memory, state, breaker, restarts)
