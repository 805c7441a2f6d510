"""Whole answers made smaller, by what the client says it takes (RFC 9110, 12.5.3). Streams never are."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import zstandard

_LONG = 256 * 1024  # long enough to be felt by others: the libraries let go of the interpreter in a thread


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(body) + compressor.flush()


def _brotli(body: bytes) -> bytes:
    return bytes(brotli.compress(body, quality=4))


def _zstd(body: bytes) -> bytes:
    return bytes(zstandard.ZstdCompressor(level=3).compress(body))


# the best first, where the client has no preference
_CODINGS: dict[str, Callable[[bytes], bytes]] = {"zstd": _zstd, "br": _brotli, "gzip": _gzip}


def chosen(accepted: bytes) -> str | None:
    """The coding that the client likes most, of ours; None if that is none at all."""
    qualities: dict[str, float] = {}
    for item in accepted.decode("latin-1").lower().split(","):
        name, _, parameter = item.partition(";")
        qualities[name.strip()] = _quality(parameter)
    anything = qualities.get("*", 0.0)
    best = max(_CODINGS, key=lambda coding: qualities.get(coding, anything))
    quality = qualities.get(best, anything)
    return best if quality > 0 and quality >= qualities.get("identity", 0.0) else None


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


async def compressed(body: bytes, accepted: bytes) -> tuple[bytes, bytes]:
    """The headers that say so, and the body."""
    coding = chosen(accepted)
    if coding is None:
        return b"vary: accept-encoding\r\n", body
    compress = _CODINGS[coding]
    body = compress(body) if len(body) < _LONG else await asyncio.to_thread(compress, body)
    return b"content-encoding: %b\r\nvary: accept-encoding\r\n" % coding.encode(), body
