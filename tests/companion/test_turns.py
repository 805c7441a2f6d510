"""Which turns go where not all fit: whole ones, the oldest first, and no tool's call without its output."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some

from citadel_companion.responses.items import check_pairs
from citadel_companion.responses.turns import Window, beginnings, since, sizes

Item = dict[str, Any]


def says(role: str, text: str = "x") -> Item:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def call(ident: str) -> Item:
    return {"type": "function_call", "call_id": ident, "name": "f", "arguments": "{}"}


def output(ident: str) -> Item:
    return {"type": "function_call_output", "call_id": ident, "output": "1"}


@some.composite
def conversations(draw: some.DrawFn) -> list[Item]:
    """Messages of any order; outputs anywhere behind their calls, even turns later."""
    items: list[Item] = []
    open_calls: list[str] = []
    for number in range(draw(some.integers(1, 30))):
        kind = draw(some.sampled_from(("user", "user", "assistant", "system", "call", "output")))
        if kind == "call":
            open_calls.append(f"call-{number}")
            items.append(call(open_calls[-1]))
        elif kind == "output" and open_calls:
            items.append(output(open_calls.pop(draw(some.integers(0, len(open_calls) - 1)))))
        else:
            items.append(says(kind if kind != "output" else "user", "x" * draw(some.integers(0, 50))))
    return items + [output(ident) for ident in open_calls]


@settings(deadline=None, max_examples=150)
@given(conversations(), some.integers(1, 200), some.integers(0, 100))
def test_what_is_sent_is_whole_turns(items: list[Item], room: int, more: int) -> None:
    window = Window(items, more, room, None)
    window.narrow()
    sent = window.sent()
    check_pairs(sent)
    kept = [one for one in sent if one.get("role") != "system"]
    assert [one for one in items if one.get("role") != "system"][-len(kept) :] == kept, "the end stays as it is"
    assert [one for one in sent if one.get("role") == "system"] == [one for one in items if one.get("role") == "system"]
    if window.beginning:
        assert kept[0]["role"] == "user"
        before = next(one for one in reversed(items[: window.beginning]) if one.get("role") != "system")
        assert before.get("role") != "user", "a turn was cut"
    fits = window.characters() <= 0.97 * 4 * room
    assert fits or window.beginning == beginnings(items)[-1], "as many go as must, and the newest turn stays"


@settings(deadline=None, max_examples=100)
@given(conversations())
def test_sizes_are_those_of_what_is_sent(items: list[Item]) -> None:
    ways = beginnings(items)
    found = sizes(items, ways, 7)
    for way in ways:
        texts = [sum(len(part["text"]) for part in one.get("content", ())) for one in since(items, way)]
        calls = [3 for one in since(items, way) if one["type"] == "function_call"]
        outputs = [1 for one in since(items, way) if one["type"] == "function_call_output"]
        assert found[way] == 7 + sum(texts) + sum(calls) + sum(outputs) + 16 * len(texts)


@settings(deadline=None, max_examples=100)
@given(conversations(), some.sampled_from(("too long", "contains 50 input tokens")))
def test_refusals_lead_to_the_newest_turn(items: list[Item], message: str) -> None:
    window = Window(items, 0, 40, None)
    window.narrow()
    seen = [window.beginning]
    while window.refused(message, last=len(seen) == 5):
        seen.append(window.beginning)
        assert seen[-1] > seen[-2], "each time with less"
    assert window.beginning == beginnings(items)[-1]
    assert len(seen) <= 6


def test_it_learns_how_long_a_token_is() -> None:
    items = [says(role, "x" * 84) for _ in range(10) for role in ("user", "assistant")]
    window = Window(items, 0, 500, None)
    window.narrow()
    assert window.beginning == 2, "2,000 characters seem to fit, of 4 for each token"
    # of those 1,800, each token has 2: so 970 fit
    assert window.refused("your request has 900 input tokens", last=False)
    assert len(window.sent()) == 8
    assert Window(items, 0, 500, 2.0)._density == 2.0
    known = Window(items, 0, 500, 2.0)
    known.narrow()
    assert len(known.sent()) == 8, "and the next time it is known"


def test_a_few_tries_are_enough_for_many_turns() -> None:
    items = [says(role) for _ in range(200) for role in ("user", "assistant")]
    window = Window(items, 0, 10_000, None)
    for number in range(4):
        assert window.refused("too long", last=number == 3)
    assert window.beginning == 398


def test_a_tool_that_answers_turns_later_holds_them_together() -> None:
    items = [says("user"), call("a"), says("user"), output("a"), says("assistant"), says("user"), says("assistant")]
    assert beginnings(items) == [0, 5]
