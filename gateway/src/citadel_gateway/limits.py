"""Counting that never overshoots: sliding windows, a token bucket, concurrent work, and reservations on them.

A window is kept in sixty slices and a slice is forgotten only when the whole of it has left the window, so
that no stretch of the window's length ever holds more than the limit. Time is monotonic: a step of the
clock changes nothing. Everything is reserved together or not at all, and settled exactly once.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from citadel_gateway.config import Limits as LimitSettings
    from citadel_gateway.config import Rates
    from citadel_gateway.shared import Claim, Shared

_SLICES = 60
_ENTRIES = 100_000  # of meters kept; an address is forgotten before memory is


class Exceeded(Exception):
    """Names the limit, its figure, and when there is room again."""

    def __init__(self, scope: str, kind: str, limit: float, retry_after: float) -> None:
        super().__init__(f"{scope}: {kind}")
        self.scope = scope
        self.kind = kind
        self.limit = limit
        self.retry_after = retry_after


class Slice:
    __slots__ = ("count", "forgotten", "index", "untold")

    def __init__(self, index: int) -> None:
        self.index = index
        self.count = 0
        self.untold = 0  # of the count, where other gateways should know of it and do not yet
        self.forgotten = False


class Window:
    __slots__ = ("last", "limit", "name", "slices", "span", "step", "total", "until")

    def __init__(self, name: str, span: float, limit: int) -> None:
        self.name = name
        self.span = span
        self.step = span / _SLICES
        self.limit = limit
        self.total = 0
        self.slices: deque[Slice] = deque()
        self.last = Slice(-1)
        self.until = 0.0  # where the last slice ends: most of the time there is nothing to slide

    def left(self, now: float) -> int:
        if now >= self.until:
            self.slide(now)
        return self.limit - self.total

    def take(self, amount: int, now: float) -> Slice:
        if now >= self.until:
            self.slide(now)
        last = self.last
        last.count += amount
        self.total += amount
        return last

    def slide(self, now: float) -> None:
        index = int(now / self.step)
        slices = self.slices
        while slices and slices[0].index < index - _SLICES:
            gone = slices.popleft()
            gone.forgotten = True
            self.total -= gone.count
        if self.last.index != index:
            self.last = Slice(index)
            slices.append(self.last)
        self.until = (index + 1) * self.step

    def give_back(self, amount: int, taken: Slice) -> None:
        if not taken.forgotten:
            taken.count -= amount
            self.total -= amount

    def room_in(self, amount: int, now: float) -> float:
        """Seconds until `amount` fits."""
        missing = amount - (self.limit - self.total)
        for item in self.slices:
            missing -= item.count
            if missing <= 0:
                return max((item.index + 1) * self.step + self.span - now, 0.001)
        return self.span


class Bucket:
    """A rate with a burst, for everybody together."""

    __slots__ = ("burst", "level", "rate", "updated")

    def __init__(self, per_minute: int, burst: int) -> None:
        self.rate = per_minute / 60.0
        self.burst = float(burst)
        self.level = float(burst)
        self.updated = time.monotonic()

    def left(self, now: float) -> float:
        self.level = min(self.burst, self.level + (now - self.updated) * self.rate)
        self.updated = now
        return self.level


class Meter:
    """All that one principal, address, or principal on a model has used."""

    __slots__ = (
        "active",
        "claimed",
        "concurrent",
        "factor",
        "figures",
        "key",
        "rates",
        "requests",
        "scope",
        "tokens",
        "touched",
    )

    def __init__(self, scope: str, key: tuple[str, ...] = ()) -> None:
        self.scope = scope
        self.key = key
        self.active = 0
        self.claimed = 0  # of the active ones, those that count with all gateways
        self.figures = (-1, -1, -1, -1, -1)  # concurrent, minute, hour, day, tokens; -1 is without a bound
        self.concurrent: int | None = None
        self.requests: list[Window] = []
        self.tokens: Window | None = None
        self.rates: Rates | None = None
        self.factor = 1.0
        self.touched = 0.0

    def apply(self, rates: Rates, factor: float = 1.0) -> None:
        """Take over figures, now or after a reload, and keep what is counted."""
        self.rates = rates
        self.factor = factor
        self.concurrent = None if rates.concurrent is None else int(rates.concurrent * factor)
        kept = {window.name: window for window in self.requests}
        self.requests = []
        for name, span, limit in (
            ("requests per minute", 60.0, rates.requests_per_minute),
            ("requests per hour", 3600.0, rates.requests_per_hour),
            ("requests per day", 86400.0, rates.requests_per_day),
        ):
            if limit is not None:
                most = int(limit * factor)
                window = kept.get(name) or Window(name, span, most)
                window.limit = most
                self.requests.append(window)
        if rates.tokens_per_minute is None:
            self.tokens = None
        else:
            most = int(rates.tokens_per_minute * factor)
            self.tokens = self.tokens or Window("tokens per minute", 60.0, most)
            self.tokens.limit = most
        limits = {window.name: window.limit for window in self.windows()}
        self.figures = (
            -1 if self.concurrent is None else self.concurrent,
            limits.get("requests per minute", -1),
            limits.get("requests per hour", -1),
            limits.get("requests per day", -1),
            limits.get("tokens per minute", -1),
        )

    def check(self, tokens: int, now: float) -> None:
        self.touched = now
        if self.concurrent is not None and self.active >= self.concurrent:
            raise Exceeded(self.scope, "concurrent requests", self.concurrent, 1.0)
        for window in self.requests:
            if now >= window.until:
                window.slide(now)
            if window.total >= window.limit:
                raise Exceeded(self.scope, window.name, window.limit, window.room_in(1, now))
        meter = self.tokens
        if meter is not None:
            left = meter.left(now)
            # a request larger than the whole window may still go when the window is empty
            if left < tokens and left < meter.limit:
                raise Exceeded(self.scope, meter.name, meter.limit, meter.room_in(min(tokens, meter.limit), now))

    def idle(self, now: float) -> bool:
        return self.active == 0 and all(window.left(now) == window.limit for window in self.windows())

    def windows(self) -> list[Window]:
        return [*self.requests, self.tokens] if self.tokens is not None else self.requests


class Reservation:
    """What one request holds. `settle` and `cancel` are idempotent: the first one counts."""

    __slots__ = ("_limits", "_open", "claim", "meters", "of_requests", "of_tokens", "reserved")

    def __init__(self, limits: Limits, meters: list[Meter], tokens: int, now: float) -> None:
        self._open = True
        self.meters = meters
        self._limits = limits
        limits.open += 1
        self.reserved = tokens
        self.claim: Claim | None = None  # with all gateways
        self.of_requests: list[tuple[Window, Slice]] = []
        self.of_tokens: list[tuple[Window, Slice]] = []
        for meter in meters:
            meter.active += 1
            for window in meter.requests:
                last = window.last  # of now, since the check has just looked
                last.count += 1
                window.total += 1
                self.of_requests.append((window, last))
            if meter.tokens is not None:
                self.of_tokens.append((meter.tokens, meter.tokens.take(tokens, now)))
        if limits.bucket is not None:
            limits.bucket.level -= 1.0

    def remaining(self) -> tuple[Window | None, Window | None]:
        """The windows that the client is told about: requests and tokens."""
        principal = self.meters[-1]
        return (principal.requests[0] if principal.requests else None), principal.tokens

    def settle(self, tokens: int) -> None:
        """The work is done: what was reserved becomes what was used."""
        if not self._open:
            return
        self._end(self.reserved - tokens, 0)

    def cancel(self) -> None:
        """The work was refused before any of it was done: nothing is counted."""
        if not self._open:
            return
        self._end(self.reserved, 1)
        bucket = self._limits.bucket
        if bucket is not None:
            bucket.level = min(bucket.burst, bucket.level + 1.0)

    def _end(self, tokens: int, requests: int) -> None:
        """So much of it is given back."""
        self._open = False
        self._limits.open -= 1
        for meter in self.meters:
            meter.active -= 1
        for window, taken in self.of_tokens:
            window.give_back(tokens, taken)
        if requests:
            for window, taken in self.of_requests:
                window.give_back(requests, taken)
        claim, self.claim = self.claim, None
        if claim is not None:
            claim.end(tokens, requests)


class Limits:
    def __init__(self, settings: LimitSettings) -> None:
        self._meters: dict[tuple[str, ...], Meter] = {}
        self.open = 0  # reservations
        self.bucket: Bucket | None = None
        self.shared: Shared | None = None  # where other gateways count with this one
        self.apply(settings)

    def apply(self, settings: LimitSettings) -> None:
        self.settings = settings
        overall = settings.overall
        if overall is None:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = Bucket(overall.requests_per_minute, overall.burst)
        else:
            self.bucket.rate = overall.requests_per_minute / 60.0
            self.bucket.burst = float(overall.burst)
            self.bucket.level = min(self.bucket.level, self.bucket.burst)

    def meter(self, key: tuple[str, ...], rates: Rates, factor: float = 1.0) -> Meter:
        """The meter of a key, whose first word says what sort of meter it is."""
        meter = self._meters.get(key)
        if meter is None:
            if len(self._meters) >= _ENTRIES:
                self._forget_oldest()
            meter = self._meters[key] = Meter(key[0], key)
        if meter.rates is not rates or meter.factor != factor:
            meter.apply(rates, factor)
        return meter

    def meters(self) -> list[Meter]:
        return list(self._meters.values())

    def reserve(self, meters: list[Meter], tokens: int) -> Reservation:
        now = time.monotonic()
        for meter in meters:
            meter.check(tokens, now)
        bucket = self.bucket
        if bucket is not None and bucket.left(now) < 1.0:
            limit = bucket.rate * 60
            raise Exceeded("all clients", "requests per minute", limit, (1.0 - bucket.level) / bucket.rate)
        return Reservation(self, meters, tokens, now)

    def enter(self, meter: Meter) -> None:
        """What has a limit of its own and no part in everybody's; `leave` is the other half."""
        now = time.monotonic()
        meter.check(0, now)
        self.open += 1
        meter.active += 1
        for window in meter.requests:
            window.take(1, now)

    def leave(self, meter: Meter) -> None:
        self.open -= 1
        meter.active -= 1

    def sweep(self) -> None:
        """Forget who has used nothing lately; called once in a while, off the path."""
        now = time.monotonic()
        for key in [key for key, meter in self._meters.items() if meter.idle(now)]:
            del self._meters[key]

    def _forget_oldest(self) -> None:
        self.sweep()
        if len(self._meters) >= _ENTRIES:
            resting = [(meter.touched, key) for key, meter in self._meters.items() if not meter.active]
            for _, key in sorted(resting)[: _ENTRIES // 10]:
                del self._meters[key]

    def leaked(self) -> int:
        """Concurrency that is counted although no reservation is open; anything but 0 is a bug."""
        return 0 if self.open else sum(meter.active for meter in self._meters.values())

    def __len__(self) -> int:
        return len(self._meters)
