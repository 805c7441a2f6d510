"""Where the companion keeps things: one of two, chosen by the configuration, with one face."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from citadel_companion.config import Config
from citadel_companion.records import Row

FORGOTTEN = "forgotten"  # kind of the things that remember whom to keep nothing of, and until which moment
_PAGE = 500


class StoreError(Exception):
    """It cannot be used now, and may be later; nothing was kept."""


class RefusedError(Exception):
    """It will never be kept so; the sentence says why."""


class Feedback(NamedTuple):
    user_id: str
    visible_id: str
    satisfaction_score: float | None
    accuracy_feedback: float | None
    use_case: str | None
    comment: str | None


class Thing(NamedTuple):
    """What is kept for a client under an id: a response, a file, a batch."""

    kind: str
    id: str
    owner: str
    created_at: datetime
    expires_at: datetime | None
    body: dict[str, Any]


class Version(NamedTuple):
    """Of a host's configuration: which, by whom, from which state of the repository."""

    host: str
    version: str
    changed_by: str
    changed_from: str
    changed_at: datetime


# of a change, as clients get it
CHANGE = ("number", "host", "version", "changed_by", "changed_from", "changed_at", "name", "value", "previous")


def changed(known: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The names whose value is another one, is new or is gone."""

    def told(values: Mapping[str, Any], name: str) -> str | None:
        return json.dumps(values[name], sort_keys=True) if name in values else None

    return sorted(name for name in known.keys() | settings.keys() if told(known, name) != told(settings, name))


class Store(Protocol):
    """Used by one thread at a time."""

    def prepare(self) -> list[str]:
        """Connect and migrate: the names of what was applied."""

    def add(self, rows: Sequence[Row]) -> int:
        """Keep what is not there yet; how many those were."""

    def usage(self, user: str, since: datetime, until: datetime) -> list[dict[str, Any]]:
        """What somebody used, by model."""

    def model_of(self, user: str, visible_id: str) -> str | None:
        """Of a request that is this user's own."""

    def give(self, feedback: Feedback, model: str) -> None: ...

    def put(self, thing: Thing) -> None:
        """New, or in the place of the owner's own of that kind and id."""

    def get(self, kind: str, ident: str, owner: str) -> Thing | None:
        """Its owner's only, and until it expires."""

    def listed(self, kind: str, owner: str | None, after: str | None = None, limit: int = 100) -> list[Thing]:
        """The newest first, from the one behind `after` on; everybody's without an owner."""

    def drop(self, kind: str, ident: str, owner: str) -> bool:
        """Whether it was there."""

    def configure(self, version: Version, settings: Mapping[str, Any]) -> int:
        """Keep what differs from what its host had before; how many settings those were."""

    def configuration(self, name: str) -> list[dict[str, Any]]:
        """The last change of each setting of that name or below it; what was taken away is not there."""

    def changes(self, name: str, after: int | None, limit: int) -> list[dict[str, Any]]:
        """The newest first, those before the number `after`."""

    def thin(self, kind: str, owner: str, most: int, most_bytes: int) -> int:
        """Only the newest of somebody's stay: how many went."""

    def aggregate(self, now: datetime) -> None:
        """The figures of periods that are over, once more or for the first time."""

    def expire(self, now: datetime, retention: Mapping[str, int]) -> None:
        """Requests, figures and things whose time is over."""

    def forget(self, user: str) -> int:
        """All that is kept of somebody: how many rows that were."""

    def close(self) -> None: ...


def forgotten(store: Store) -> dict[str, datetime]:
    """User -> the moment until which nothing is kept of them."""
    found: dict[str, datetime] = {}
    after = None
    while page := store.listed(FORGOTTEN, None, after, _PAGE):
        found |= {one.id: datetime.fromisoformat(one.body["until"]) for one in page}
        after = page[-1].id
    return found


def opened(config: Config) -> Store:
    if config.database is None:
        from citadel_companion.embedded import Embedded  # noqa: PLC0415 - one of them is enough

        return Embedded(config)
    from citadel_companion.postgres import Postgres  # noqa: PLC0415

    return Postgres(config, config.database)
