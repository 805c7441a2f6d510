"""Asks a model's source what its files say, before anything is fetched: config.json and the headers of the weights."""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import safetensors
from .catalogue import CatalogueError, Model
from .known_models import KNOWN_MODELS
from .sources import Entry, Interrupted, Listing, Source, SourceError, source_of

CONFIG_MOST = 1 << 20
AT_ONCE = 4
ATTEMPTS = 3


def ask(models: Sequence[Model], place: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any]:
    """`<model>/<revision>` -> what its files say, for every model of which neither this host nor the record knows."""
    found = {}
    for model in models:
        weights = model.weights["bf16"]
        key = f"{model.name}/{weights.revision}"
        if key in known or weights.repository in KNOWN_MODELS:
            continue
        try:
            source = source_of(model.name, weights.repository, weights.revision, {**place, **weights.source})
            found[key] = patiently(source, weights.revision)
        except (SourceError, Interrupted, safetensors.WeightsError, OSError) as error:
            raise CatalogueError(
                model.name,
                "repository",
                weights.repository,
                f"what it takes is neither on this host nor recorded, and its source does not tell: {error}",
            ) from error
    return found


def patiently(source: Source, revision: str) -> dict[str, Any]:
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(Interrupted):
            return described(source, revision)
    return described(source, revision)


def described(source: Source, revision: str) -> dict[str, Any]:
    """As safetensors.describe tells it of a folder."""
    listing = source.list(revision)
    entries = {entry.path: entry for entry in listing.entries}
    if "config.json" not in entries:
        raise SourceError(f"{listing.source} has no config.json at {listing.revision}; is it a model?")
    config = read_json(source, listing, entries["config.json"])
    names = [name for name in entries if name.endswith(".safetensors")]
    if safetensors.INDEX in entries:
        names = sorted(set(read_json(source, listing, entries[safetensors.INDEX])["weight_map"].values()))
    missing = [name for name in names if name not in entries]
    if missing or not names:
        raise SourceError(f"{listing.source} has no {missing[0] if missing else '*.safetensors'} at {listing.revision}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return safetensors.described(config, pool.map(lambda name: sums_of(source, listing, entries[name]), names))


def beginning(source: Source, listing: Listing, entry: Entry, count: int) -> bytes:
    """The first bytes of a file. No more is asked for where the source can do that, and no more is read where not."""
    try:
        with source.open(listing, entry, 0, count) as (_, stream):
            return stream.read(count)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"{listing.source}: {entry.path}: {error}") from error


def read_json(source: Source, listing: Listing, entry: Entry) -> Any:
    try:
        return json.loads(beginning(source, listing, entry, min(entry.size, safetensors.HEADER_MOST)))
    except ValueError:
        raise SourceError(f"{listing.source}: {entry.path} is not JSON") from None


def sums_of(source: Source, listing: Listing, entry: Entry) -> safetensors.Weights:
    start = beginning(source, listing, entry, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else safetensors.HEADER_MOST + 1
    if length > min(safetensors.HEADER_MOST, entry.size):
        raise SourceError(f"{listing.source}: {entry.path} is no safetensors file")
    header = beginning(source, listing, entry, 8 + int(length))[8:]
    try:
        tensors = json.loads(header)
    except ValueError:
        raise SourceError(f"{listing.source}: {entry.path} is no safetensors file") from None
    return safetensors.sums({name: one for name, one in tensors.items() if name != "__metadata__"})
