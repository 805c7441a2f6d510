"""A registration as a real Prometheus and a real Alertmanager see it, on ports of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from citadel.registration import RegistrationError, Result, Wanted, bring_about
from citadel.watch import Watched, watch

RULES = "# of citadel-llm\ngroups:\n- name: llm\n  rules:\n  - alert: Gone\n    expr: absent(up)\n"
ROUTING = {
    "routes": "- matchers: ['citadel=\"llm\"']\n  receiver: citadel-llm-x\n",
    "receivers": "- name: citadel-llm-x\n",
}


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """Both programs, and a systemctl that means them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.etc = folder, folder / "etc"
        for name in ("targets.d", "rules.d"):
            (self.etc / name).mkdir(parents=True)
        self.ports = {"prometheus": free_port(), "alertmanager": free_port()}
        (self.etc / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: targets.d\n"
            "  file_sd_configs:\n  - files: [targets.d/*.yml]\nrule_files: [rules.d/*.yml]\n"
        )
        (self.etc / "alertmanager.yml").write_text("route:\n  receiver: team\nreceivers:\n- name: team\n")
        self.running = {name: self.start(name) for name in self.ports}
        systemctl = folder / "bin/systemctl"
        systemctl.parent.mkdir()
        cases = "".join(f"{name}) kill -HUP {process.pid};;" for name, process in self.running.items())
        systemctl.write_text(f"#!/bin/sh\ncase $2 in {cases} esac\n")
        systemctl.chmod(0o755)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        program = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}[name]
        options = [
            f"--config.file={self.etc}/{name}.yml",
            f"--web.listen-address=127.0.0.1:{self.ports[name]}",
            f"--storage.{'tsdb.' if name == 'prometheus' else ''}path={self.folder / name}",
            *(["--cluster.listen-address="] if name == "alertmanager" else []),
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen([program, *options], stdout=log, stderr=log)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def register(self, **more: Any) -> Result:
        target = f"127.0.0.1:{self.ports['prometheus']}"
        labels = {"job": "models", "citadel_host": "one", "model": "m", "replica": "m"}
        given = {
            "state": "present",
            "targets": {"one": f"# of citadel-llm\n- {json.dumps({'targets': [target], 'labels': labels})}\n"},
            "targets_directory": str(self.etc / "targets.d"),
            "rules": RULES,
            "rules_directory": str(self.etc / "rules.d"),
            "prometheus": {"promtool": "promtool", "edit": False, **self.program("prometheus")},
            "alertmanager": {"amtool": "amtool", **self.program("alertmanager")},
            "routing": ROUTING,
            "grafana": {
                "mode": "none",
                "unit": "",
                "provisioning": "/nowhere/a/b",
                "dashboards_directory": "/nowhere/c",
            },
            **more,
        }
        return bring_about(Wanted.of(given), act=True, patience=20)

    def program(self, name: str) -> dict[str, str]:
        return {"config": str(self.etc / f"{name}.yml"), "unit": name, "url": self.url(name)}

    def groups(self) -> list[str]:
        found = json.loads(get(f"{self.url('prometheus')}/api/v1/rules"))["data"]["groups"]
        return [group["name"] for group in found]

    def receiver_of(self, *labels: str) -> str:
        asked = ["amtool", "config", "routes", "test", f"--alertmanager.url={self.url('alertmanager')}", *labels]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    def tree(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.etc.rglob("*")) if path.is_file()}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in server.ports:
        eventually(lambda name=name: bool(get(f"{server.url(name)}/-/ready")), f"{name} did not start")  # type: ignore[misc]
    yield server
    for process in server.running.values():
        process.kill()
        process.wait()


def test_they_see_what_was_put_there_and_nothing_once_it_is_gone(server: Server) -> None:
    before = server.tree()
    assert server.register().reloads == ["Prometheus", "Alertmanager"]
    assert server.groups() == ["llm"]
    assert server.receiver_of("citadel=llm") == "citadel-llm-x" and server.receiver_of("a=b") == "team"
    target = Watched("one", "models", f"127.0.0.1:{server.ports['prometheus']}", "m", "m")
    assert watch(server.url("prometheus"), [target], patience=20).found == ("m of one",)
    assert not server.register().changed
    gone = server.register(state="absent")
    assert not gone.notes, "Prometheus has not forgotten our targets"
    assert server.tree() == before
    assert server.groups() == [] and server.receiver_of("citadel=llm") == "team"
    eventually(
        lambda: json.loads(get(f"{server.url('prometheus')}/api/v1/query?query=up"))["data"]["result"] == [], "up"
    )


def test_a_file_that_they_were_never_told_of_is_read_the_next_time(server: Server) -> None:
    server.register()
    rules = server.etc / "rules.d/citadel-llm.yml"
    server.register(rules=RULES.replace("llm\n  rules", "other\n  rules"))
    rules.write_text(RULES)
    assert server.groups() == ["other"]
    assert server.register().reloads == ["Prometheus"]
    assert server.groups() == ["llm"]


def test_what_only_the_running_one_refuses_is_put_back(server: Server) -> None:
    """A configuration that is good and, in the moment of the reload, not there for it to read."""
    server.register()
    before = server.tree()
    config, away = server.etc / "prometheus.yml", server.folder / "away"
    hidden = f"mv {config} {away}; kill -HUP {server.running['prometheus'].pid}; sleep 1; mv {away} {config}"
    (server.folder / "bin/systemctl").write_text(f"#!/bin/sh\n{hidden}\n")
    with pytest.raises(RegistrationError, match=r"Prometheus did not take what it read.*; everything is as it was"):
        server.register(rules=RULES.replace("Gone", "Other"))
    assert server.tree() == before
