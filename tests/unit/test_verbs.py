"""The verbs that stand behind the scripts on a host, without a host."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from citadel import inspection, logs, prestart, ready, status
from citadel.release.failure import RefusedError
from citadel.release.layout import Layout
from citadel.release.systemd import Systemctl, UnitState
from citadel.release.transaction import Terms, activate
from tests.unit.release.world import World, release_files

AT = {"__REALTIME_TIMESTAMP": "1767225600000000"}  # 2026-01-01


@pytest.mark.parametrize(
    ("entry", "written"),
    [
        (
            {"_SYSTEMD_UNIT": "citadel-llm@phi-3-mini.service", "MESSAGE": "INFO loaded"},
            [("phi-3-mini.log", "2026-01-01T00:00:00Z INFO loaded\n")],
        ),
        # what systemd says of a unit, and bytes that are no text
        (
            {"_SYSTEMD_UNIT": "init.scope", "UNIT": "citadel-llm@hermes-2.service", "MESSAGE": [72, 255]},
            [("hermes-2.log", "2026-01-01T00:00:00Z H\ufffd\n")],
        ),
        ({"_SYSTEMD_UNIT": "citadel-gateway@0001-0a0a0a0a.service", "MESSAGE": "listening"}, []),
        (
            {"UNIT": "citadel-gateway@0001-0a0a0a0a.service", "PRIORITY": "4", "MESSAGE": "Main process exited"},
            [("error.log", "2026-01-01T00:00:00Z ERROR Main process exited\n")],
        ),
        (
            {"_SYSTEMD_UNIT": "citadel-gateway@0001-0a0a0a0a.service", "MESSAGE": "Traceback (most recent call last):"},
            [("error.log", "2026-01-01T00:00:00Z ERROR Traceback (most recent call last):\n")],
        ),
    ],
)
def test_a_line_of_the_journal_goes_where_it_is_looked_for(
    entry: dict[str, Any], written: list[tuple[str, str]]
) -> None:
    assert list(logs.lines({**AT, **entry})) == written


def test_the_follower_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journalctl"
    lines = [
        {**AT, "_SYSTEMD_UNIT": "citadel-llm@alpha.service", "MESSAGE": word, "__CURSOR": f"c-{word}"}
        for word in ("one", "two")
    ]
    journal.write_text('#!/bin/sh\necho "$@" >>asked\n' + "".join(f"echo '{json.dumps(line)}'\n" for line in lines))
    journal.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "logs"
    folder.mkdir()
    assert logs.follow(folder) == logs.follow(folder) == 0
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert "--boot" in first and "--after-cursor=c-two" in second
    assert (folder / "alpha.log").read_text().splitlines()[1] == "2026-01-01T00:00:00Z two"
    assert stat.S_IMODE((folder / "alpha.log").stat().st_mode) == 0o640


def test_a_place_that_the_journal_lost_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "journalctl").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / ".cursor").write_text("long gone")
    assert logs.follow(tmp_path) == 1
    assert not (tmp_path / ".cursor").exists()


def test_a_neighbour_that_is_away_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        [good] = status.of_neighbours({"database": f"127.0.0.1:{port}"})
    [gone] = status.of_neighbours({"database": f"127.0.0.1:{port}"})
    assert good.good and str(good) == f"✓ database: 127.0.0.1:{port} answers"
    assert not gone.good and f"127.0.0.1:{port}: " in gone.said


def test_a_unit_that_died_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    manifest = world.stage(release_files(alpha="a1", beta="b1"))
    world.systemd.running = {"citadel-llm@alpha.service": {}, "citadel-gateway@0000-00000000.service": {}}
    found = {check.name: check.good for check in status.of_units(world.systemd, manifest, lambda _: True)}
    assert found == {
        "citadel-llm@alpha.service": True,
        "citadel-llm@beta.service": False,
        "citadel-gateway@0000-00000000.service": True,
    }


def test_a_host_without_a_release_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 3 kB\n")
    checks = {check.name: check for check in status.checks(Layout(tmp_path), World(tmp_path).systemd)}
    assert not checks["release"].good and "make deploy" in checks["release"].said
    assert not checks["memory"].good


def test_the_log_belongs_to_whom_its_folder_belongs(tmp_path: Path) -> None:
    status.append(tmp_path / "health-monitor.log", "[now] HEALTHY\n")
    status.append(tmp_path / "health-monitor.log", "[now] HEALTHY\n")
    told = tmp_path / "health-monitor.log"
    assert told.read_text().count("\n") == 2
    assert told.stat().st_uid == tmp_path.stat().st_uid


@pytest.mark.parametrize("sections", inspection.SECTIONS)
def test_what_is_not_installed_is_said_and_the_rest_is_shown(
    sections: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "ss" else program)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "found\n"))
    parser = argparse.ArgumentParser(prog=f"citadel {sections}")
    inspection.add_arguments(parser)
    assert inspection.run(parser.parse_args([])) == 0
    told = capsys.readouterr().out
    assert "=== Listening ports\n(ss is not installed)" in told
    assert told.count("===") == len(inspection.SECTIONS[sections])
    assert "found" in told


def test_a_model_that_nobody_knows_and_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "host/citadel"
    (tmp_path / "config/models").mkdir(parents=True)
    (tmp_path / "config/models/alpha.env").write_text("CITADEL_PORT=127.0.0.1:1\n")
    monkeypatch.setattr(prestart, "__file__", str(package / "prestart.py"))
    parser = argparse.ArgumentParser()
    prestart.add_arguments(parser)
    assert prestart.run(parser.parse_args(["nobody"])) == 1
    assert "nobody cannot start" in (told := capsys.readouterr().err) and "there are alpha" in told
    monkeypatch.setattr(Systemctl, "show", lambda self, unit: UnitState("active", "running", 7))
    assert prestart.run(parser.parse_args(["alpha"])) == 0
    assert "alpha runs already, as process 7" in capsys.readouterr().out
    monkeypatch.setattr(Systemctl, "show", lambda self, unit: UnitState("inactive", "dead", 0))
    assert prestart.run(parser.parse_args(["alpha"])) == 1
    assert "alpha.env does not set CITADEL_ENVIRONMENT" in capsys.readouterr().err


def test_a_model_that_loads_is_not_well_yet(tmp_path: Path) -> None:
    world = World(tmp_path)
    manifest = world.stage(release_files(alpha="a1"))
    world.systemd.running = {"citadel-llm@alpha.service": {}}
    found = {check.name: check for check in status.of_units(world.systemd, manifest, lambda _: False)}
    assert found["citadel-llm@alpha.service"].said.endswith("nothing listens on port 11400 yet")
    assert not found["citadel-llm@alpha.service"].good


def test_only_a_model_of_the_live_release_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(RefusedError, match=r"no model 'alpha'; it has none"):
        ready.model_of(world.layout, "alpha")
    assert activate(world.host(), world.stage(release_files(alpha="a1", beta="b1")).id, Terms("tester")).good
    assert ready.model_of(world.layout, "beta").name == "beta"
    with pytest.raises(RefusedError, match=r"no model 'gamma'; it has alpha, beta"):
        ready.model_of(world.layout, "gamma")
