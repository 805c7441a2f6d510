"""Who is told of which alert: asked of amtool with the labels that alerts have."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel import blocks, routing

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = yaml.safe_load((ROOT / "roles/monitoring/defaults/main.yml").read_text())[
    "monitoring_routing"
]
HOOK = {"webhook_configs": [{"url": "http://10.0.0.1:1/"}]}
RECEIVERS = [
    {"name": "page", "severities": ["critical"], **HOOK},
    {"name": "mail", **HOOK},
]
THEIRS = "route:\n  receiver: team\n  routes:\n  - matchers: ['severity=\"critical\"']\n    receiver: pager\n"
PLACES = {"routes": ["route", "routes"], "receivers": ["receivers"], "inhibit_rules": ["inhibit_rules"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = THEIRS + "receivers:\n- name: team\n- name: pager\n"
    for key, entries in routing.routing(RECEIVERS, SETTINGS).items():
        text = blocks.first_of(text, PLACES[key], yaml.safe_dump(entries))
    path = tmp_path_factory.mktemp("routes") / "alertmanager.yml"
    path.write_text(text)
    done = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("citadel=llm severity=critical alertname=A model=m", "citadel-llm-page,citadel-llm-mail"),
        ("citadel=llm severity=warning alertname=A model=m", "citadel-llm-mail"),
        ("citadel=llm severity=warning alertname=cache_miss_rate", "citadel-llm-mail"),
        ("citadel=llm severity=info alertname=A", "citadel-llm-nobody"),
        ("severity=critical alertname=A", "pager"),
        ("citadel=else severity=warning", "team"),
    ],
)
def test_ours_go_to_ours_and_theirs_to_theirs(config: Path, labels: str, told: str) -> None:
    asked = ["amtool", "config", "routes", "test", f"--config.file={config}", f"--verify.receivers={told}"]
    done = subprocess.run([*asked, *labels.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_how_long_each_kind_waits() -> None:
    [ours] = routing.routing(RECEIVERS, SETTINGS)["routes"]
    waits = {(one["receiver"], one["matchers"][-1]): one["group_wait"] for one in ours["routes"]}
    assert waits["citadel-llm-mail", 'alertname=~"cache_.*"'] == "15m"
    assert waits["citadel-llm-page", 'severity="critical"'] == "10s"
    assert waits["citadel-llm-mail", 'severity="warning"'] == "5m"
    assert ours["group_by"] == ["citadel_host", "alertname", "model"]


def test_nobody_named_leaves_alertmanager_alone() -> None:
    assert routing.routing([], SETTINGS) == {}


@pytest.mark.parametrize(
    ("receiver", "said"),
    [
        ({"name": "a b", **HOOK}, "'a b' is no name"),
        ({"name": "a"}, "a has nothing that tells anybody"),
        ({"name": "a", "webhook": []}, "a has webhook"),
        ({"name": "a", "severities": ["high"], **HOOK}, "a has severities high"),
        ({"name": "nobody", **HOOK}, "nobody is taken already"),
        ({"name": "a", "slack_configs": [{"api_url": "https://x"}]}, "a secret in api_url: put it into a file"),
        ({"name": "a", "email_configs": [{"auth_password": "x"}]}, "name that file in auth_password_file"),
        ({"name": "a", "webhook_configs": [{"url": "http://me:secret@x/"}]}, "a secret in url"),
        (
            {"name": "a", "webhook_configs": [{"http_config": {"basic_auth": {"password": "x"}}}]},
            "a secret in password",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(receiver: dict[str, Any], said: str) -> None:
    with pytest.raises(routing.RoutingError) as refused:
        routing.routing([receiver], SETTINGS)
    assert said in str(refused.value)
    assert "x" not in str(refused.value).partition("secret in")[2].replace("_", "").split()


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(routing.RoutingError, match="repeat_interval is 'often'"):
        routing.routing(RECEIVERS, {**SETTINGS, "repeat_interval": "often"})
