"""What is put on a metrics server, in folders of this machine: real promtool and amtool, stand-ins for what runs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from citadel import registration
from citadel.registration import RegistrationError, Result, Wanted, bring_about

PROMETHEUS = """# theirs
scrape_configs:
  - job_name: prometheus
    static_configs: [{targets: [localhost:9090]}]
  - job_name: all
    file_sd_configs:
      - files: [targets.d/*.yml]
rule_files:
  - ROOT/rules.d/*.yml
"""
ALERTMANAGER = "route:\n  receiver: team # ours\nreceivers:\n- name: team"  # without a newline in the end
RULES = "# of citadel-llm\ngroups:\n- name: llm\n  rules:\n  - alert: Down\n    expr: up == 0\n"
TARGETS = "# of citadel-llm\n- targets: [10.0.0.1:9090]\n  labels: {citadel_host: one}\n"
ROUTING = {
    "routes": "- matchers: ['citadel=\"llm\"']\n  receiver: citadel-llm-x\n",
    "receivers": "- name: citadel-llm-x\n  webhook_configs: [{url: 'http://10.0.0.1/'}]\n",
    "inhibit_rules": "- source_matchers: [a=b]\n  target_matchers: [c=d]\n  equal: [e]\n",
}


class Servers(BaseHTTPRequestHandler):
    """Prometheus and Alertmanager as they tell of their last reload, and which targets the former has."""

    folder: Path
    targets: list[list[str]]  # hosts that it still asks, answer by answer; the last one for good

    def do_GET(self) -> None:
        if self.path.startswith("/api/v1/targets"):
            hosts = self.targets[0] if len(self.targets) == 1 else self.targets.pop(0)
            told = json.dumps({"data": {"activeTargets": [{"labels": {"citadel_host": host}} for host in hosts]}})
        else:
            good = 0 if (self.folder / "bad").exists() else 1
            when = (self.folder / "reloaded").stat().st_mtime
            told = "".join(
                f"{name}_config_last_reload_successful {good}\n"
                f"{name}_config_last_reload_success_timestamp_seconds {when!r}\n"
                for name in ("prometheus", "alertmanager")
            )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(told.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "reloaded").touch()
    Servers.folder, Servers.targets = tmp_path, [[]]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Servers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of both, and a systemctl that tells what it was asked to do."""
    etc = tmp_path / "prometheus"
    (etc / "targets.d").mkdir(parents=True)
    (etc / "rules.d").mkdir()
    (etc / "prometheus.yml").write_text(PROMETHEUS.replace("ROOT", str(etc)))
    (etc / "alertmanager.yml").write_text(ALERTMANAGER)
    (etc / "targets.d/node.yml").write_text("[]\n")
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin/systemctl"
    systemctl.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ntest ! -e {tmp_path}/down && touch {tmp_path}/reloaded\n'
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return etc


Given = Callable[..., dict[str, Any]]


@pytest.fixture
def given(tmp_path: Path, etc: Path, url: str) -> Given:
    def of(**more: Any) -> dict[str, Any]:
        prometheus = {"config": str(etc / "prometheus.yml"), "unit": "prometheus", "promtool": "promtool"}
        alertmanager = {"config": str(etc / "alertmanager.yml"), "unit": "alertmanager", "amtool": "amtool", "url": url}
        return {
            "state": "present",
            "targets": {"one": TARGETS},
            "targets_directory": str(etc / "targets.d"),
            "rules": RULES,
            "rules_directory": str(etc / "rules.d"),
            "prometheus": {**prometheus, "url": url, "edit": more.pop("edit", False)},
            "alertmanager": alertmanager,
            "routing": {},
            "grafana": {
                "mode": more.pop("mode", "auto"),
                "unit": "grafana",
                "provisioning": str(tmp_path / "grafana/provisioning/dashboards"),
                "dashboards_directory": str(tmp_path / "lib/dashboards/ours"),
                "provider": "# of citadel-llm\n",
                "dashboards": {"a.json": "{}\n"},
            },
            **more,
        }

    return of


def do(given: dict[str, Any], act: bool = True) -> Result:
    return bring_about(Wanted.of(given), act, patience=1)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name not in {"asked", "reloaded"}
    }


def asked(tmp_path: Path) -> list[str]:
    path = tmp_path / "asked"
    told = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return told


def refused(given: dict[str, Any], tmp_path: Path) -> str:
    """Nothing has changed, and this is why."""
    before = tree(tmp_path)
    with pytest.raises(RegistrationError) as error:
        do(given)
    assert tree(tmp_path) == before
    return str(error.value)


def test_all_of_it_once_and_away_again(given: Given, etc: Path, tmp_path: Path) -> None:
    (tmp_path / "grafana").mkdir()
    before = tree(tmp_path)
    wanted = given(routing=ROUTING)
    told = do(wanted, act=False)
    assert told.changed and tree(tmp_path) == before and not asked(tmp_path), "looking has changed something"
    assert do(wanted).told == [
        "new: targets.d/citadel-one.yml, rules.d/citadel-llm.yml, dashboards/citadel-llm.yml, ours/a.json",
        "changed: prometheus/alertmanager.yml",
        "reloaded: Prometheus, Alertmanager",
    ]
    assert asked(tmp_path) == ["reload prometheus", "reload alertmanager", "try-restart grafana"]
    assert (etc / "targets.d/citadel-one.yml").read_text() == TARGETS
    again = do(wanted)
    assert not again.changed and not again.told and not asked(tmp_path)
    gone = do(given(state="absent"))
    assert gone.told[1].startswith("removed: targets.d/citadel-one.yml")
    assert tree(tmp_path) == before
    asked(tmp_path)
    assert not do(given(state="absent")).changed and not asked(tmp_path)


def test_folders_that_are_not_there_are_made_and_go_again(given: Given, etc: Path, tmp_path: Path) -> None:
    (etc / "targets.d/node.yml").unlink()
    (etc / "targets.d").rmdir()
    before = tree(tmp_path)
    do(given(mode="files"))
    assert (tmp_path / "lib/dashboards/ours/a.json").read_text() == "{}\n"
    (tmp_path / "lib/dashboards/theirs.json").write_text("{}")
    do(given(state="absent"))
    (tmp_path / "lib/dashboards/theirs.json").unlink()
    (tmp_path / "lib/dashboards").rmdir()
    (tmp_path / "lib").rmdir()
    assert tree(tmp_path) == before


def test_a_server_taken_out_of_the_inventory(given: Given, etc: Path, tmp_path: Path) -> None:
    (etc / "targets.d/citadel-of-somebody.yml").write_text("[]\n")
    old = f"#\n# Ansible managed\n#\n# Targets of citadel-llm, one file for each LLM server\n{TARGETS}"
    (etc / "targets.d/citadel-two.yml").write_text(old)
    Servers.targets = [["one", "two"], ["one"]]
    assert "removed: targets.d/citadel-two.yml" in do(given()).told
    assert sorted(path.name for path in (etc / "targets.d").iterdir()) == [
        "citadel-of-somebody.yml",
        "citadel-one.yml",
        "node.yml",
    ]


def test_targets_are_forgotten_before_anything_reloads(given: Given, etc: Path, tmp_path: Path) -> None:
    do(given())
    asked(tmp_path)
    Servers.targets = [["one"]]
    begun = time.monotonic()
    told = do(given(state="absent")).told
    assert time.monotonic() - begun > 1
    assert "Prometheus has not forgotten one after 1 s: restart it once" in told
    Servers.targets = [[]]


def test_lines_in_prometheus_only_where_they_are_asked_for(given: Given, etc: Path, tmp_path: Path) -> None:
    (etc / "prometheus.yml").write_text("global: {scrape_interval: 5s} # theirs\nscrape_configs:\n- job_name: theirs\n")
    before = tree(tmp_path)
    shown = do(given())
    assert not shown.read and "job_name: citadel-llm" in shown.snippet and "rules.d/citadel-*.yml" in shown.snippet
    assert (etc / "prometheus.yml").read_bytes() == before["prometheus/prometheus.yml"]
    put = do(given(edit=True))
    assert put.read and not put.snippet
    assert "job_name: citadel-llm" in (etc / "prometheus.yml").read_text()
    assert not do(given(edit=True)).changed
    do(given(state="absent"))
    assert tree(tmp_path) == before


def test_what_is_pasted_is_as_good(given: Given, etc: Path) -> None:
    config = etc / "prometheus.yml"
    config.write_text("")
    config.write_text(do(given()).snippet)
    assert do(given()).read
    assert do(given(edit=True)).snippet == ""
    assert "BEGIN" not in config.read_text()


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("targets.d/citadel-one.yml", "[]\n", "is somebody else's, for it has no mark"),
        ("rules.d/citadel-llm.yml", "groups: []\n", "is somebody else's, for it has no mark"),
        ("rules.d/x.yml", "groups: [] # no\n- alert: 'Down' # x\n", "has an alert Down of somebody else's"),
        ("rules.d/x.yml", "groups:\n- name: llm\n", "has a group llm of somebody else's"),
        (
            "prometheus.yml",
            "scrape_configs:\n- job_name: citadel-llm-models\n",
            "has a job citadel-llm-models of somebody",
        ),
        ("prometheus.yml", "scrape_configs:\n- job_name: citadel-llm\n", "has a job citadel-llm of somebody"),
        ("prometheus.yml", "scrape_configs:\n- jobname: x\n", "prometheus.yml was broken before we came"),
        ("prometheus.yml", "# BEGIN citadel-llm\n", "and does not end"),
        ("alertmanager.yml", "route: {}\n", "alertmanager.yml: `route: {}` is written in one line"),
        (
            "alertmanager.yml",
            "route:\n  receiver: no\nreceivers:\n- name: x\n",
            "alertmanager.yml was broken before we came",
        ),
    ],
)
def test_what_is_somebody_elses_is_refused(
    given: Given, etc: Path, tmp_path: Path, path: str, text: str, said: str
) -> None:
    (etc / path).write_text(text)
    assert said in refused(given(routing=ROUTING), tmp_path)


def test_a_dashboard_of_somebody_else_under_our_name(given: Given, tmp_path: Path) -> None:
    (tmp_path / "lib/dashboards/ours").mkdir(parents=True)
    (tmp_path / "lib/dashboards/ours/a.json").write_text("theirs")
    assert "a.json is somebody else's" in refused(given(mode="files"), tmp_path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rules": "# of citadel-llm\ngroups: 7\n"}, "Prometheus would not take our rules"),
        ({"targets": {"one": "# of citadel-llm\n- targets: 7\n"}}, "Prometheus would not take it"),
        ({"routing": {"receivers": "- name: x\n  no_configs: []\n"}}, "Alertmanager would not take it"),
    ],
)
def test_what_they_would_not_take_is_never_put_there(given: Given, tmp_path: Path, more: Any, said: str) -> None:
    assert said in refused(given(**more), tmp_path)
    assert not asked(tmp_path)


def test_a_broken_file_of_ours_is_no_reason_to_leave_it(given: Given, etc: Path) -> None:
    do(given())
    (etc / "rules.d/citadel-llm.yml").write_text("# of citadel-llm\nbroken by hand: [\n")
    (etc / "targets.d/citadel-one.yml").write_text("# of citadel-llm\nbroken by hand: [\n")
    do(given())
    assert (etc / "rules.d/citadel-llm.yml").read_text() == RULES


def test_one_that_is_down_stays_as_it_was(given: Given, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    assert "systemctl reload prometheus` said: status 1; everything is as it was" in refused(given(), tmp_path)


def test_one_that_does_not_take_it_gets_the_old_files_and_reads_them(
    given: Given, etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(given())
    asked(tmp_path)
    (etc / "rules.d/citadel-llm.yml").chmod(0o640)
    answers = iter([(True, 1.0), (True, 1.0), (False, 1.0)])
    monkeypatch.setattr(registration, "last_reload", lambda _: next(answers))
    monkeypatch.setattr(registration, "reads_anew", lambda wanted, one, changes: one is wanted.prometheus)
    told = refused(given(rules=RULES + "  - alert: More\n    expr: up == 2\n"), tmp_path)
    assert "Prometheus did not take what it read" in told and "everything is as it was" in told
    assert asked(tmp_path) == ["reload prometheus", "reload prometheus"]
    assert (etc / "rules.d/citadel-llm.yml").stat().st_mode & 0o777 == 0o640


def test_a_disk_that_takes_nothing(given: Given, etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = registration.write

    def write(path: Path, *more: Any, **named: Any) -> None:
        if path.name == "citadel-llm.yml":
            raise OSError(30, "Read-only file system", str(path))
        real(path, *more, **named)

    monkeypatch.setattr(registration, "write", write)
    assert "Read-only file system" in refused(given(), tmp_path)
    assert not asked(tmp_path)


def test_who_was_cut_off_before_the_reload_makes_up_for_it(given: Given, etc: Path, tmp_path: Path) -> None:
    do(given())
    os.utime(tmp_path / "reloaded", (1, 1))
    asked(tmp_path)
    assert do(given()).reloads == ["Prometheus"]
    assert asked(tmp_path) == ["reload prometheus"]


def test_owner_and_mode_of_a_file_of_others_stay(given: Given, etc: Path) -> None:
    (etc / "alertmanager.yml").chmod(0o640)
    do(given(routing=ROUTING))
    assert (etc / "alertmanager.yml").stat().st_mode & 0o777 == 0o640


def test_what_others_keep_secret_is_in_no_diff(given: Given, etc: Path) -> None:
    (etc / "alertmanager.yml").write_text(f"global:\n  smtp_auth_password: hidden\n{ALERTMANAGER}\n")
    told = json.dumps(do(given(routing=ROUTING), act=False).diff)
    assert "citadel-llm-x" in told and "hidden" not in told


def test_nobody_checks_nothing(given: Given, tmp_path: Path) -> None:
    wanted = given()
    wanted["prometheus"]["promtool"] = "nosuchtool"
    assert "nosuchtool is not there to check what we bring" in refused(wanted, tmp_path)


def test_no_prometheus_at_all(given: Given, etc: Path, tmp_path: Path) -> None:
    (etc / "prometheus.yml").unlink()
    assert "name the configuration of Prometheus in monitoring_prometheus" in refused(given(), tmp_path)
    assert not do(given(state="absent")).changed
