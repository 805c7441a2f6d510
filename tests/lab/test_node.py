"""What Prometheus learns of a host and its units, on the host itself."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families
from testinfra.host import Host

TEXT = "/var/lib/prometheus/node-exporter/citadel.prom"
UNIT = "citadel-llm@phi-3-mini.service"
Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def figures(text: str) -> Figures:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def scraped(address: dict[str, str]) -> Callable[[], Figures]:
    def ask() -> Figures:
        with urllib.request.urlopen(f"http://{address['llm-01']}:9100/metrics", timeout=10) as answer:
            return figures(answer.read().decode())

    return ask


def of(found: Figures, name: str, **labels: str) -> float:
    """Its value; -1 where there is none yet."""
    return next((v for (n, told), v in found.items() if n == name and labels.items() <= dict(told).items()), -1.0)


def test_units_plan_and_release_are_figures(scraped: Callable[[], Figures], llm: Host) -> None:
    found = scraped()
    states = [of(found, "citadel_unit_state", unit=UNIT, state=state) for state in ("active", "failed", "inactive")]
    assert states == [1, 0, 0]
    memory = of(found, "citadel_unit_memory_bytes", unit=UNIT, model="phi-3-mini")
    assert 100e6 < memory < of(found, "citadel_unit_memory_max_bytes", unit=UNIT)
    assert of(found, "citadel_plan_kv_cache_bytes", replica="phi-3-mini") > 0
    assert memory < of(found, "citadel_plan_memory_bytes", replica="phi-3-mini") * 1.5
    release = llm.check_output("basename $(readlink /opt/citadel/current)")
    assert of(found, "citadel_release_info", release=release) == 1
    assert of(found, "citadel_release_activated_timestamp_seconds") > time.time() - 86400
    assert of(found, "citadel_unit_state", unit="citadel-gateway.service", state="active") == 1
    assert of(found, "node_textfile_scrape_error") == 0
    assert time.time() - of(found, "citadel_metrics_written_timestamp_seconds") < 60


def test_a_restart_and_a_stop_are_seen(
    scraped: Callable[[], Figures], llm: Host, eventually: Callable[..., None]
) -> None:
    unit = "citadel-logs.service"
    before = of(scraped(), "citadel_unit_restarts_total", unit=unit)
    llm.check_output(f"systemctl kill -s KILL {unit}")
    eventually(lambda: of(scraped(), "citadel_unit_restarts_total", unit=unit), lambda now: now == before + 1, 60)
    llm.check_output(f"systemctl stop {unit}")
    try:
        eventually(lambda: of(scraped(), "citadel_unit_state", unit=unit, state="inactive"), lambda now: now == 1, 60)
    finally:
        llm.check_output(f"systemctl start {unit}")


def test_drift_is_counted_by_its_owner(
    scraped: Callable[[], Figures], llm: Host, eventually: Callable[..., None]
) -> None:
    path = "/etc/logrotate.d/citadel-llm"
    llm.check_output(f"cp -a {path} /root/kept && echo '# by hand' >> {path}")
    try:
        llm.check_output("systemctl start citadel-drift.service")
        eventually(lambda: of(scraped(), "citadel_drift_items", owner="logs"), lambda now: now == 1, 60)
    finally:
        llm.check_output(f"cp -a /root/kept {path} && rm /root/kept")
        llm.check_output("systemctl start citadel-drift.service")
    eventually(lambda: of(scraped(), "citadel_drift_items", owner="logs"), lambda now: now == 0, 60)


def test_only_what_is_read_is_collected(scraped: Callable[[], Figures]) -> None:
    found = scraped()
    assert len(found) < 1500
    collectors = {dict(told)["collector"] for name, told in found if name == "node_scrape_collector_success"}
    assert collectors >= {"systemd", "textfile", "filesystem", "meminfo"}
    assert "hwmon" not in collectors
