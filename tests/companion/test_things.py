"""What is kept for clients under an id: its owner's only, until it expires, on both stores."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from citadel_companion.store import Store, Thing

NOW = datetime.now(UTC).replace(microsecond=0)


def thing(ident: str, owner: str = "key:a", *, minutes: float = 0, expires: float | None = None, **body: Any) -> Thing:
    until = NOW + timedelta(minutes=expires) if expires is not None else None
    return Thing("response", ident, owner, NOW + timedelta(minutes=minutes), until, body)


def test_only_its_owner_finds_changes_and_drops_it(store: Store) -> None:
    kept = thing("one", text="\u00e9\U0001f600", deep={"list": [1, None, 2.5]})
    store.put(kept)
    assert store.get("response", "one", "key:a") == kept
    assert store.get("response", "one", "key:b") is None
    assert store.get("file", "one", "key:a") is None
    store.put(thing("one", "key:b", text="theirs"))
    assert store.get("response", "one", "key:a") == kept
    assert store.get("response", "one", "key:b") is None
    changed = thing("one", text="new", minutes=1)
    store.put(changed)
    assert store.get("response", "one", "key:a") == changed
    assert not store.drop("response", "one", "key:b")
    assert store.drop("response", "one", "key:a")
    assert not store.drop("response", "one", "key:a")


def test_a_list_goes_on_behind_what_was_seen(store: Store) -> None:
    for number in range(7):
        # two of each moment
        store.put(thing(f"id-{number}", minutes=number // 2))
    store.put(thing("theirs", "key:b"))
    seen: list[str] = []
    while page := store.listed("response", "key:a", seen[-1] if seen else None, 2):
        seen += [one.id for one in page]
    assert seen == [f"id-{number}" for number in reversed(range(7))]
    assert len(store.listed("response", None)) == 8
    assert store.listed("response", "key:a", "nobody") == []


def test_what_has_expired_is_not_found_and_goes(store: Store) -> None:
    store.put(thing("old", expires=-1))
    store.put(thing("young", expires=60))
    assert store.get("response", "old", "key:a") is None
    assert [one.id for one in store.listed("response", None)] == ["young"]
    store.expire(NOW + timedelta(minutes=61), {"requests": 30, "aggregates": 365, "reports": 1825})
    assert store.forget("key:a") == 0


def test_all_of_somebody_is_forgotten(store: Store) -> None:
    for ident, owner in (("one", "key:a"), ("two", "key:a"), ("three", "key:b")):
        store.put(thing(ident, owner))
    assert store.forget("key:a") == 2
    assert [one.id for one in store.listed("response", None)] == ["three"]
