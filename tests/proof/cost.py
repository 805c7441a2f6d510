"""What being watched costs, as the lab's Prometheus and the server itself tell it."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass

from testinfra.host import Host

MODELS, SERVERS = 50, 20  # of an estate that is imagined
UNITS = ("prometheus-node-exporter.service", "citadel-metrics.service")
JOBS = {
    "citadel-llm-models": ("each model", 15),
    "citadel-llm-gateway": ("the gateway", 15),
    "citadel-llm-server": ("the host", 30),
}


@dataclass(frozen=True)
class Asked:
    """Figures of Prometheus."""

    url: str

    def value(self, expression: str) -> float:
        with urllib.request.urlopen(self.url + urllib.parse.quote(expression), timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0


def table(asked: Asked, server: Host, name: str) -> list[str]:
    """A row for each kind of target, then the sums; intervals are the estate's, since the lab asks more often."""
    lines = [
        "| asked for | series | seconds of an answer | every | of a core at most |",
        "|---|---|---|---|---|",
    ]
    series: dict[str, float] = {}
    share = 0.0
    for job, (what, every) in JOBS.items():
        of = f'{{job="{job}",citadel_host="{name}"}}'
        count = asked.value(f"count(scrape_samples_scraped{of})")
        series[job] = asked.value(f"avg(avg_over_time(scrape_samples_scraped{of}[5m]))")
        seconds = asked.value(f"avg(avg_over_time(scrape_duration_seconds{of}[5m]))")
        share += count * seconds / every
        lines.append(f"| {what} | {series[job]:.0f} | {seconds:.3f} | {every} s | {count * seconds / every:.2%} |")
    memory, busy = of_units(server)
    rules = asked.value("sum(avg_over_time(prometheus_rule_group_last_duration_seconds[5m]))")
    many = SERVERS * (
        MODELS * series["citadel-llm-models"] + series["citadel-llm-gateway"] + series["citadel-llm-server"]
    )
    return [
        *lines,
        "",
        f"- Altogether at most {share + busy:.2%} of a core on the server, of which {busy:.2%} are the writer's; an "
        "answer's seconds are counted as if it computed all the while. "
        f"Node exporter and writer have {memory / 1e6:.0f} MB.",
        f"- {MODELS} models on each of {SERVERS} servers would be {many:,.0f} series; reckoned, not tried.",
        f"- All rules take {rules * 1000:.0f} ms each time that they are evaluated, for one server.",
    ]


def of_units(server: Host) -> tuple[float, float]:
    """Bytes of both, and the share of a core that the writer took in half a minute."""
    pids = [server.check_output(f"systemctl show -P MainPID {unit}") for unit in UNITS]
    memory = sum(1024 * int(server.check_output(f"ps -o rss= -p {pid}")) for pid in pids)

    def ticks() -> int:
        # with the programs that it has started and that are over
        return sum(int(word) for word in server.check_output(f"cut -d' ' -f14-17 /proc/{pids[1]}/stat").split())

    before, began = ticks(), time.monotonic()
    time.sleep(31)  # two of its turns
    return float(memory), (ticks() - before) / 100 / (time.monotonic() - began)
