"""The rules as Prometheus takes them: every alert fires when it should and is silent when it should be."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from citadel import rules
from citadel.alerts import ALERTS, SEVERITIES
from tests.unit.rules.cases import CASES
from tests.unit.rules.promtool import CONTRACTS, EVERY_ALERT, all_rules, run, write

ROOT = Path(__file__).resolve().parents[3]
RUNBOOK = (ROOT / "docs/monitoring.md").read_text()
OFF = {"LowThroughput", "LLM_Business_Impact_Critical", "ScaleDown"}


def loaded(**given: object) -> dict[str, dict[str, object]]:
    """Alerts of the rendered file by name."""
    content = yaml.safe_load(rules.rendered(CONTRACTS, given))
    return {one["alert"]: one for group in content["groups"] for one in group["rules"] if "alert" in one}


def test_every_alert_fires_at_the_edge_stays_silent_and_knows_its_own_jobs(tmp_path: Path) -> None:
    every = all_rules()
    assert run([write(tmp_path, alert, cases, every) for alert, cases in CASES.items()]) == ""


def test_no_alert_lacks_its_cases() -> None:
    assert set(CASES) == {alert.name for alert in ALERTS}
    # a metric that does not exist passes every case that expects silence
    assert [name for name, cases in CASES.items() if not (cases.fires and cases.edge and cases.quiet)] == []


@pytest.mark.parametrize("given", [{}, {"scale": 0.05}, EVERY_ALERT])
def test_prometheus_takes_the_file(tmp_path: Path, given: dict[str, object]) -> None:
    text = rules.rendered(CONTRACTS, given)
    assert text.startswith("# of citadel-llm")
    path = tmp_path / "citadel-llm.yml"
    path.write_text(text)
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    of = rules.Settings.of(given)
    assert yaml.safe_load(text)["groups"] == [
        {"name": name, "interval": "5s" if given == {"scale": 0.05} else "15s", "rules": list(group)}
        for name, group in rules.groups(CONTRACTS, of)
    ]


def test_what_is_off_is_not_in_the_file() -> None:
    assert {alert.name for alert in ALERTS} - set(loaded()) == OFF
    assert set(loaded(**EVERY_ALERT)) > OFF


def test_every_alert_says_how_bad_whose_and_where_to_look() -> None:
    sections = {line.removeprefix("## ").lower() for line in RUNBOOK.splitlines() if line.startswith("## ")}
    for name, one in loaded(**EVERY_ALERT).items():
        labels, notes = one["labels"], one["annotations"]
        assert isinstance(labels, dict) and isinstance(notes, dict)
        assert set(labels) == {"severity", "category", "citadel"} and labels["citadel"] == "llm"
        assert labels["severity"] in SEVERITIES
        assert set(notes) == {"summary", "description", "runbook", "dashboard"}
        assert notes["runbook"] == f"docs/monitoring.md#{name.lower()}"
        assert name.lower() in sections, f"docs/monitoring.md has no section {name}"
        assert notes["dashboard"].startswith("/d/citadel-")


def test_no_text_names_a_label_that_its_alert_never_has() -> None:
    for name, one in loaded(**EVERY_ALERT).items():
        there = {label for _, labels in CASES[name].fires for label in labels}
        assert set(re.findall(r"\$labels\.(\w+)", str(one["annotations"]))) <= there, name


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    sections = re.findall(r"^## (\S+)$", RUNBOOK.partition("<!-- alerts -->")[2], re.MULTILINE)
    assert sections == [name for name in sections if name in CASES]


def test_an_estate_may_have_an_alert_otherwise() -> None:
    given = {"DiskLow": {"threshold": 0.2, "for": "1h", "severity": "info"}, "Drift": {"off": True}}
    found = loaded(**given)
    assert "citadel:disk_free:ratio < 0.2" in str(found["DiskLow"]["expr"])
    assert found["DiskLow"]["for"] == "1h"
    assert "info" in str(found["DiskLow"]["labels"])
    assert "Drift" not in found


def test_durations_are_shortened_and_windows_keep_some_scrapes() -> None:
    short = loaded(scale=0.05)
    assert short["HighLatency"]["for"] == "6s"
    assert "[1m]" in str(short["high_error_rate"]["expr"])
    assert "offset 504m" in str(short["SlowerThanBaseline"]["expr"])
    assert "predict_linear(citadel:load:ratio[90s], 90)" in str(short["LLM_Predictive_High_Load"]["expr"])
    assert "predict_linear(citadel:load:ratio[30m], 1800)" in str(loaded()["LLM_Predictive_High_Load"]["expr"])


def test_objectives_are_rounded_up_to_edges() -> None:
    found = dict(rules.objectives({"p95_ms": 800, "first_token_ms": 400, "mean_ms": 400}))
    assert found == {
        "citadel:objective_p95:seconds": 1.0,
        "citadel:objective_first_token:seconds": 0.5,
        "citadel:objective_mean:seconds": 0.4,
    }
    assert dict(rules.objectives({"p95_ms": 1e6})) == {"citadel:objective_p95:seconds": 300.0}


def test_without_a_server_there_is_nothing_to_watch() -> None:
    assert yaml.safe_load(rules.rendered({}, {})) == {"groups": []}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"DiskLwo": {}}, r"citadel_alerts\.DiskLwo = {}: there is no such alert or setting"),
        ({"DiskLow": 3}, r"citadel_alerts\.DiskLow = 3: give a mapping of for, threshold, severity and off"),
        ({"DiskLow": {"treshold": 1}}, r"citadel_alerts\.DiskLow\.treshold = 1: an alert takes for, threshold"),
        ({"DiskLow": {"threshold": "much"}}, r"citadel_alerts\.DiskLow\.threshold = 'much': give a number"),
        ({"UnitGaveUp": {"threshold": 1}}, r"citadel_alerts\.UnitGaveUp\.threshold = 1: this alert has none"),
        ({"DiskLow": {"severity": "bad"}}, r"choose one of critical, warning, info"),
        ({"DiskLow": {"off": "no"}}, r"citadel_alerts\.DiskLow\.off = 'no': give true or false"),
        ({"DiskLow": {"for": "soon"}}, r"citadel_alerts\.DiskLow\.for = 'soon': give seconds, or a duration"),
        ({"scale": 0}, r"citadel_alerts\.scale = 0: give more than 0"),
        ({"scale": True}, r"citadel_alerts\.scale = True: give a number"),
        ({"objective": 0.9}, r"citadel_alerts\.objective = 0\.9: give a share between 0\.94 and 1"),
        ("all", r"citadel_alerts\.\* = 'all': give a mapping"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(given: object, said: str) -> None:
    with pytest.raises(rules.RulesError, match=said):
        rules.Settings.of(given)  # type: ignore[arg-type]
