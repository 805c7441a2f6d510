"""Joined to the metrics server: proven by asking Prometheus and Alertmanager themselves, and by leaving it again."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from lab.settings import ROOT
from tests.lab.plays import play, tried

MODELS = {"mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini"}
REGISTER, UNREGISTER = "playbooks/register.yml", "playbooks/unregister.yml"
FILES = "find /etc/prometheus -type f -exec sha256sum {} + | sort"

Query = Callable[[str], list[Any]]


@pytest.fixture(scope="session")
def query(address: dict[str, str], ask: Callable[..., Any]) -> Query:
    base = f"http://{address['metrics-01']}:9090/api/v1/query?query="
    return lambda expression: list(ask(base + urllib.parse.quote(expression))["data"]["result"])


def known(query: Query) -> set[tuple[str, str, str]]:
    """What Prometheus asks of llm-01: job, replica, and whether it is up."""
    found = query('up{citadel_host="llm-01"}')
    return {(entry["metric"]["job"], entry["metric"].get("replica", ""), entry["value"][1]) for entry in found}


def expected(*models: str) -> set[tuple[str, str, str]]:
    others = {("citadel-llm-gateway", "", "1"), ("citadel-llm-server", "", "1")}
    return others | {("citadel-llm-models", model, "1") for model in models}


@pytest.fixture
def joined_again(metrics: Host) -> Iterator[None]:
    """Whatever a test takes away, the next one finds everything."""
    yield
    metrics.check_output("systemctl start prometheus.service prometheus-alertmanager.service")
    play(REGISTER)


def serving(query: Query) -> set[str]:
    """The models whose figures come from llm-01, the one for vectors among them where a test has deployed it."""
    return {entry["metric"]["model"] for entry in query('up{citadel_host="llm-01", job="citadel-llm-models"}')}


def test_every_target_of_ours_is_up(query: Query) -> None:
    assert serving(query) >= MODELS
    assert known(query) == expected(*serving(query))


def test_the_gateways_figures_arrive(query: Query, eventually: Callable[..., None]) -> None:
    eventually(
        lambda: {entry["metric"]["model"] for entry in query("llm_model_health == 1")},
        lambda healthy: healthy >= MODELS,
    )


def test_our_files_are_ours_alone_and_whole(metrics: Host) -> None:
    for path in ("targets.d/citadel-llm-01.yml", "rules.d/citadel-llm.yml"):
        file = metrics.file(f"/etc/prometheus/{path}")
        assert (file.user, file.mode) == ("root", 0o644)
        assert file.content_string.startswith("# of citadel-llm")
    assert metrics.run("promtool check config /etc/prometheus/prometheus.yml").rc == 0


def test_prometheus_has_all_our_groups(metrics: Host, address: dict[str, str], ask: Callable[..., Any]) -> None:
    groups = ask(f"http://{address['metrics-01']}:9090/api/v1/rules")["data"]["groups"]
    written = metrics.check_output("grep -c '^- name:' /etc/prometheus/rules.d/citadel-llm.yml || true")
    ours = [group for group in groups if group["file"].endswith("/citadel-llm.yml")]
    assert len(ours) == int(written)
    assert not [rule["lastError"] for group in ours for rule in group["rules"] if rule.get("lastError")]


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("citadel=llm severity=critical", "citadel-llm-lab"),
        ("citadel=llm severity=warning", "citadel-llm-lab"),
        ("service=database severity=critical", "databases"),
        ("severity=critical", "estate"),
    ],
)
def test_alerts_of_ours_have_their_own_way(metrics: Host, labels: str, receiver: str) -> None:
    asked = f"amtool config routes test --alertmanager.url=http://localhost:9093 {labels}"
    assert metrics.check_output(asked).split() == [receiver]


@pytest.mark.usefixtures("joined_again")
def test_what_is_taken_away_leaves_the_server_as_it_was(
    metrics: Host, query: Query, eventually: Callable[..., None]
) -> None:
    models = serving(query)
    joined = metrics.check_output(FILES)
    play(UNREGISTER)
    eventually(lambda: known(query), lambda found: found == set())
    left = metrics.check_output(FILES)
    assert "citadel" not in left
    written = (ROOT / "molecule/default/files/etc/prometheus/alertmanager.yml").read_text()
    assert metrics.check_output("cat /etc/prometheus/alertmanager.yml") == written.rstrip("\n")
    told, status = tried(UNREGISTER)
    assert status == 0 and "nothing has to be changed" in told and metrics.check_output(FILES) == left
    play(REGISTER)
    assert metrics.check_output(FILES) == joined
    eventually(lambda: known(query), lambda found: found == expected(*models))


@pytest.mark.usefixtures("joined_again")
def test_a_model_that_is_taken_out_is_asked_no_more(query: Query, eventually: Callable[..., None]) -> None:
    out = {name: {"enabled": False} for name in ("phi-3-mini", "nomic-embed-text")}
    play(REGISTER, citadel_models_overrides=out)
    eventually(lambda: known(query), lambda found: found == expected(*MODELS - {"phi-3-mini"}))


@pytest.mark.usefixtures("joined_again")
def test_a_configuration_that_somebody_broke_is_left_alone(metrics: Host) -> None:
    config = "/etc/prometheus/prometheus.yml"
    metrics.check_output(f"cp -a {config} /root/prometheus.yml && echo 'nonsense: 1' >> {config}")
    try:
        before = metrics.check_output(FILES)
        told, status = tried(REGISTER, citadel_scrape_interval=7)
        assert status != 0 and "prometheus.yml was broken before we came" in told
        assert metrics.check_output(FILES) == before
    finally:
        metrics.check_output(f"mv /root/prometheus.yml {config}")


@pytest.mark.usefixtures("joined_again")
def test_an_alertmanager_that_is_down_keeps_what_it_had(metrics: Host) -> None:
    before = metrics.check_output(FILES)
    metrics.check_output("systemctl stop prometheus-alertmanager.service")
    told, status = tried(REGISTER, monitoring_receivers=[])
    assert (
        status != 0 and "systemctl reload prometheus-alertmanager.service" in told and "everything is as it was" in told
    )
    assert metrics.check_output(FILES) == before


def test_looking_changes_nothing(metrics: Host) -> None:
    before = metrics.check_output(FILES)
    told, status = tried("playbooks/plan.yml", monitoring_receivers=[])
    assert status == 0 and "changed: prometheus/alertmanager.yml" in told, told[-2000:]
    assert metrics.check_output(FILES) == before
