"""What the roles `host` and `logs` leave on a real host: who may read logs, and rotations under a running gateway."""

from __future__ import annotations

import json
import urllib.request
import uuid

from testinfra.host import Host

FOLDER = "/var/log/citadel-llm"


def test_logs_are_for_a_group_of_people(llm: Host) -> None:
    assert llm.group("citadel").exists
    assert llm.check_output(f"stat -c '%a %U:%G' {FOLDER}") == "2750 agent0:citadel"
    assert llm.check_output(f"stat -c '%a %U:%G' {FOLDER}/audit.log") == "640 agent0:citadel"


def test_twenty_rotations_lose_no_request(llm: Host, gateway: str) -> None:
    asked = []
    for _ in range(20):
        asked.append(f"rotation-{uuid.uuid4()}")
        request = urllib.request.Request(f"{gateway}/v1/models", headers={"X-Request-Id": asked[-1]})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
        llm.check_output("logrotate --force /etc/logrotate.d/citadel-llm")
    llm.check_output("systemctl reload citadel-gateway.service")
    written = llm.check_output(f"zcat --force {FOLDER}/access.log*")
    assert [written.count(one) for one in asked] == [1] * len(asked)
    assert llm.check_output(f"ls {FOLDER}/*.backup 2>/dev/null || true") == ""
    assert llm.check_output(f"stat -c '%a %U:%G' {FOLDER}/access.log") == "640 agent0:citadel"


def test_the_size_is_looked_at_every_hour(llm: Host) -> None:
    assert llm.service("logrotate-citadel-llm.timer").is_enabled
    assert llm.service("logrotate-citadel-llm.timer").is_running
    llm.check_output("systemctl start logrotate-citadel-llm.service")


def test_a_container_keeps_the_clock_of_its_machine(llm: Host) -> None:
    items = json.loads(llm.check_output("cat /var/lib/citadel/declared/host.json"))
    assert [(item["name"], item["desired"]) for item in items] == [("hostname", "llm-01")]
