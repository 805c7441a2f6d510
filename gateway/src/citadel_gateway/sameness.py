"""Which requests have the same answer: what is deterministic, and the key under which its answer is kept."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Model

MOST = 1024 * 1024  # bytes of a body that is looked at
# nothing that a model server answers depends on them
_UNREAD = ("user", "metadata", "safety_identifier", "prompt_cache_key")
_VERSION = "1"
# orjson reads integers beyond 64 bits as floats, so that two of them may look alike
_DIGITS = bytes([48 if 48 <= code <= 57 else 32 for code in range(256)])
_LONG = b"0" * 19


def key_of(exchange: Exchange, model: Model) -> bytes | None:
    """None where the answer may be another one the next time. The body has the model's defaults in it already."""
    body = exchange.body
    if len(body) > MOST:
        return None
    data: dict[str, Any] = orjson.loads(body)
    if exchange.endpoint != "embeddings" and not deterministic(data):
        return None
    if _LONG not in body.translate(_DIGITS):
        for name in _UNREAD:
            data.pop(name, None)
        # only the outermost keys: a model reads the parameters of a tool or a schema in the order in which they come
        body = orjson.dumps(dict(sorted(data.items())))
    parts = (
        _VERSION,
        exchange.principal.id,
        model.name,
        model.settings.revision or "",
        exchange.endpoint,
        # the same stream goes with its usage to one client and without it to another
        "usage taken out" if exchange.strip_usage else "",
    )
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + body).digest()


def deterministic(data: dict[str, Any]) -> bool:
    """Temperature 0 leaves nothing to chance, and a seed asks for the same again."""
    temperature, seed = data.get("temperature"), data.get("seed")
    greedy = isinstance(temperature, int | float) and temperature == 0
    # to vLLM a seed of -1 is none
    if not greedy and not (isinstance(seed, int) and seed >= 0):
        return False
    return all(data.get(name) in (None, 1) for name in ("n", "best_of")) and not data.get("use_beam_search")
