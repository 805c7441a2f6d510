"""The lab itself: real systemd, limits that bind, and no packet to the real estate."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from testinfra.host import Host

from lab.settings import ROOT, Lab


@pytest.mark.parametrize("name", ["llm", "data", "metrics"])
def test_every_host_runs_without_a_failed_unit(name: str, request: pytest.FixtureRequest) -> None:
    host: Host = request.getfixturevalue(name)
    assert host.check_output("systemctl is-system-running") == "running"


@pytest.mark.parametrize(("limit", "end"), [("50M", "killed"), ("400M", "survived")])
def test_memory_limits_of_units_are_enforced(llm: Host, limit: str, end: str) -> None:
    take = f"systemd-run --collect --wait --quiet -p MemoryMax={limit} python3 -c 'bytearray(200 * 1024 * 1024)'"
    assert llm.check_output(f"{take} && echo survived || echo killed") == end


def test_cpu_limits_of_units_are_enforced(llm: Host) -> None:
    """A tenth of a core for a second of work: the wall clock has to show it."""
    work = "import time; a = time.monotonic()\nwhile time.process_time() < 0.3: pass\nprint(time.monotonic() - a)"
    took = float(llm.check_output("systemd-run --pipe --wait --quiet -p CPUQuota=20%% python3 -c %s", work))
    assert took > 0.9


def test_no_packet_went_to_the_real_estate(lab: Lab) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "lab", "packets"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed) == {"estate_from_lab": 0, "estate_from_controller": 0}


def test_the_counter_would_have_seen_one(llm: Host, lab: Lab) -> None:
    """A check that cannot fail proves nothing: the rule that counts has to stand before every other way out."""
    rules = subprocess.run(["nft", "list", "table", "ip", lab.table], capture_output=True, text=True, check=True).stdout
    assert f"ip saddr {lab.network} ip daddr 192.168.10.0/24 counter" in rules
    assert "reject" in rules


def test_the_database_server_answers_as_the_estates_does(data: Host, lab: Lab, address: dict[str, str]) -> None:
    password = (lab.directory / "secrets/citadel_admin").read_text().strip()
    asked = data.run(
        "PGPASSWORD=%s psql --host=%s --port=5433 --username=citadel_admin citadel_ai --tuples-only --command=%s",
        password,
        address["data-01"],
        "select current_user",
    )
    assert asked.stdout.strip() == "citadel_admin"
    redis = (lab.directory / "secrets/redis").read_text().strip()
    assert data.check_output("REDISCLI_AUTH=%s redis-cli -h %s ping", redis, address["data-01"]) == "PONG"
