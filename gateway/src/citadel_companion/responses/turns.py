"""Which turns of a conversation a model gets, where not all of them fit its window.

A turn is what a user says, up to what the user says next. Whole turns go, the oldest first; what a system says stays,
and so does the newest turn. A tool's call and its output are never parted: no turn begins between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from citadel_companion.responses.items import Item, characters

_USUAL = 4.0  # characters of a token
_LEAST, _MOST = 1.0, 8.0
_MARGIN = 0.97  # of what an estimate says, for it is one
# how many tokens a request had, in the words of vLLM, old and new
_TOLD = re.compile(r"(\d+) input tokens|\((\d+) in the messages|(\d+) tokens from the input|resulted in (\d+) tokens")


def beginnings(items: Sequence[Item]) -> list[int]:
    """Where what is sent may begin: 0, then each further turn; the last one is the newest."""
    last_use = {one["call_id"]: number for number, one in enumerate(items) if "call_id" in one}
    found = [0]
    open_until = -1
    before: Item | None = None
    for number, one in enumerate(items):
        if _is_system(one):
            continue
        if before is not None and _is_user(one) and not _is_user(before) and number > open_until:
            found.append(number)
        if "call_id" in one:
            open_until = max(open_until, last_use[one["call_id"]])
        before = one
    return found


def since(items: Sequence[Item], beginning: int) -> list[Item]:
    """From there on, and what a system has said before."""
    return [one for one in items[:beginning] if _is_system(one)] + list(items[beginning:])


def _is_user(one: Item) -> bool:
    return one.get("role") == "user"


def _is_system(one: Item) -> bool:
    return one.get("role") in ("system", "developer")


def sizes(items: Sequence[Item], ways: Sequence[int], more: int = 0) -> dict[int, int]:
    """How many characters are sent from each of those beginnings on, with `more` of what else is sent."""
    total = more + sum(characters(one) for one in items if _is_system(one))
    found: dict[int, int] = {}
    wanted = set(ways)
    for number in reversed(range(len(items))):
        if not _is_system(items[number]):
            total += characters(items[number])
        if number in wanted:
            found[number] = total
    return found


class Window:
    """Looks for the oldest beginning that fits. How many characters a token has is learnt: from the turn before, and
    from each refusal."""

    def __init__(self, items: Sequence[Item], more: int, room: int, density: float | None) -> None:
        self._items = items
        self._room = room  # tokens
        self._density = min(max(density or _USUAL, _LEAST), _MOST)
        self._ways = beginnings(items)
        self._at = 0
        self._sizes = sizes(items, self._ways, more)

    @property
    def beginning(self) -> int:
        return self._ways[self._at]

    def sent(self) -> list[Item]:
        return since(self._items, self.beginning)

    def characters(self) -> int:
        return self._sizes[self.beginning]

    def narrow(self) -> None:
        """To what fits by the estimate, or to the newest turn alone."""
        while self._at < len(self._ways) - 1 and self.characters() > _MARGIN * self._density * self._room:
            self._at += 1

    def refused(self, message: str, *, last: bool) -> bool:
        """It was too much: try again with less, unless there is no less. `last` goes to the end at once."""
        end = len(self._ways) - 1
        if self._at == end:
            return False
        before = self._at
        told = _TOLD.search(message)
        tokens = next((int(one) for one in told.groups() if one), 0) if told is not None else 0
        if last:
            self._at = end
        elif tokens:
            self._density = min(max(self.characters() / tokens, _LEAST), _MOST)
            self._at += 1
            self.narrow()
        else:
            self._at = max(before + 1, (before + end + 1) // 2)
        return True
