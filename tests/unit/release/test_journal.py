"""The journal: what a crash leaves of it, and what is made of that."""

from __future__ import annotations

import errno
import os

import pytest

from citadel.release.activation import Request, command, start, steps
from citadel.release.failure import RefusedError
from citadel.release.journal import Journal, read_story, set_reserve
from citadel.release.layout import Layout
from citadel.release.lock import locked
from citadel.release.transaction import recover
from tests.unit.release.test_probing import Recorded
from tests.unit.release.world import World

BEGIN = {"target": "0002-00000000", "previous": "0001-00000000", "number": 2, "who": "x", "at": "now", "plan": {}}


def test_a_line_that_was_cut_short_hides_none(world: World) -> None:
    world.layout.state.mkdir()
    journal = Journal(world.layout)
    journal.write("begin", **BEGIN)
    with world.layout.journal.open("a") as stream:
        stream.write('{"event": "step", "na')
    journal.write("step", name="switch")
    story = read_story(world.layout)
    assert story and (story.target, story.step) == ("0002-00000000", "switch")


@pytest.mark.parametrize("text", ["", '{"event": "beg', "\0" * 100])
def test_a_journal_without_a_beginning_is_put_away(world: World, text: str) -> None:
    world.layout.state.mkdir()
    world.layout.journal.write_text(text)
    assert recover(world.host()) is None
    assert not world.layout.journal.exists()
    assert world.systemd.acts == []


def test_the_reserve_is_given_up_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_reserve(world.layout)
    journal = Journal(world.layout)
    flushed = 0

    def full(descriptor: int) -> None:
        nonlocal flushed
        flushed += 1
        if world.layout.reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    journal.write("begin", **BEGIN)
    assert not world.layout.reserve.exists()
    story = read_story(world.layout)
    assert story and story.begun


def test_a_lock_ends_with_its_holder(world: World) -> None:
    pid = os.fork()
    if not pid:
        with locked(world.layout, "something long", "hana@desk", "noon"):
            os._exit(0)  # no cleaning up
    os.waitpid(pid, 0)
    with (
        locked(world.layout, "mine", "me", "now"),
        pytest.raises(RefusedError, match=r"me has been busy with mine since now \(process"),
        locked(world.layout, "other", "you", "later"),
    ):
        pass


def test_steps_are_those_of_the_open_transaction_or_the_last(world: World) -> None:
    world.layout.state.mkdir()
    assert steps(world.layout) == []
    journal = Journal(world.layout)
    journal.write("begin", **BEGIN)
    journal.write("done", name="switch", seconds=0.1)
    assert steps(world.layout) == [{"name": "switch", "seconds": 0.1}]
    journal.close("00002-0002-00000000")
    assert [step["name"] for step in steps(world.layout)] == ["switch"]


def test_a_transaction_is_a_unit_that_recovers_by_itself() -> None:
    request = Request("activate", "0002-00000000", who="hana@desk", force=True)
    line = " ".join(command(Layout(), request, Layout().root / "run/x.json"))
    assert "--setenv=PYTHONPATH=/opt/citadel/releases/0002-00000000/host" in line
    assert "--property=ExecStopPost=/usr/bin/python3 -B -m citadel release recover --result /run/x.json" in line
    assert line.endswith(
        "release activate 0002-00000000 --keep-revisions 2 --who hana@desk --force --keep 5 --keep-bad 2 "
        "--result /run/x.json"
    )


def test_going_back_needs_something_to_go_back_to(world: World) -> None:
    with pytest.raises(RefusedError, match="Nothing was ever deployed"):
        command(world.layout, Request("rollback"), world.layout.root)


def test_a_unit_that_is_about_to_vanish_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    already = (1, "Unit citadel-activate.service was already loaded")
    recorded = Recorded(already, (3, "inactive"), already, (3, "inactive"), (0, ""))
    start(["systemd-run"], world.layout, recorded)
    world.layout.state.mkdir()
    with pytest.raises(RefusedError, match="Another transaction is under way"):
        start(["systemd-run"], world.layout, Recorded(already, (0, "active")))
    with pytest.raises(RefusedError, match="could not be started: no such program"):
        start(["systemd-run"], world.layout, Recorded((127, "no such program")))
