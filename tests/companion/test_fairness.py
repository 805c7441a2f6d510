"""Owners take turns, however many of theirs wait."""

from __future__ import annotations

import asyncio

import pytest

from citadel_companion.turns import Turns

pytestmark = pytest.mark.anyio


async def test_who_has_much_to_do_does_not_hold_up_who_has_little() -> None:
    turns, order = Turns(1), []

    async def take(owner: str) -> None:
        async with turns.turn(owner):
            order.append(owner)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(take(owner)) for owner in "aaaaabbc"]
    await asyncio.gather(*tasks)
    assert "".join(order) == "aabcabaa"


async def test_who_leaves_while_waiting_takes_no_place_with_them() -> None:
    turns = Turns(2)
    async with turns.turn("a"), turns.turn("a"):
        waiting = [asyncio.create_task(turns._entered("b")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
    # both are let in at once; one of them is stopped before it has noticed
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.wait_for(waiting[2], 1)
    await asyncio.wait_for(turns._entered("c"), 1)
    turns._left()
    turns._left()
    assert turns._free == 2
