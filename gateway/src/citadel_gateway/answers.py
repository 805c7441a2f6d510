"""Answers that are kept in memory: the least recently used go when there is no room, and nobody takes it all."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable

import zstandard

OVERHEAD = 700  # bytes that an entry takes besides its body
SHARE = 2  # a principal has one part in so many of the memory
_WORTH = 4096  # shorter ones stay as they are


def packed_of(body: bytes) -> bytes | None:
    """None where that does not save a quarter."""
    if len(body) < _WORTH:
        return None
    packed = bytes(zstandard.ZstdCompressor(level=3).compress(body))
    return packed if 4 * len(packed) <= 3 * len(body) else None


class Entry:
    """One answer. Long ones are compressed once, not for each client."""

    __slots__ = ("body", "key", "model", "owner", "packed", "size", "stored", "stream", "until")

    def __init__(
        self, key: bytes, owner: str, model: str, body: bytes, *, stream: bool, ttl: float, age: float
    ) -> None:
        now = time.monotonic()
        self.key = key
        self.owner = owner
        self.model = model
        self.body = body
        self.stream = stream
        self.packed = False
        self.stored = now - age
        self.until = self.stored + ttl
        self.size = len(body) + OVERHEAD

    def shrink(self, packed: bytes | None) -> None:
        """Take what `packed_of` makes of the body, if it is worth it."""
        if packed is not None:
            self.body = packed
            self.packed = True
            self.size = len(packed) + OVERHEAD

    def whole(self) -> bytes:
        return bytes(zstandard.ZstdDecompressor().decompress(self.body)) if self.packed else self.body


class Answers:
    """`gone` is told the model of each entry that had to make room."""

    def __init__(self, most: int, gone: Callable[[str], None]) -> None:
        self.most = most
        self._gone = gone
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._owners: defaultdict[str, OrderedDict[bytes, Entry]] = defaultdict(OrderedDict)
        self._taken: defaultdict[str, int] = defaultdict(int)  # bytes of each owner
        self.models: defaultdict[str, int] = defaultdict(int)  # bytes of each model
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if time.monotonic() >= entry.until:
            self._drop(entry)
            return None
        self._entries.move_to_end(key)
        self._owners[entry.owner].move_to_end(key)
        return entry

    def put(self, entry: Entry) -> None:
        old = self._entries.get(entry.key)
        if old is not None:
            self._drop(old)
        if entry.size > self.most // SHARE:
            return
        self._entries[entry.key] = entry
        self._owners[entry.owner][entry.key] = entry
        self._count(entry, entry.size)
        while self._taken[entry.owner] > self.most // SHARE:
            self._evict(self._owners[entry.owner])
        self.shrink(self.most)

    def shrink(self, most: int) -> None:
        self.most = most
        while self.size > most:
            self._evict(self._entries)

    def clear(self, model: str | None = None) -> int:
        """How many there were, of one model or of all."""
        found = [entry for entry in self._entries.values() if model is None or entry.model == model]
        for entry in found:
            self._drop(entry)
        return len(found)

    def sweep(self) -> None:
        """Forget what nobody will ask for again."""
        now = time.monotonic()
        for entry in [entry for entry in self._entries.values() if now >= entry.until]:
            self._drop(entry)

    def _evict(self, entries: OrderedDict[bytes, Entry]) -> None:
        entry = next(iter(entries.values()))
        self._drop(entry)
        self._gone(entry.model)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        own = self._owners[entry.owner]
        del own[entry.key]
        self._count(entry, -entry.size)
        if not own:
            del self._owners[entry.owner], self._taken[entry.owner]

    def _count(self, entry: Entry, size: int) -> None:
        self.size += size
        self._taken[entry.owner] += size
        self.models[entry.model] += size
