"""A circuit breaker for one replica, fed by what happens to real requests."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from citadel_gateway.config import Breaker as BreakerSettings

State = Literal["closed", "half_open", "open"]


class Breaker:
    __slots__ = ("_failures", "_opened", "_outcomes", "_trial", "settings", "state")

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self._outcomes: deque[tuple[float, bool]] = deque()
        self.reset()

    def reset(self) -> None:
        """A new process behind the same address starts with a clean sheet."""
        self.state: State = "closed"
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
            self._note(True)
        elif self.state == "half_open":
            self._trial += 1
            if self._trial >= self.settings.half_open_calls:
                self.reset()

    def failure(self) -> bool:
        """True if this one opened it."""
        if self.state == "half_open":
            self._open()
            return True
        if self.state == "closed":
            self._note(False)
            count = len(self._outcomes)
            if count >= self.settings.minimum and self._failures >= self.settings.failure_ratio * count:
                self._open()
                return True
        return False

    def _open(self) -> None:
        self.reset()
        self.state = "open"
        self._opened = time.monotonic()

    def _note(self, good: bool) -> None:
        now = time.monotonic()
        outcomes = self._outcomes
        outcomes.append((now, good))
        self._failures += not good
        oldest = now - self.settings.window
        while outcomes[0][0] < oldest or len(outcomes) > 10_000:
            self._failures -= not outcomes.popleft()[1]
