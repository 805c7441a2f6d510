"""The work of a batch on the disk, where a disk fails or a process dies between two bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from citadel_companion import work as module
from citadel_companion.config import Batches
from citadel_companion.work import ERRORS, OUTPUT, Work, letters
from tests.companion.beside import CHAT, jsonl, request

IDS = [f"r-{one}" for one in range(6)]


def work(folder: Path) -> Work:
    return Work(folder / "work", "batch_0123456789ab", CHAT, Batches())


@pytest.fixture
def begun(tmp_path: Path) -> Work:
    (tmp_path / "input").write_bytes(jsonl(*map(request, IDS)))
    begun = work(tmp_path)
    begun.begin(tmp_path / "input")
    begun.load()
    return begun


def places(of: Work) -> Iterator[int]:
    while (place := of.take()) is not None:
        yield place


def custom_ids(of: Work, name: str) -> list[str]:
    return [json.loads(line)["custom_id"] for line in (of.folder / name).read_text().splitlines()]


def test_a_line_that_is_cut_off_anywhere_is_asked_again(begun: Work, tmp_path: Path) -> None:
    for place in range(3):
        begun.answer(place, IDS[place], 200, "req", {"text": "a"})
    whole = (begun.folder / OUTPUT).read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        (begun.folder / OUTPUT).write_bytes(whole[:end])
        again = work(tmp_path)
        again.load()
        assert again.counts == {OUTPUT: 2, ERRORS: 0}
        assert [again.read(place).custom_id for place in places(again)] == IDS[2:]
        assert (begun.folder / OUTPUT).read_bytes() == whole[:last]


def test_a_disk_that_is_full_leaves_no_half_a_line(begun: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    place = begun.take()
    assert place == 0
    begun.answer(place, IDS[0], 200, "req", {})
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            begun.answer(1, IDS[1], 200, "req", {})
        with pytest.raises(OSError, match="No space left"):
            begun.fail_rest("code", "message")
    assert begun.counts == {OUTPUT: 1, ERRORS: 0}
    begun.fail_rest("code", "message")
    assert custom_ids(begun, OUTPUT) == IDS[:1]
    assert sorted(custom_ids(begun, ERRORS)) == IDS[1:]
    assert [letter.number for letter in letters(begun.folder / ERRORS)] == [2, 3, 4, 5, 6]


def test_what_was_written_while_its_asker_was_stopped_counts_once(begun: Work) -> None:
    place = begun.take()
    assert place is not None
    begun.answer(place, IDS[0], 200, "req", {})
    begun.give_back(place)
    begun.fail_rest("batch_expired", "message")
    assert custom_ids(begun, OUTPUT) == IDS[:1]
    assert sorted(custom_ids(begun, ERRORS)) == IDS[1:]


def test_closed_it_takes_nothing(begun: Work) -> None:
    begun.close()
    begun.answer(0, IDS[0], 200, "req", {})
    assert not (begun.folder / OUTPUT).exists()
