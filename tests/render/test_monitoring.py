"""The role `monitoring` on folders of this machine: what it writes, what it takes away, and when it only speaks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.deployment import for_people

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = """
- hosts: metrics
  gather_facts: false
  roles: [monitoring]
  post_tasks:
    - ansible.builtin.debug: {msg: "failure={{ monitoring_failure }}."}
- hosts: other
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: the deployment goes on}
"""
OF_ONE = {"targets": ["10.0.0.1:9090"], "labels": {"citadel_host": "one"}}
READ = """
scrape_configs:
- job_name: x
  file_sd_configs:
  - files: [ETC/targets.d/*.yml]
rule_files: [ETC/rules.d/*.yml]
"""
HOOK = {"name": "hook", "webhook_configs": [{"url": "http://10.0.0.2/"}]}


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    etc = tmp_path / "prometheus"
    (etc / "targets.d").mkdir(parents=True)
    (etc / "rules.d").mkdir()
    (etc / "prometheus.yml").write_text(READ.replace("ETC", str(etc)))
    (etc / "alertmanager.yml").write_text("route:\n  receiver: team\nreceivers:\n- name: team\n")
    return etc


def join(etc: Path, *servers: str, **more: Any) -> str:
    return " ".join(joined(etc, *servers, **more).split())


def joined(etc: Path, *servers: str, there: bool = True, check: bool = False, **more: Any) -> str:
    tmp_path = etc.parent
    metrics = {"ansible_connection": "local" if there else "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts = {"metrics": metrics, "other": {"ansible_connection": "local"}}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir(exist_ok=True)
    systemctl.write_text("#!/bin/sh\n")
    systemctl.chmod(0o755)
    told = {
        "monitoring_targets": {name: [OF_ONE] for name in servers},
        "monitoring_targets_directory": str(etc / "targets.d"),
        "monitoring_rules_directory": str(etc / "rules.d"),
        "monitoring_rules": "# of citadel-llm\ngroups: []\n",
        "monitoring_prometheus": str(etc / "prometheus.yml"),
        "monitoring_prometheus_url": "http://127.0.0.1:9",
        "monitoring_alertmanager": str(etc / "alertmanager.yml"),
        "monitoring_alertmanager_url": "http://127.0.0.1:9",
        "monitoring_grafana_provisioning": str(tmp_path / "grafana/provisioning/dashboards"),
        "monitoring_grafana_dashboards": str(tmp_path / "lib/dashboards/ours"),
        **more,
    }
    done = subprocess.run(
        [
            *(
                "ansible-playbook",
                "-i",
                tmp_path / "hosts.yml",
                tmp_path / "play.yml",
                "-e",
                json.dumps(told),
                "--diff",
            ),
            *(["--check"] if check else []),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "the deployment goes on" in done.stdout
    return done.stdout


def tree(etc: Path) -> dict[str, str]:
    return {str(path.relative_to(etc)): path.read_text() for path in sorted(etc.rglob("*")) if path.is_file()}


def test_joined_looked_at_again_and_left(etc: Path) -> None:
    before = tree(etc)
    told = join(etc, "one", "two", check=True, monitoring_receivers=[HOOK])
    assert tree(etc) == before and "new: targets.d/citadel-one.yml, targets.d/citadel-two.yml" in told
    assert "+ receiver: citadel-llm-hook" in told
    dashboards = etc.parent / "dashboards"
    dashboards.mkdir()
    (dashboards / "one.json").write_text('{"uid": "citadel-one", "title": "{{ not_ours_to_render }}"}\n')
    shown: dict[str, Any] = {
        "monitoring_grafana": "files",
        "monitoring_dashboards": str(dashboards),
        "monitoring_receivers": [HOOK],
    }
    told = join(etc, "one", "two", **shown)
    assert "| metrics | " in told and "| reloaded: Prometheus, Alertmanager" in told and "failure=." in told
    assert yaml.safe_load((etc / "targets.d/citadel-two.yml").read_text()) == [OF_ONE]
    assert (etc.parent / "lib/dashboards/ours/one.json").read_bytes() == (dashboards / "one.json").read_bytes()
    provider = yaml.safe_load((etc.parent / "grafana/provisioning/dashboards/citadel-llm.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == str(etc.parent / "lib/dashboards/ours")
    routes = yaml.safe_load((etc / "alertmanager.yml").read_text())["route"]["routes"][0]["routes"]
    assert {one["receiver"] for one in routes} == {"citadel-llm-hook"}
    told = join(etc, "one", **shown)
    assert "| removed: targets.d/citadel-two.yml" in told
    told = join(etc, "one", **shown)
    assert "| nothing has to be changed" in told and "changed=0" in told
    join(etc, monitoring_state="absent")
    assert tree(etc) == before


def test_a_metrics_server_that_cannot_be_asked_is_told_and_stops_nobody(etc: Path) -> None:
    before = tree(etc)
    told = join(etc, "one", there=False)
    assert "| it stays as it was: " in told and "failure=metrics: it stays as it was" in told
    assert "mend that and say `make register`" in told
    assert tree(etc) == before


def test_a_prometheus_that_is_broken_already_is_told_and_stops_nobody(etc: Path) -> None:
    (etc / "prometheus.yml").write_text("nothing: known\n")
    before = tree(etc)
    assert "prometheus.yml was broken before we came" in join(etc, "one")
    assert tree(etc) == before


def test_what_a_prometheus_lacks_is_shown(etc: Path) -> None:
    (etc / "prometheus.yml").write_text("global: {}\n")
    told = join(etc, "one")
    assert "| Prometheus does not read our files yet" in told and "| - job_name: citadel-llm" in told


def test_a_token_stays_with_us(etc: Path) -> None:
    (etc.parent / "token").write_text("glsa_secret\n")
    token: dict[str, Any] = {
        "monitoring_grafana_token_file": str(etc.parent / "token"),
        "monitoring_grafana_url": "http://127.0.0.1:9",
    }
    told = join(etc, "one", **token)
    assert "| it stays as it was: Grafana at http://127.0.0.1:9 gives no answer" in told
    assert "glsa_secret" not in told


def test_what_is_said_reaches_whoever_deploys(etc: Path) -> None:
    """A line that Ansible folds, as it does with long ones that stand alone, is none that the verbs show."""
    (etc / "prometheus.yml").unlink()
    told = [line for line in map(for_people, joined(etc, "one").splitlines()) if line]
    assert told[0] == "metrics"
    assert told[1].startswith("  it stays as it was: there is no ") and told[1].endswith("say `make register`")
