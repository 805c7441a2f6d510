"""What is told of a deployment: its report, its diff, the table of releases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from citadel.release.diff import masked
from citadel.release.table import age, rows, table
from citadel.release.transaction import Terms, activate, rollback
from tests.unit.release.world import World, release_files


def test_the_report_says_what_was_planned_done_and_proven(world: World) -> None:
    first = world.stage(release_files(alpha="a1"), source={"revision": "0123456789abcdef"})
    activate(world.host(), first.id, Terms("hana@desk"))
    files = {**release_files(alpha="a2"), "config/gateway.yml": "which: g1\npassword: hunter2\n"}
    second = world.stage(files, source={"revision": "fedcba9876543210", "dirty": True})
    outcome = activate(world.host(), second.id, Terms("hana@desk"))
    told = json.loads((world.layout.reports / f"00002-{second.id}.json").read_text())
    assert outcome.report.endswith(f"00002-{second.id}.md")
    assert (told["outcome"], told["previous"], told["who"]) == ("committed", first.id, "hana@desk")
    assert [step["name"] for step in told["steps"]][:2] == ["switch", "restart citadel-llm@alpha.service"]
    assert told["services"]["citadel-llm@alpha.service"] == "a2"
    assert "+CITADEL_DIGEST=a2" in told["diff"] and "-CITADEL_DIGEST=a1" in told["diff"]
    text = (world.layout.reports / f"00002-{second.id}.md").read_text()
    assert "| citadel-llm@alpha.service |  | hello |  |" in text
    assert "with uncommitted changes" in text
    assert "hunter2" not in text and "hunter2" not in json.dumps(told)


def test_a_plan_that_was_off_by_more_than_a_tenth_is_told(world: World) -> None:
    files = release_files(alpha="a1", beta="b1")
    for number, (name, used) in enumerate({"alpha": 1040, "beta": 1300}.items(), 10):
        files[f"config/models/{name}.env"] += f"CITADEL_RUNNING_BYTES={1000 * 1024**2}\n"
        process = world.layout.root / f"proc/{number}"
        process.mkdir(parents=True)
        (process / "cgroup").write_text(f"0::/system.slice/citadel-llm@{name}.service\n")
        (process / "smaps_rollup").write_text(f"Pss: {used * 1024} kB\n")
    outcome = activate(world.host(), world.stage(files).id, Terms("tester"))
    assert [use["off"] for use in outcome.memory] == [0.04, 0.3]
    assert [use["note"] for use in outcome.memory if use["note"]] == [
        "beta: the capacity plan was off by +30%, it expected 1.0 GiB and 1.3 GiB are in use"
    ]
    assert "| beta | 1.0 GiB | 1.3 GiB | +30% |" in Path(outcome.report).read_text()


def test_a_failure_is_reported_too(world: World) -> None:
    first = world.stage(release_files(alpha="a1"))
    world.proofs.wrong["a1"] = "answers nonsense"
    outcome = activate(world.host(), first.id, Terms("tester"))
    assert "answers nonsense" in Path(outcome.report).read_text()


@pytest.mark.parametrize(
    "line",
    ["password: x1", "api_key = x1", 'token: "x1"', "DB_PASSWORD=x1", "  secret: x1", '"private_key": "x1"'],
)
def test_secrets_are_not_shown(line: str) -> None:
    assert "x1" not in masked(f"a: b\n{line}\nc: d")


@pytest.mark.parametrize("line", ["max_tokens: 1024", "keys_file: /opt/keys", "tokenizer: mistral", "secretary: bob"])
def test_what_only_looks_like_one_is_shown(line: str) -> None:
    assert masked(line) == line


def test_the_table_names_live_state_source_and_change(world: World) -> None:
    assert "No release is on this host yet" in table(rows(world.layout), "2026-01-01T00:00:00Z")
    first = world.stage(release_files(alpha="a1"), source={"revision": "0123456789abcdef"})
    activate(world.host(), first.id, Terms("tester"))
    second = world.stage(release_files(alpha="a2"), source={"revision": "0123456789abcdef", "dirty": True})
    activate(world.host(), second.id, Terms("tester"))
    rollback(world.host(), None, Terms("tester"))
    lines = table(rows(world.layout), "2026-01-01T01:00:00Z").splitlines()
    assert lines[1].split()[:2] == [second.id, "withdrawn"] and "0123456789+" in lines[1] and "config" in lines[1]
    assert f"rolled back to {first.id} by tester" in lines[2]
    assert lines[3].split()[:3] == ["*", first.id, "good"]


def test_ages_are_short() -> None:
    now = "2026-01-10T00:00:00Z"
    assert [age(at, now) for at in ("2026-01-09T23:59:58Z", "2026-01-09T23:00:00Z", "2026-01-01T00:00:00Z", "")] == [
        "2 s",
        "1 h",
        "9 d",
        "?",
    ]
