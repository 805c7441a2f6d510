"""What was said before, as it is kept: one thing for each response, with its own input, and the id of the one before.

Each turn is kept once, so a conversation of n turns takes n turns of room, and what a client deletes is in no other
response. Reading goes backwards, and ends where a model's window is full for certain.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from citadel_companion.config import Responses as Settings
from citadel_companion.responses.items import Item, characters
from citadel_companion.services import Problem
from citadel_companion.store import Store, Thing

KIND = "response"
DEEPEST = 200  # turns that are read for one more
_ID = re.compile(r"resp_[0-9a-f]{32}").fullmatch
_HEAVIEST = 8 * 1024 * 1024  # bytes of the turns that are read: images have no characters, and take room
_LISTED = 500_000  # characters of a conversation that are listed
_EVERY = 64  # how seldom it is looked whether a client has too many


class Past(NamedTuple):
    items: list[Item]
    whole: bool  # or there are older ones, which were not read
    root: str | None
    density: float | None  # characters of a token, as the last turn was counted


NO_PAST = Past([], whole=True, root=None, density=None)


def absent(ident: str, param: str | None = None) -> Problem:
    what = "Previous response" if param else "Response"
    code = "previous_response_not_found" if param else "response_not_found"
    return Problem(404, code, f"{what} with id {ident[:100]!r} not found.", param)


def past(store: Store, owner: str, ident: str, most: int, settings: Settings, *, renew: bool = True) -> Past:
    """The conversation that ends with this response: at most so many characters and the turn in which they are full."""
    turns: list[list[Item]] = []
    total = weight = 0
    at: str | None = ident
    last: dict[str, Any] = {}
    oldest: dict[str, Any] = {}
    while at is not None and len(turns) < DEEPEST and total <= most and weight <= _HEAVIEST:
        thing = thing_of(store, owner, at)
        if thing is None:
            raise absent(at, "previous_response_id")
        oldest = thing.body
        last = last or oldest
        if at == ident and oldest["response"]["status"] == "failed":
            raise Problem(
                400,
                "previous_response_failed",
                f"Previous response with id {ident!r} has failed; go on from the one before it.",
                "previous_response_id",
            )
        if renew:
            _renew(store, thing, settings)
        turns.append([*oldest["input"], *oldest["response"]["output"]])
        total += sum(characters(one) for one in turns[-1])
        weight += len(orjson.dumps(oldest))
        at = oldest["response"]["previous_response_id"]
    items = [item for turn in reversed(turns) for item in turn]
    if at is not None:
        items = [*oldest["system"], *_paired(items)]
    return Past(items, at is None, last["root"], last["density"])


def thing_of(store: Store, owner: str, ident: str) -> Thing | None:
    """Whatever a client sends as an id: the store is asked for what can be one."""
    return store.get(KIND, ident, owner) if _ID(ident) else None


def drop(store: Store, owner: str, ident: str) -> None:
    if not _ID(ident) or not store.drop(KIND, ident, owner):
        raise absent(ident)


def _renew(store: Store, thing: Thing, settings: Settings) -> None:
    """A conversation that goes on keeps its turns, written anew at half of their time."""
    now = datetime.now(UTC)
    if thing.expires_at is not None and thing.expires_at - now < timedelta(days=settings.days) / 2:
        store.put(thing._replace(expires_at=now + timedelta(days=settings.days)))


def _paired(items: list[Item]) -> list[Item]:
    """Without outputs whose calls were not read, and what stands before them."""
    called = set()
    begin = 0
    for number, one in enumerate(items):
        if one["type"] == "function_call":
            called.add(one["call_id"])
        elif one["type"] == "function_call_output" and one["call_id"] not in called:
            begin = number + 1
    return items[begin:]


def keep(store: Store, owner: str, body: dict[str, Any], settings: Settings) -> None:
    response = body["response"]
    now = datetime.now(UTC)
    thing = Thing(KIND, response["id"], owner, now, now + timedelta(days=settings.days), body)
    store.put(thing)
    if int(response["id"][-4:], 16) % _EVERY == 0:
        store.thin(KIND, owner, settings.most, settings.most_bytes)


def found(store: Store, owner: str, ident: str) -> dict[str, Any]:
    thing = thing_of(store, owner, ident)
    if thing is None:
        raise absent(ident)
    return thing.body


def input_items(store: Store, owner: str, ident: str, settings: Settings) -> list[Item]:
    """What a response was made of, the oldest first: the newest of what was said before, and its own input."""
    body = found(store, owner, ident)
    before = body["response"]["previous_response_id"]
    said = past(store, owner, before, _LISTED, settings, renew=False).items if before is not None else []
    return [*said, *body["input"]]
