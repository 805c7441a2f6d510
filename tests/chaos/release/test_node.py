"""Node exporter on a booted host, and the hourly look at drift within what its unit lets it see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

from tests.chaos.release.conftest import Box
from tests.chaos.release.plays import ROOT, Controller, roles

DROP_IN = "/etc/systemd/system/prometheus-node-exporter.service.d/citadel.conf"
TASK = "node : It shows what rules and dashboards read"
LOOK = "node : See who listens there already"
# as whoever had it before would have started it
OTHERS = "import socket, time; held = socket.create_server(('', 9100)); time.sleep(3600)"
DECLARE = """
- hosts: llm_servers
  gather_facts: false
  become: true
  tasks: [{citadel_declare: {owner: everything, state: "{{ state }}", items: "{{ items }}"}}]
"""
RULES = ["sh", "-c", "nft -s list ruleset | sha256sum | cut -c -64"]


@pytest.fixture
def keeper(box: Box, tmp_path: Path) -> Iterator[Controller]:
    box.clear()
    yield Controller(box, tmp_path, roles("node"))
    box.run("systemctl", "stop", "others.service", check=False)


def others(box: Box, name: str, *words: str) -> None:
    """A program of that name on the port."""
    box.run("sh", "-c", f"mkdir -p /srv/others; ln -sf /usr/bin/python3 /srv/others/{name}")
    box.run("systemd-run", "--quiet", "--unit=others", f"/srv/others/{name}", "-c", OTHERS, *words)
    box.run("sh", "-c", "until ss -Hltn 'sport = :9100' | grep -q 9100; do sleep 0.1; done")


def test_the_distributions_exporter_is_told_and_let_go(box: Box, keeper: Controller) -> None:
    done = keeper.run()
    assert done.status == 0, done.told[-4000:]
    assert not keeper.run().results[TASK]["changed"]
    box.run("sh", "-c", "echo 'citadel_tried 1' > /var/lib/prometheus/node-exporter/tried.prom")
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    told = box.run("python3", "-c", ask).stdout
    assert "\ncitadel_tried 1\n" in told and "\nnode_memory_MemTotal_bytes " in told
    assert 'node_scrape_collector_success{collector="systemd"} 1' in told
    assert keeper.run(node_state="absent").status == 0
    assert box.run("test", "-e", DROP_IN, check=False).returncode
    box.run("systemctl", "disable", "--now", "prometheus-node-exporter.service")


def test_somebody_elses_stays_and_what_is_none_is_refused(box: Box, keeper: Controller) -> None:
    others(box, "node_exporter", "--collector.textfile.directory=/var/lib/prometheus/node-exporter")
    done = keeper.run()
    assert done.status == 0, done.told[-4000:]
    assert "node_exporter (others.service) on port 9100 stays" in done.told
    assert box.run("test", "-d", "/var/lib/prometheus/node-exporter").returncode == 0
    assert box.run("test", "-e", DROP_IN, check=False).returncode
    box.run("systemctl", "stop", "others.service")
    others(box, "printer")
    done = keeper.run()
    assert done.status != 0
    said = done.results[LOOK]["msg"]
    assert said.startswith("box: port 9100 is taken by printer (others.service), which is no node exporter: stop it")


def test_the_hourly_look_sees_what_is_there(box: Box, keeper: Controller) -> None:
    box.run("nft", "add", "table", "inet", "somebody")
    items: list[dict[str, Any]] = [
        {"kind": "file", "name": "/etc/kept", "desired": "content", "content": "a secret", "mode": "0600"},
        {"kind": "command", "name": "rules", "desired": rules(box), "read": RULES},
        {"kind": "command", "name": "sshd", "desired": "yes", "read": ["sshd", "-T"], "word": "usepam"},
        {"kind": "command", "name": "name", "desired": "box", "read": ["uname", "-n"]},
        {"kind": "unit", "name": "ssh.service", "desired": "- active"},
        {"kind": "mount", "name": "/", "desired": "rw"},
        {"kind": "sysctl", "name": "net.core.somaxconn", "desired": "4096"},
    ]
    assert keeper.run(play=DECLARE, state="present", items=items).status == 0, keeper.last.told[-4000:]
    try:
        host = box.layout.inside("/opt/citadel/current/host")
        shutil.copytree(ROOT / "plugins/module_utils/citadel", host / "citadel")
        box.run("mkdir", "-p", "/opt/citadel/state")
        text = (ROOT / "roles/face/templates/units/citadel-drift.service.j2").read_text()
        unit = box.layout.units / "look-at-drift.service"
        unit.write_text(jinja2.Template(text).render(ansible_managed="", face_home="/opt/citadel"))
        box.run("systemctl", "daemon-reload")
        assert counted(box) == 0, box.run("journalctl", "-u", "look-at-drift", "-o", "cat").stdout
        box.run("sh", "-c", "echo more >> /etc/kept")
        assert counted(box) == 1
        unit.unlink()
    finally:
        box.run("nft", "delete", "table", "inet", "somebody")
        keeper.run(play=DECLARE, state="absent", items=[])


def rules(box: Box) -> str:
    return box.run(*RULES).stdout.strip()


def counted(box: Box) -> int:
    box.run("systemctl", "start", "look-at-drift.service")
    owners: dict[str, int] = json.loads((box.layout.state / "drift.json").read_text())["owners"]
    return owners["everything"]
