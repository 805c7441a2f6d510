"""The audit of a deployed server: from the checkout, and by its timer, whose unit is sandboxed and sees the same."""

from __future__ import annotations

import json

from testinfra.host import Host

from tests.lab.plays import tried

REPORTS = "/opt/citadel/reports"


def test_a_fresh_deployment_has_nothing_critical(llm: Host) -> None:
    told, status = tried("playbooks/audit.yml")
    assert status == 0, told[-3000:]
    assert "llm-01: 0 critical" in told


def test_the_timers_unit_finds_what_root_finds(llm: Host) -> None:
    llm.check_output(f"rm -f {REPORTS}/security-audit-*")
    llm.check_output("systemctl start citadel-security-audit.service")
    [report] = llm.check_output(f"ls {REPORTS}/security-audit-*.json").split()
    assert llm.file(report).user == "agent0" and llm.file(report).mode == 0o640
    by_unit = json.loads(llm.check_output(f"cat {report}"))["findings"]
    by_root = json.loads(llm.run("citadel audit --json").stdout)["findings"]
    assert by_unit == by_root
    text = llm.check_output(f"cat {report.replace('.json', '.log')}")
    assert "is not installed" not in text and "users:((" in text
