"""Whatever breaks, wherever: afterwards the old release serves, or the new one is proven.

The places are not listed by hand. A first run counts every write of the journal, every act of systemd and
every proof; then the same deployment is repeated once for each of them and each kind of failure.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from citadel.release import files as durable
from citadel.release.failure import FailedError
from citadel.release.installed import Findings, look
from citadel.release.journal import Journal
from citadel.release.manifest import read_manifest
from citadel.release.transaction import Terms, activate, recover
from tests.unit.release.world import Killed, World, release_files

BEFORE = {"alpha": "a1", "beta": "b1", "gone": "x1"}
AFTER = {"alpha": "a2", "beta": "b1", "new": "n1"}


class Trap:
    """Counts the places that a transaction passes, and springs at one of them."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed: list[str] = []
        self.at = -1
        self.spring: Callable[[], None] = lambda: None
        self.only: Callable[[str], bool] = lambda place: True
        world.systemd.before = self
        self._around(
            monkeypatch,
            Journal,
            "write",
            lambda self_, event, **details: f"journal {event} {details.get('name', '')}",
        )
        self._around(monkeypatch, durable, "write", lambda path, *rest, **more: f"write {path.name}")
        self._around(monkeypatch, durable, "aside", lambda path, *rest, **more: f"aside {path.name}")
        self._around(monkeypatch, durable, "place", lambda aside, path: f"place {path.name}")
        for module in ("installed", "face", "transaction"):
            target = __import__(f"citadel.release.{module}", fromlist=["link"])
            self._around(monkeypatch, target, "link", lambda path, *rest: f"link {path.name}")

    def __call__(self, place: str) -> None:
        if not self.only(place):
            return
        self.passed.append(place)
        if len(self.passed) - 1 == self.at:
            self.spring()

    def _around(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, say: Callable[..., str]) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: Any, **named: Any) -> Any:
            self(say(*arguments, **named))
            return inner(*arguments, **named)

        monkeypatch.setattr(owner, name, outer)


def raises(error: BaseException) -> Callable[[], None]:
    def spring() -> None:
        raise error

    return spring


def deployed(root: Path) -> World:
    root.mkdir()
    world = World(root)
    manifest = world.stage(release_files(gateway="g1", **BEFORE))
    assert activate(world.host(), manifest.id, Terms("tester")).good
    return world


def served(content: dict[str, str], gateway: str) -> dict[str, str]:
    return {**{f"citadel-llm@{name}.service": digest for name, digest in content.items()}, "gateway": gateway}


OLD, NEW = served(BEFORE, "g1"), served(AFTER, "g2")

FAULTS = {
    "raises": raises(RuntimeError("something nobody thought of")),
    "fails": raises(FailedError("the step did not do what it should")),
    "disk full": raises(OSError(errno.ENOSPC, "No space left on device")),
    "killed": raises(Killed()),
    "rebooted": raises(Killed()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_place_and_every_fault(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, places = 0, []
    outcomes = set()
    while True:
        with monkeypatch.context() as patches:
            world = deployed(tmp_path / f"{at}")
            old = world.live
            manifest = world.stage(release_files(gateway="g2", **AFTER))
            trap = Trap(world, patches)
            trap.at, trap.spring = at, FAULTS[fault]
            survived = False
            try:
                survived = activate(world.host(), manifest.id, Terms("tester")).good
            except Killed:
                world.systemd.before = lambda act: None
            except (RuntimeError, FailedError, OSError):
                pass  # before the transaction began: nothing was touched
            if at >= len(trap.passed):
                break
            places.append(trap.passed[at])
        world.systemd.before = lambda act: None
        if "rebooted" in fault:
            reboot(world)
        else:
            recover(world.host())  # as systemd does when the unit of the transaction stops
        end = judge(world, old, manifest.id, f"{fault} at {trap.passed[at]} ({at})")
        # What is proven is finished, whatever happens then; what was cut off before is taken back.
        proven = "journal proven " in trap.passed[:at]
        assert end == ("new" if proven or survived else "old"), trap.passed[at]
        outcomes.add(end)
        heals(world)
        at += 1
    assert len(places) > 30, places
    assert outcomes == {"old", "new"}


def judge(world: World, old: str | None, new: str, case: str) -> str:
    """One of the two allowed ends, in everything that can be looked at."""
    assert world.live in {old, new}, case
    expected = OLD if world.live == old else NEW
    assert world.serving() == expected, f"{case}: {world.told}"
    assert len(world.gateways()) == 1, case
    assert not {f"citadel-llm@{name}.service" for name in world.gate.closed} & expected.keys(), case
    state = world.host().histories.of(new).state
    assert state in ({"good"} if world.live == new else {"bad", "interrupted", "staged"}), case
    for path in world.layout.units.rglob("citadel-*"):
        assert not path.is_symlink() or path.exists(), f"{case}: {path} leads nowhere"
    # a full disk may cost people their copies until the next switch, never those that run by the release
    config, source = world.layout.home / "config", world.layout.current / "config"
    if not case.startswith("disk full"):
        assert {p.name for p in config.glob("*.env")} == {p.name for p in source.glob("models/*.env")}, case
        for path in source.rglob("*.*"):
            assert (config / path.relative_to(source)).read_text() == path.read_text(), f"{case}: {path}"
    live = read_manifest(world.layout.current)
    assert look(world.layout, live) == Findings(), case
    world.systemd.boot()
    assert world.serving() == expected, f"{case}, after a boot"
    return "old" if world.live == old else "new"


def reboot(world: World) -> None:
    world.gate.closed.clear()  # as the gateway is gone that remembered them
    world.systemd.boot(lambda: recover(world.host(), boot=True))


def heals(world: World) -> None:
    """The next deployment of the same content ends well."""
    manifest = world.stage(release_files(gateway="g2", **AFTER))
    outcome = activate(world.host(), manifest.id, Terms("tester"))
    assert outcome.good, outcome.said
    assert world.serving() == NEW
    assert not world.layout.journal.exists()


@pytest.mark.parametrize("fault", ["killed", "rebooted"])
def test_the_way_back_may_be_interrupted_too(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = 0
    while True:
        with monkeypatch.context() as patches:
            world = deployed(tmp_path / f"{at}")
            old = world.live
            manifest = world.stage(release_files(gateway="g2", **AFTER))
            world.proofs.wrong["n1"] = "answers nonsense"
            trap = Trap(world, patches)
            returning = False

            def on_the_way_back(place: str) -> bool:
                nonlocal returning
                returning = returning or place.startswith("journal returning")
                return returning

            trap.only, trap.at, trap.spring = on_the_way_back, at, raises(Killed())
            try:
                activate(world.host(), manifest.id, Terms("tester"))
                break
            except Killed:
                world.systemd.before = lambda act: None
        if fault == "rebooted":
            reboot(world)
        else:
            recover(world.host())
        assert judge(world, old, manifest.id, f"{fault} at {trap.passed[at]}") == "old"
        at += 1
    assert at > 8


def test_what_answers_nonsense_or_never_is_taken_back(world: World) -> None:
    manifest = world.stage(release_files(gateway="g1", **BEFORE))
    activate(world.host(), manifest.id, Terms("tester"))
    for digest, content, gateway in (("n1", AFTER, "g1"), ("a2", AFTER, "g1"), ("g3", BEFORE, "g3")):
        world.proofs.wrong = {digest: "was not ready after 900 s"}
        bad = world.stage(release_files(gateway=gateway, **content))
        outcome = activate(world.host(), bad.id, Terms("tester"))
        assert (outcome.outcome, world.serving()) == ("returned", OLD), digest
        world.proofs.wrong = {}
        world.systemd.crash = {digest}
        crashing = world.stage(release_files(gateway=gateway, host=digest, **content))
        assert activate(world.host(), crashing.id, Terms("tester")).outcome == "returned"
        assert world.serving() == OLD, digest
        world.systemd.crash = set()


def test_a_full_disk_is_survived_with_the_reserve(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes fail from one moment on, until the reserve is given back."""
    manifest = world.stage(release_files(gateway="g1", **BEFORE))
    activate(world.host(), manifest.id, Terms("tester"))
    bad = world.stage(release_files(gateway="g2", **AFTER))
    full = False
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if full and world.layout.reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)

    def fill(act: str) -> None:
        nonlocal full
        full = full or act.startswith("restart citadel-llm@alpha")

    world.systemd.before = fill
    world.proofs.wrong["a2"] = "no room for its cache"
    assert activate(world.host(), bad.id, Terms("tester")).outcome == "returned"
    assert world.serving() == OLD
