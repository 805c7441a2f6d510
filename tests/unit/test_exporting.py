"""What node exporter is told of units, releases, plan and drift: what cannot be read is absent, the rest is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from citadel import exporting
from citadel.exporting import Export, Family
from citadel.release.history import BAD, GOOD, Histories
from citadel.release.layout import Layout
from tests.certificates import made
from tests.unit.release.world import World, release_files

PLANNED = "CITADEL_RUNNING_BYTES=2000\nCITADEL_CACHE_BYTES=500\n"


def block(unit: str, values: dict[str, str]) -> str:
    return "\n".join(f"{key}={value}" for key, value in {"Id": unit, **values}.items())


class Systemd:
    """Answers as `systemctl show` and `journalctl` do."""

    def __init__(self, **units: dict[str, str]) -> None:
        self.units = units
        self.gateways = {"citadel-gateway@0001-x.service": {"ActiveState": "active", "NRestarts": "0"}}
        self.killed: list[str] = []
        self.after = ""

    def __call__(self, command: Sequence[str]) -> str:
        if command[0] == "journalctl":
            self.after = next((word for word in command if word.startswith("--after-cursor")), "")
            seen = int(self.after.rpartition("=")[2] or 0)
            entries = [{"UNIT": unit, "__CURSOR": str(number)} for number, unit in enumerate(self.killed, 1)]
            return "\n".join(json.dumps(entry) for entry in entries[seen:])
        told = []
        for unit in command[3:]:
            if "*" in unit:
                told += [block(name, values) for name, values in self.gateways.items()]
                continue
            values = {"ActiveState": "active", "NRestarts": "0", **self.units.get(unit, {})}
            told.append(block(unit, values))
        return "\n\n".join(told)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    files = release_files(alpha="a1", beta="b1")
    for path in [path for path in files if path.endswith(".env")]:
        files[path] += PLANNED
    manifest = world.stage(files)
    (tmp_path / "opt/citadel/current").symlink_to(f"releases/{manifest.id}")
    Histories(world.layout).mark(manifest.id, GOOD, "2026-01-01T00:00:10Z")
    (tmp_path / "var/lib/citadel-metrics").mkdir(parents=True)
    unified = tmp_path / "sys/fs/cgroup/cgroup.controllers"
    unified.parent.mkdir(parents=True)
    unified.touch()
    return world


def figures(layout: Layout, ask: Systemd) -> dict[tuple[str, tuple[str, ...]], float]:
    text = Export(layout, ask, clock=lambda: 123.0).text()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


ALPHA = "citadel-llm@alpha.service"


def test_each_unit_of_the_live_release_has_a_state(world: World) -> None:
    found = figures(world.layout, Systemd(**{ALPHA: {"ActiveState": "failed", "NRestarts": "5", "MemoryMax": "9000"}}))
    assert found["citadel_unit_state", (ALPHA, "alpha", "failed")] == 1
    assert found["citadel_unit_state", (ALPHA, "alpha", "active")] == 0
    assert found["citadel_unit_gave_up", (ALPHA, "alpha")] == 1
    assert found["citadel_unit_restarts_total", (ALPHA, "alpha")] == 5
    assert found["citadel_unit_memory_max_bytes", (ALPHA, "alpha")] == 9000
    # the gateway's unit has another name in each release, and one name here
    assert found["citadel_unit_state", ("citadel-gateway.service", "", "active")] == 1


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("sys/fs/cgroup", "anon 77\nfile 900\n"),
        ("sys/fs/cgroup/memory", "cache 900\nrss 5\ntotal_rss 77\n"),
    ],
)
def test_memory_is_that_of_processes_and_no_cache(world: World, tmp_path: Path, folder: str, text: str) -> None:
    place = tmp_path / folder / "system.slice" / ALPHA
    place.mkdir(parents=True)
    (place / "memory.stat").write_text(text)
    found = figures(world.layout, Systemd(**{ALPHA: {"ControlGroup": f"/system.slice/{ALPHA}"}}))
    assert found["citadel_unit_memory_bytes", (ALPHA, "alpha")] == 77
    assert ("citadel_unit_memory_bytes", ("citadel-llm@beta.service", "beta")) not in found


def test_kills_are_counted_once_and_outlive_the_journal(world: World) -> None:
    ask = Systemd()
    assert figures(world.layout, ask)["citadel_unit_oom_kills_total", (ALPHA, "alpha")] == 0
    ask.killed = [ALPHA, "other.service", ALPHA]
    for _ in range(2):
        assert figures(world.layout, ask)["citadel_unit_oom_kills_total", (ALPHA, "alpha")] == 2
    assert ask.after == "--after-cursor=3"
    assert figures(world.layout, Systemd())["citadel_unit_oom_kills_total", (ALPHA, "alpha")] == 2


def test_the_gateway_that_serves_counts_whatever_release_it_is_of(world: World) -> None:
    ask = Systemd()
    ask.gateways = {
        "citadel-gateway@0001-old.service": {"ActiveState": "active", "NRestarts": "3"},
        "citadel-gateway@0002-new.service": {"ActiveState": "inactive", "NRestarts": "0"},
    }
    found = figures(world.layout, ask)
    assert found["citadel_unit_state", ("citadel-gateway.service", "", "active")] == 1
    assert found["citadel_unit_restarts_total", ("citadel-gateway.service", "")] == 3
    ask.gateways = {}
    assert figures(world.layout, ask)["citadel_unit_state", ("citadel-gateway.service", "", "inactive")] == 1


def test_where_systemd_hears_of_no_kill_nothing_is_claimed(world: World, tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").unlink()
    assert not [name for name, _ in figures(world.layout, Systemd()) if name == "citadel_unit_oom_kills_total"]


def test_plan_and_loads(world: World, tmp_path: Path) -> None:
    (world.layout.state / "load-seconds.json").write_text('{"alpha": 12.5, "gone": 3}')
    found = figures(world.layout, Systemd())
    assert found["citadel_plan_memory_bytes", ("alpha", "alpha")] == 2000
    assert found["citadel_plan_kv_cache_bytes", ("beta", "beta")] == 500
    loads = {labels for name, labels in found if name == "citadel_model_load_seconds"}
    assert loads == {("alpha", "alpha")}


def test_a_release_that_failed_after_the_live_one(world: World) -> None:
    other = world.stage(release_files(alpha="a2"))
    Histories(world.layout).mark(other.id, BAD, "2026-01-01T00:01:00Z", "no")
    found = figures(world.layout, Systemd())
    assert found["citadel_release_total", ()] == 2
    activated = found["citadel_release_activated_timestamp_seconds", ()]
    assert found["citadel_release_failed_timestamp_seconds", ()] == activated + 50


def test_drift_and_certificate(world: World, tmp_path: Path) -> None:
    (world.layout.state / "drift.json").write_text('{"at": 99.0, "owners": {"logs": 2, "tuning": 0}}')
    pair = made(tmp_path, "one", address="127.0.0.1")
    gateway = world.layout.current / "config" / "gateway.yml"
    gateway.parent.mkdir(exist_ok=True)
    gateway.write_text(f"server:\n  tls:\n    certificate: /{Path(pair.certificate).relative_to(tmp_path)}\n")
    found = figures(world.layout, Systemd())
    assert found["citadel_drift_items", ("logs",)] == 2
    assert found["citadel_drift_checked_timestamp_seconds", ()] == 99
    (ends,) = (value for (name, _), value in found.items() if name.startswith("citadel_certificate_expires"))
    assert ends > 1.7e9


def test_usage_that_waits(world: World, tmp_path: Path) -> None:
    name = "citadel_spool_oldest_timestamp_seconds", ()
    assert name not in figures(world.layout, Systemd())
    spool = tmp_path / "var/lib/citadel-usage"
    spool.mkdir()
    for begun in (50, 20):
        (spool / f"{begun * 10**9:020d}-1-1.usage").touch()
    assert figures(world.layout, Systemd())[name] == 20


def test_a_host_without_a_release_still_says_when_it_was_asked(tmp_path: Path) -> None:
    found = figures(Layout(tmp_path), Systemd())
    assert found["citadel_metrics_written_timestamp_seconds", ()] == 123
    assert not [name for name, _ in found if name.startswith("citadel_unit")]


def test_labels_are_escaped() -> None:
    (sample,) = (line for line in Family("a", "gauge", "b", (({"c": 'x"\\\n'}, 1.0),)).lines() if line[0] != "#")
    assert sample == 'a{c="x\\"\\\\\\n"} 1'


def test_a_folder_that_is_missing_is_told_and_no_crash(tmp_path: Path, capsys: Any) -> None:
    from argparse import Namespace

    assert exporting.run(Namespace(folder=tmp_path / "nowhere", every=0.0)) == 1
    assert "takes nothing: No such file" in capsys.readouterr().err
