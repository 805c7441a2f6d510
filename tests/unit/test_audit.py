"""What an audit makes of what programs say; their words are those of a Debian 12 host."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path

import pytest

from citadel import audit
from citadel.known_weaknesses import AS_OF, KNOWN_WEAKNESSES, Weakness
from citadel.release.layout import Layout
from lab.settings import ROOT

CONTRACT = {22: "ssh", 8000: "gateway", 9090: "export"}
SS = """\
udp   UNCONN 0      0            0.0.0.0%host0:68         0.0.0.0:*    users:(("systemd-network",pid=40,fd=20))
udp   UNCONN 0      0               127.0.0.1:323        0.0.0.0:*    users:(("chronyd",pid=60,fd=5))
tcp   LISTEN 0      128               0.0.0.0:22         0.0.0.0:*    users:(("sshd",pid=61,fd=3))
tcp   LISTEN 0      128                  [::]:22            [::]:*    users:(("sshd",pid=61,fd=4))
tcp   LISTEN 0      2048            127.0.0.1:11403      0.0.0.0:*    users:(("python",pid=99,fd=12))
tcp   LISTEN 0      1024                    *:8000             *:*    users:(("systemd",pid=1,fd=50))
tcp   LISTEN 0      5                 0.0.0.0:4444       0.0.0.0:*    users:(("nc",pid=7,fd=3))
"""
SECURITY = """\
UNIT                                 EXPOSURE PREDICATE HAPPY
citadel-gateway@0001-0a0a0a0a.service      1.2 OK        🙂
citadel-llm@phi-3-mini.service             6.1 MEDIUM    😐
citadel-recover.service                    9.6 UNSAFE    😨
"""
SSHD = "port 22\npermitrootlogin {root}\npasswordauthentication {passwords}\n"
FAILED = "Failed password for invalid user x from 203.0.113.9 port 4 ssh2\n" * 19
UPDATES = """\
Listing...
libssl3/stable-security 3.0.17-1~deb12u3 amd64 [upgradable from: 3.0.16-1]
vim/stable 2:9.0.1378-2 amd64 [upgradable from: 2:9.0.1378-1]
"""
DAY = datetime.date.fromisoformat(AS_OF)


def test_a_door_that_nobody_promised() -> None:
    [found] = audit.listening(SS, CONTRACT, closed=False)
    assert found.severity == "warning" and "nc listens on 0.0.0.0, and the contract has no such door" in str(found)
    [closed] = audit.listening(SS, CONTRACT, closed=True)
    assert closed.severity == "note"
    assert list(audit.listening(SS, {**CONTRACT, 4444: "x"}, closed=False)) == []


def test_production_without_its_firewall() -> None:
    assert [one.severity for one in audit.firewall("production", "")] == ["critical"]
    assert list(audit.firewall("production", "type filter hook input priority filter; policy drop;")) == []
    assert list(audit.firewall("development", "")) == []


@pytest.mark.parametrize(
    ("profile", "root", "passwords", "severities"),
    [
        ("production", "no", "no", []),
        ("production", "without-password", "no", ["critical"]),
        ("production", "no", "yes", ["critical"]),
        ("development", "no", "yes", ["note"]),
        ("development", "without-password", "no", ["note"]),
        ("development", "yes", "no", ["critical"]),
    ],
)
def test_what_sshd_lets_in(profile: str, root: str, passwords: str, severities: list[str]) -> None:
    found = audit.ssh(profile, SSHD.format(root=root, passwords=passwords))
    assert [one.severity for one in found] == severities


def test_many_failed_logins_and_where_they_come_from() -> None:
    assert list(audit.logins(FAILED)) == []
    [found] = audit.logins(FAILED + "Invalid user y from 2001:db8::7 port 9\n")
    assert found.said == "20 failed in a day, most of them from 203.0.113.9 (19), 2001:db8::7 (1)"


def test_a_unit_may_do_more_than_others_only_with_a_reason() -> None:
    [found] = audit.exposure(SECURITY)
    assert (found.subject, found.severity) == ("citadel-llm@phi-3-mini.service", "warning")
    assert [one.subject for one in audit.exposure(SECURITY, {})][1:] == ["citadel-recover.service"]
    assert all(reason for _, reason in audit.WAIVERS.values())


@pytest.mark.parametrize(
    "name", ["citadel-health-monitor.service", "citadel-logs.service", "citadel-security-audit.service"]
)
def test_the_units_of_the_face_are_as_tight_as_the_audit_asks(name: str, tmp_path: Path) -> None:
    text = (ROOT / f"roles/face/templates/units/{name}.j2").read_text()
    text = re.sub(r"\{\{ face_(user|group) \}\}", "root", text)
    (tmp_path / name).write_text(re.sub(r"\{\{[^}]*\}\}", "/opt/citadel", text).replace("User=root", "User=nobody"))
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(tmp_path / name)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    figure = re.search(rf"Overall exposure level for {name}: ([\d.]+)", told)
    assert figure, told
    assert list(audit.exposure(f"{name} {figure[1]} X\n")) == []


def test_modes_of_what_is_secret(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    keys, log = layout.home / "keys/gateway.json", tmp_path / "var/log/citadel-llm/access.log"
    for path, mode in ((keys, 0o600), (log, 0o640)):
        path.parent.mkdir(parents=True)
        path.write_text("")
        path.chmod(mode)
        path.parent.chmod(0o700)
    (log.parent / "api-gateway.log").symlink_to("access.log")
    assert list(audit.modes(tmp_path)) == []
    keys.chmod(0o640)
    log.chmod(0o666)
    found = list(audit.modes(tmp_path))
    assert [one.severity for one in found] == ["critical", "warning"]
    assert found[0].remedy == "`chmod 0600 /opt/citadel/keys/gateway.json`"


def test_files_of_root_that_others_may_write() -> None:
    assert list(audit.writable("(nothing)")) == []
    [found] = audit.writable("".join(f"/opt/citadel/envs/{number}\n" for number in range(7)))
    assert found.severity == "critical" and found.said.endswith("/opt/citadel/envs/4 and 2 more")


def test_updates_by_what_the_host_knows() -> None:
    found = list(audit.updates(UPDATES, 9.2))
    assert [(one.severity, one.said) for one in found] == [
        ("warning", "1 of them wait for libssl3"),
        ("note", "apt has not looked for any in 9 days"),
    ]
    assert [one.said for one in audit.updates("Listing...\n", None)] == ["apt has never looked for any"]
    assert list(audit.updates("Listing...\n", 0.5)) == []


def test_known_weaknesses_and_how_old_the_knowledge_is() -> None:
    known = [Weakness("torch", "2.6.0", "CVE-1", "it runs what it loads")]
    [found] = audit.weaknesses({"torch": "2.5.1+cpu"}, DAY, known)
    assert found.severity == "critical" and "`make lock UPGRADE=torch`" in found.remedy
    assert list(audit.weaknesses({"torch": "2.13.0+cpu"}, DAY, known)) == []
    [old] = audit.weaknesses({}, DAY + datetime.timedelta(100), known)
    assert old.severity == "note" and f"the list is of {AS_OF}, 100 days old" in old.said


def test_no_pin_of_ours_has_a_known_weakness() -> None:
    pins: dict[str, str] = {}
    for path in (ROOT / "requirements").glob("*.txt"):
        pins |= dict(re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(), re.MULTILINE))
    assert len({one.package for one in KNOWN_WEAKNESSES} & pins.keys()) > 5
    assert list(audit.weaknesses(pins, DAY)) == []


def test_packages_and_doors_of_the_live_release(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name in (
        "gateway/lib/python3.11/site-packages/Some_Thing-1.2",
        "vllm/lib/python3.11/site-packages/some.thing-1.10",
    ):
        (layout.current / "env" / f"{name}.dist-info").mkdir(parents=True)
    assert audit.installed(layout) == {"some-thing": "1.2"}
    (layout.current / "config/models").mkdir(parents=True)
    (layout.current / "config/citadel.env").write_text("GATEWAY_PORT=8000\nEXPORT_PORT=9090\n")
    (layout.current / "config/models/phi.env").write_text("SERVICE_PORT=11403\n")
    told = audit.contract(layout, "port 2222\nport 22\n")
    assert told == {8000: "gateway", 9090: "export", 11403: "phi", 22: "ssh", 2222: "ssh"}


def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    (layout.current / "config").mkdir(parents=True)
    (layout.current / "config/citadel.env").write_text("CITADEL_ENV=production\nGATEWAY_PORT=8000\nEXPORT_PORT=9090\n")

    def show(command: list[str]) -> str:
        told = {"ss": SS, "sshd": SSHD.format(root="no", passwords="no"), "apt": UPDATES, "sh": SECURITY}
        return told.get(command[0], "(nothing)")

    found = audit.audit(layout, show)
    assert [one.severity for one in found[:2]] == ["critical", "warning"]
    assert audit.verdict(found).startswith("1 critical, 3 warning, ")
    assert json.loads(audit.as_json(found, "now"))["findings"][0]["subject"] == "firewall"
    text = audit.as_text(found, "now", show)
    assert text.startswith("=== Findings on ") and "=== Listening ports\nudp " in text and "=== Disks" in text


def test_a_report_never_follows_what_another_account_put_there(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("untouched")
    (tmp_path / "audit.log").symlink_to("precious")
    audit.keep(tmp_path, "audit.log", "found")
    assert (tmp_path / "precious").read_text() == "untouched"
    assert (tmp_path / "audit.log").read_text() == "found" and not (tmp_path / "audit.log").is_symlink()
