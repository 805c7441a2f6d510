"""A circuit breaker for one replica, fed by what happens to real requests and decided by a probe.

One client's requests may fail for a reason of their own, so failures make a replica no more than suspect: it is
then asked for one token. Where it gives it, the failures are forgotten. Where it does not, and several clients have
seen it fail, the breaker opens.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from citadel_gateway.config import Breaker as BreakerSettings

State = Literal["closed", "half_open", "open"]
_MOST = 10_000


class Breaker:
    __slots__ = ("_failures", "_opened", "_outcomes", "_trial", "settings", "state", "suspect")

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self._outcomes: deque[tuple[float, str]] = deque()  # with whom it failed, or nothing
        self.reset()

    def reset(self) -> None:
        """A clean sheet: a new process behind the same address, or one that a probe has cleared."""
        self.state: State = "closed"
        self.suspect = False
        self._outcomes.clear()
        self._failures = 0
        self._opened = 0.0
        self._trial = 0

    def allows(self, in_flight: int) -> bool:
        if self.state == "closed":
            return True
        if self.state == "open":
            if self.opens_in() > 0:
                return False
            self.state = "half_open"
            self._trial = 0
        return in_flight < self.settings.half_open_calls

    def opens_in(self) -> float:
        """Seconds until trial calls are let through."""
        if self.state != "open":
            return 0.0
        return max(0.0, self._opened + self.settings.recovery - time.monotonic())

    def success(self) -> None:
        if self.state == "closed":
            self._note("")
        elif self.state == "half_open":
            self._trial += 1
            if self._trial >= self.settings.half_open_calls:
                self.reset()

    def failure(self, principal: str) -> None:
        """Counts, and may make it suspect."""
        if self.state == "open":
            return
        self._note(principal)
        count = len(self._outcomes)
        if self.state == "half_open" or (
            count >= self.settings.minimum and self._failures >= self.settings.failure_ratio * count
        ):
            self.suspect = True

    def acquit(self) -> None:
        """A probe got its token: whatever failed was not the replica."""
        if self.state == "closed":
            self.reset()
        self.suspect = False

    def convict(self) -> bool:
        """A probe failed, too. True if that opens it: not on the word of a single client."""
        if not self.suspect:
            return False
        if self.state == "half_open" or (self.state == "closed" and self._clients() >= self.settings.clients):
            self.reset()
            self.state = "open"
            self._opened = time.monotonic()
            return True
        return False

    def _clients(self) -> int:
        return len({principal for _, principal in self._outcomes if principal})

    def _note(self, principal: str) -> None:
        now = time.monotonic()
        outcomes = self._outcomes
        outcomes.append((now, principal))
        if principal:
            self._failures += 1
        oldest = now - self.settings.window
        while outcomes[0][0] < oldest or len(outcomes) > _MOST:
            _, gone = outcomes.popleft()
            if gone:
                self._failures -= 1
