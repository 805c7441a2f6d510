"""The names that rules and dashboards build on, and labels that cannot grow."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.harness import Lab
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio

NAMES = {
    "llm_requests_total": {"model", "endpoint", "status", "code"},
    "http_requests_total": {"endpoint", "status", "code"},
    "http_request_duration_seconds": {"endpoint"},
    "http_requests_in_flight": {"endpoint"},
    "llm_engine_deaths_total": {"model", "replica"},
    "llm_request_duration_seconds": {"model", "endpoint"},
    "llm_active_requests": {"model"},
    "llm_model_health": {"model"},
    "llm_tokens_processed_total": {"model", "type"},
    "llm_model_memory_usage_bytes": {"model"},
    "llm_time_to_first_token_seconds": {"model"},
    "llm_queue_time_seconds": {"model"},
    "llm_queue_depth": {"model"},
    "llm_breaker_state": {"model", "replica"},
    "llm_replica_restarts_total": {"model", "replica"},
    "llm_rejections_total": {"model", "reason"},
    "llm_cache_hits_total": {"model"},
    "llm_cache_misses_total": {"model"},
    "llm_cache_waits_total": {"model"},
    "llm_cache_evictions_total": {"model"},
    "llm_cache_bytes": {"model"},
    "llm_upstream_errors_total": {"model", "replica", "kind"},
}


async def test_every_promised_metric_is_there_with_its_labels(lab: Lab) -> None:
    await lab.chat()
    await lab.chat(model="nope")
    lab.simulators["phi"].script.append(Act(status=500))
    await lab.chat()
    await lab.settled()
    text = (await lab.client.get("/metrics")).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for suffix in ("_bucket", "_sum", "_count"):
                name = sample.name.removesuffix(suffix)
                found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert {name: found.get(name) for name in NAMES} == NAMES
    assert 'llm_request_duration_seconds_bucket{endpoint="chat_completions",le="0.75",model="phi"} 2.0' in text
    assert 'llm_model_memory_usage_bytes{model="phi"} 1.5e+09' in text
    assert 'llm_model_health{model="phi"} 1.0' in text


async def test_series_are_there_before_the_first_request(lab: Lab) -> None:
    text = (await lab.client.get("/metrics")).text
    assert 'llm_requests_total{code="200",endpoint="chat_completions",model="phi",status="success"} 0.0' in text


async def test_a_model_that_was_restarted_is_counted(lab: Lab) -> None:
    replica = next(lab.gateway.fleet.replicas())

    def counted() -> float:
        return lab.metric("llm_replica_restarts_total", model="phi", replica="phi")

    assert counted() == 0
    for restart in (1, 2):
        await lab.simulators["phi"].stop(abruptly=True)
        assert (await lab.chat(headers={"x-stainless-read-timeout": "0.2"})).status_code == 503
        await lab.simulators["phi"].start()
        await until(lambda: replica.state == "ready")
        assert counted() == restart


async def test_labels_do_not_grow_with_what_clients_send(lab: Lab) -> None:
    await asyncio.gather(*(lab.chat(model=f"made-up-{number}") for number in range(20)))
    await asyncio.gather(*(lab.client.get(f"/made/up/{number}") for number in range(20)))
    before = len((await lab.client.get("/metrics")).text.splitlines())
    await asyncio.gather(*(lab.chat(model=f"nonsense-{number}", user=f"u{number}") for number in range(20)))
    await asyncio.gather(*(lab.client.request(f"X{number}", "/v1/models") for number in range(5)))
    after = (await lab.client.get("/metrics")).text
    assert len(after.splitlines()) - before < 40  # one new status with its histogram, never one per name
    assert "made-up" not in after
    assert "nonsense" not in after
