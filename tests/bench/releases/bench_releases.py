"""How long a deployment takes beyond its models' loading: on the box of tests/chaos/release, with the real gateway.

pytest tests/bench/releases        writes its table into docs/benchmarks.md
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.release.conftest import Box, Client, box, client
from tests.chaos.release.plays import Deployer
from tests.chaos.release.test_gateway import MODELS, deploy, deployer, rollback
from tools.benchmark import machine

__all__ = ["box", "client", "deployer"]  # fixtures

DOCUMENT = Path(__file__).parents[3] / "docs/benchmarks.md"
BEGIN, END = "<!-- releases: begin -->", "<!-- releases: end -->"
HEADER = """\
## Releases

`pytest tests/bench/releases/bench_releases.py`, on a host with real systemd and the real gateway; models are stand-ins
that load in half a second, so what is left is the transaction itself. Deployments are the roles `gateway` and `release`
over ssh, while two clients ask all the time. Aims on two cores: rollback of the gateway under 10 s, a gateway-only
deployment and one that changes nothing under 60 s.
"""


def test_seconds_and_tasks(box: Box, deployer: Deployer, client: Callable[..., Client]) -> None:
    rows = []

    def timed(what: str, act: Callable[[], object], aim: float) -> None:
        begun = time.monotonic()
        with client(*MODELS) as asking:
            act()
            took = time.monotonic() - begun
        rows.append(f"| {what} | {took:.1f} | {len(deployer.last.tasks)} | {asking.asked} | {len(asking.wrong)} |")
        assert took < aim and asking.wrong == []

    deploy(deployer)
    timed("gateway only", lambda: deploy(deployer, health={"interval": 20.0}), 60)
    # Equal content is no new release: the role stages nothing and begins nothing.
    timed("nothing changed", lambda: again(deployer), 60)
    timed("one model", lambda: deploy(deployer, {"alpha": {"load": "0.6"}, "beta": {}}, health={"interval": 20.0}), 60)
    timed("rollback of the model", lambda: rollback(deployer), 60)
    timed("rollback of the gateway", lambda: rollback(deployer), 10)
    write(rows)


def again(deployer: Deployer) -> None:
    try:
        deploy(deployer, health={"interval": 20.0})
    except AssertionError:
        assert "nothing to do" in deployer.last.told


def write(rows: list[str]) -> None:
    text = DOCUMENT.read_text()
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{HEADER}\n{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN)
    table = ["| what | seconds | Ansible tasks | requests meanwhile | failed |", "|---|---|---|---|---|", *rows]
    body = f"{machine()}, {datetime.now(UTC):%Y-%m-%d}.\n\n" + "\n".join(table)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{body}\n{END}{rest.split(END)[1]}")
