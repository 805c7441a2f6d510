"""Faults on the lab's servers, followed from the fault to a message and until it is withdrawn, with their seconds.

    make prove-alerts SECONDS=600          on a lab that stands (`make demo`)

First everything is well for SECONDS, and nothing may be told. Durations of the rules are shortened for it, and are as
before in the end. The messages go to a receiver here, which the lab's Alertmanager is told of by its inventory.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.settings import ROOT, Lab
from tests.lab.clients import Client, temporary_key
from tests.lab.plays import play
from tests.lab.test_models_faults import processes, unit
from tests.proof import cost
from tests.proof.estate import SERVER, Estate, until, write
from tools import benchmark

MODEL = "phi-3-mini"
PORT = 15099
# A line through three minutes says nothing of a day, and the lab's queue has room for more clients than two cores make.
MEANINGLESS = ("LLM_Capacity_Planning_CPU", "LLM_Capacity_Planning_Memory", "LLM_Predictive_High_Load", "ScaleUp")
ALERTS: dict[str, Any] = {
    "scale": 0.05,
    "shortest": 30,
    "ModelSaturated": {"threshold": 0.1},
    **{name: {"off": True} for name in MEANINGLESS},
}
LONG = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me everything."}],
    "max_tokens": 1500,
    "ignore_eos": True,
}
PROBE = "/opt/models/.proof"
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()
DOCUMENT = ROOT / "docs" / "monitoring.md"
PROOF = "<!-- proof: begin -->", "<!-- proof: end -->"
COST = "<!-- cost: begin -->", "<!-- cost: end -->"


@dataclass
class Receiver:
    """What Alertmanager says, and when."""

    told: list[tuple[float, str, str]] = field(default_factory=list)  # when, alert, firing or resolved

    def note(self, message: dict[str, Any]) -> None:
        now = time.monotonic()
        self.told += [(now, one["labels"]["alertname"], one["status"]) for one in message["alerts"]]

    def when(self, alert: str, status: str, since: float) -> float | None:
        return next((at for at, name, how in self.told if (name, how) == (alert, status) and at >= since), None)


@contextlib.contextmanager
def receiving(address: str) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.note(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *words: object) -> None:
            """Every message is shown by us."""

    server = http.server.ThreadingHTTPServer((address, PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def stopped(estate: Estate, name: str) -> Iterator[None]:
    estate.run(f"systemctl stop {name}")
    try:
        yield
    finally:
        estate.run(f"systemctl start {name}")


@contextlib.contextmanager
def asking(estate: Estate, clients: int) -> Iterator[None]:
    """So many clients, each with one long question after another."""
    over = threading.Event()

    def ask(client: Client) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, ValueError):
                client.ask(LONG)

    with temporary_key(estate.llm) as secret:
        client = Client(estate.address, secret, timeout=60)
        until(lambda: client.ask({"messages": []})[0] not in {401, 429}, "the gateway knows the new key", 30)
        threads = [threading.Thread(target=ask, args=(client,), daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join(90)


@contextlib.contextmanager
def stalled(estate: Estate) -> Iterator[None]:
    """The engine stands still with a request in hand."""
    running = f'vllm:num_requests_running{{citadel_host="{SERVER}",model="{MODEL}"}} > 0'
    with asking(estate, 1):
        until(lambda: estate.ask(running), "the engine works on a request", 60)
        engine = processes(estate.llm, MODEL)["engine"]
        estate.run(f"kill -STOP {engine}")
        try:
            yield
        finally:
            # somebody may have ended it meanwhile
            estate.llm.run(f"kill -CONT {engine}")


@contextlib.contextmanager
def starved(estate: Estate) -> Iterator[None]:
    """Less memory than its first process takes."""
    name = unit(MODEL)
    estate.run(f"systemctl set-property --runtime {name} MemoryMax=300M")
    estate.llm.run(f"systemctl restart --no-block {name}")
    try:
        yield
    finally:
        estate.run(f"rm -rf '/run/systemd/system.control/{name}.d'; systemctl daemon-reload")
        estate.run(f"systemctl reset-failed {name}; systemctl restart {name}")


@contextlib.contextmanager
def filled(estate: Estate) -> Iterator[None]:
    """A disk of eight megabytes among the models', so that no other is hurt."""
    estate.run(f"mkdir -p {PROBE} && mount -t tmpfs -o size=8m tmpfs {PROBE}")
    try:
        estate.run(f"head -c 8100000 /dev/zero > {PROBE}/full")
        yield
    finally:
        estate.run(f"umount {PROBE} && rmdir {PROBE}")


@dataclass(frozen=True)
class Fault:
    name: str
    alert: str
    of: Callable[[Estate], contextlib.AbstractContextManager[None]]


FAULTS = (
    Fault("a model's unit is stopped", "LLMServiceDown", lambda estate: stopped(estate, unit(MODEL))),
    Fault("its engine stands still (SIGSTOP)", "EngineStalled", stalled),
    # systemd tells of such a kill on cgroup v2 alone
    Fault("the kernel ends it for its memory", "OutOfMemoryKill" if UNIFIED else "UnitGaveUp", starved),
    Fault("a disk is full", "DiskFull", filled),
    Fault("30 clients at once", "ModelSaturated", lambda estate: asking(estate, 30)),
    Fault(
        "the node exporter is gone", "HostFiguresMissing", lambda estate: stopped(estate, "prometheus-node-exporter")
    ),
    Fault("the gateway is stopped", "GatewayDown", lambda estate: stopped(estate, "citadel-gateway")),
)


@dataclass(frozen=True)
class Followed:
    fault: Fault
    fires: float  # seconds from the fault
    told: float
    quiet: float  # seconds from its end
    withdrawn: float


def follow(fault: Fault, estate: Estate, receiver: Receiver) -> Followed:
    until(lambda: not estate.firing(fault.alert), f"{fault.alert} is silent before the fault")
    began = time.monotonic()
    with fault.of(estate):
        fires = until(lambda: estate.firing(fault.alert), f"{fault.alert} fires")
        told = until(lambda: receiver.when(fault.alert, "firing", began), f"somebody is told of {fault.alert}")
    ended = time.monotonic()
    quiet = until(lambda: not estate.firing(fault.alert), f"{fault.alert} ends")
    gone = until(lambda: receiver.when(fault.alert, "resolved", ended), f"{fault.alert} is withdrawn")
    return Followed(fault, fires - began, told - began, quiet - ended, gone - ended)


def healthy(estate: Estate, seconds: float) -> None:
    """Nothing may fire while nothing is wrong."""
    until(lambda: not estate.ask('up{citadel_host!=""} == 0') and not estate.firing(), "all is well to begin with")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := estate.firing():
            raise RuntimeError(f"nothing was wrong, and {', '.join(sorted(found))} fired")
        time.sleep(2)


def table(rows: list[Followed], seconds: float) -> str:
    lines = [
        f"`make prove-alerts` on the lab, durations of the rules shortened to a twentieth; {seconds:.0f} s before it "
        "in which nothing was wrong and nothing fired. Seconds from the fault, and from its end:",
        "",
        "| fault | alert | fires after | told after | ends after | withdrawn after |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " | ".join(f"{one:.0f} s" for one in (row.fires, row.told, row.quiet, row.withdrawn))
        lines.append(f"| {row.fault.name} | {row.fault.alert} | {times} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.proof", description=__doc__)
    parser.add_argument("--health", type=float, default=60, help="seconds in which nothing may fire")
    told = parser.parse_args()
    lab = Lab.from_environment()
    estate, rows, wrong = Estate(lab), [], []
    with receiving(lab.gateway) as receiver:
        play("playbooks/register.yml", citadel_alerts=ALERTS, citadel_scrape_interval=5)
        try:
            healthy(estate, told.health)
            print(f"well for {told.health:.0f} s: nothing fired", flush=True)
            costs = cost.table(cost.Asked(estate.prometheus), estate.llm, SERVER)
            for fault in FAULTS:
                try:
                    rows.append(follow(fault, estate, receiver))
                    print(f"{fault.name}: {fault.alert} told after {rows[-1].told:.0f} s", flush=True)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    wrong.append(f"{fault.name}: {error}")
                    print(wrong[-1], file=sys.stderr, flush=True)
        finally:
            play("playbooks/register.yml")
    if wrong:
        return 1
    write(DOCUMENT, PROOF, table(rows, told.health))
    head = f"{benchmark.machine()}, {datetime.now(UTC).date()}; the lab's four models."
    write(DOCUMENT, COST, "\n".join([head, "", *costs]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
