"""Step by fault, on a real host: afterwards one of the two releases serves whole, and no client saw an error.

tests/unit/release/test_faults.py does the same for every single write and act, against a simulated systemd; here the
kill, the power cut and the full disk are real.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lab.machine import wait
from tests.chaos.release.box.content import content
from tests.chaos.release.conftest import Box, Client

OLD: dict[str, dict[str, Any]] = {"alpha": {}, "beta": {}}
NEW: dict[str, dict[str, Any]] = {"alpha": {"load": "0.8"}, "beta": {}}
STEPS = (
    "switch",
    "restart citadel-llm@alpha.service",
    "replace citadel-gateway@{new}.service",
    "prove",
    "stop citadel-gateway@{old}.service",
)


def deploy(box: Box, models: dict[str, dict[str, Any]], **gateway: Any) -> str:
    manifest = box.stage(content(models, gateway))
    outcome = box.activate(manifest.id)
    assert outcome["outcome"] in {"committed", "unchanged"}, outcome
    return manifest.id


@pytest.fixture
def old(box: Box) -> str:
    box.clear()
    return deploy(box, OLD)


def at_step(box: Box, step: str, act: Callable[[], None]) -> threading.Thread:
    """Do something the moment that the journal says a step begins."""

    def watch() -> None:
        limit = time.monotonic() + 30
        while step not in box.steps() and time.monotonic() < limit:
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def whole(box: Box, old: str, new: str, models: dict[str, dict[str, Any]], **gateway: Any) -> str:
    """One of the two releases, in everything that runs; which one."""
    assert box.live in {old, new}
    digests = {
        old: content(OLD),
        new: content(models, gateway),
    }[box.live or ""]
    wait(lambda: len(box.units()) == 1 + len(OLD), 15, f"not what should run: {box.units()}")
    running = box.units()
    for name in OLD:
        assert f"CITADEL_DIGEST={running[f'citadel-llm@{name}.service']}\n" == digests[f"config/models/{name}.env"]
    [gate] = [unit for unit in running if unit.startswith("citadel-gateway@")]
    assert running[gate] in digests["units/citadel-gateway@.service"]
    assert not box.layout.journal.exists()
    return "old" if box.live == old else "new"


@pytest.mark.parametrize("step", STEPS)
def test_engine_killed(box: Box, old: str, client: Callable[..., Client], step: str) -> None:
    new = box.stage(content(NEW, {"colour": "green"})).id
    with client("alpha", "beta") as asking:
        result = box.begin(new)
        at_step(box, step.format(old=old, new=new), box.kill_engine).join()
        outcome = box.end(result)
        end = whole(box, old, new, NEW, colour="green")
        # Nobody came to help: systemd itself ran the recovery.
        assert outcome["outcome"] in {"undone", "finished", "committed"}, outcome
        assert end == ("old" if outcome["outcome"] == "undone" else "new")
        again = box.stage(content(NEW, {"colour": "green"}))
        assert box.activate(again.id)["good"]
        assert whole(box, old, again.id, NEW, colour="green") == "new"
    assert asking.wrong == []


@pytest.mark.parametrize("step", STEPS)
def test_power_cut(box: Box, old: str, client: Callable[..., Client], step: str) -> None:
    new = box.stage(content(NEW, {"colour": "green"})).id
    box.begin(new)
    at_step(box, step.format(old=old, new=new), box.pull_the_plug).join()
    box.start()
    end = whole(box, old, new, NEW, colour="green")
    assert box.run("systemctl", "is-failed", "citadel-recover.service", check=False).stdout.strip() != "failed"
    with client("alpha", "beta") as asking:
        again = box.stage(content(NEW, {"colour": "green"}))
        assert box.activate(again.id)["good"]
    assert asking.wrong == []
    assert end == "old" or step.startswith("stop")


WRONG: dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any], str]] = {
    "a model crashes": ({**OLD, "alpha": {"wrong": "crash"}}, {}, "there is no such model"),
    "a model never gets ready": ({**OLD, "beta": {"wrong": "never"}}, {}, "is not proven after 8 s"),
    "a model answers nonsense": (
        {**OLD, "beta": {"wrong": "nonsense"}},
        {},
        "nothing that can be read as an answer",
    ),
    "the gateway answers nonsense": (OLD, {"wrong": True}, "with no JSON object"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_work_is_taken_back(box: Box, old: str, client: Callable[..., Client], wrong: str) -> None:
    models, gateway, said = WRONG[wrong]
    new = box.stage(content(models, gateway)).id
    # A model that loads in vain is away for as long as its time lasts: requests for it wait, and that is all.
    with client("alpha", "beta") as asking:
        outcome = box.end(box.begin(new), 120)
        assert whole(box, old, new, models, **gateway) == "old"
    assert outcome["outcome"] == "returned", outcome
    assert said in outcome["said"]
    assert asking.wrong == []
    refused = box.activate(new)
    assert refused["outcome"] == "refused" and "marked bad" in refused["said"]


@pytest.mark.parametrize("step", STEPS[:4])
def test_disk_full(box: Box, client: Callable[..., Client], step: str) -> None:
    box.clear("80M")
    old = deploy(box, OLD)
    new = box.stage(content(NEW, {"colour": "green"})).id
    fill = "cd /opt/citadel; for size in 1M 4k 1; do dd if=/dev/zero of=filler-$size bs=$size; done 2>/dev/null"

    def fill_up() -> None:
        box.run("sh", "-c", fill, check=False)

    with client("alpha", "beta") as asking:
        result = box.begin(new)
        at_step(box, step.format(old=old, new=new), fill_up).join()
        outcome = box.end(result)
        end = whole(box, old, new, NEW, colour="green")
        assert end == ("new" if outcome["good"] else "old"), outcome
        box.run("sh", "-c", "rm /opt/citadel/filler-*")
        again = box.stage(content(NEW, {"colour": "green"}))
        assert box.activate(again.id)["good"]
    assert asking.wrong == []


def test_a_full_disk_is_refused_before_anything_is_touched(box: Box) -> None:
    box.clear("80M")
    old = deploy(box, OLD)
    new = box.stage(content(NEW, {"colour": "green"})).id
    box.run("sh", "-c", "dd if=/dev/zero of=/opt/citadel/filler bs=1M count=60")
    before = box.units()
    outcome = box.activate(new)
    assert outcome["outcome"] == "refused" and "MiB free" in outcome["said"]
    assert (box.live, box.units()) == (old, before)
