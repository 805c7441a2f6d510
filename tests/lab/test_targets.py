"""Joined to the metrics server: proven by asking Prometheus itself."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host


@pytest.fixture(scope="session")
def query(address: dict[str, str], ask: Callable[..., Any]) -> Callable[[str], list[Any]]:
    base = f"http://{address['metrics-01']}:9090/api/v1/query?query="
    return lambda expression: list(ask(base + urllib.parse.quote(expression))["data"]["result"])


def test_every_target_of_ours_is_up(query: Callable[[str], list[Any]], address: dict[str, str]) -> None:
    found = {(entry["metric"]["instance"], entry["value"][1]) for entry in query('up{citadel_host="llm-01"}')}
    assert found == {(f"{address['llm-01']}:9090", "1")}


def test_the_gateways_figures_arrive(query: Callable[[str], list[Any]], eventually: Callable[..., None]) -> None:
    models = {"mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini"}
    eventually(
        lambda: {entry["metric"]["model"] for entry in query("llm_model_health == 1")},
        lambda healthy: healthy >= models,
    )


def test_the_file_of_targets_is_ours_alone_and_whole(metrics: Host) -> None:
    file = metrics.file("/etc/prometheus/targets.d/citadel-llm-01.yml")
    assert (file.user, file.mode) == ("root", 0o644)
    assert metrics.run("promtool check config /etc/prometheus/prometheus.yml").rc == 0
