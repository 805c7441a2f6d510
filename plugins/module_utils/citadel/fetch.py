"""Fetches revisions into the store: in parallel, resumable, every file checked, with progress."""

from __future__ import annotations

import argparse
import http.client
import io
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import safetensors, store
from .sources import CHUNK, Entry, Interrupted, Listing, Source, SourceError, sha256_of, source_of

WORKERS = 4
ATTEMPTS = 5  # without a single new byte
PAUSE_SECONDS = 1.0  # doubled after each fruitless attempt
REPORT_SECONDS = 2.0
MARGIN_BYTES = 1 << 28  # what a download leaves free on the disk


@dataclass
class Progress:
    """What is done of one model, told to a file and to whoever listens."""

    model: str
    total: int
    file: Path
    tell: Callable[[str], None] = lambda line: None
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    told: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int, force: bool = False) -> None:
        with self.lock:
            self.done += count
            now = time.monotonic()
            if not force and now - self.told < REPORT_SECONDS:
                return
            self.told = now
            self.write(now - self.began)

    def write(self, seconds: float) -> None:
        rate = self.done / max(seconds, 0.001)
        left = (self.total - self.done) / rate if rate else 0.0
        share = self.done / self.total if self.total else 1.0
        state = {"model": self.model, "done": self.done, "total": self.total, "seconds_left": round(left)}
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
        temporary.replace(self.file)
        self.tell(f"{self.model}: {share:.0%} of {self.total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s, {left:.0f} s to go")


def fetch(
    model: str, source: Source, revision: str, root: Path, tell: Callable[[str], None] = lambda line: None
) -> tuple[Path, dict[str, Any]]:
    """Brings one revision into the store and gives its folder and manifest."""
    listing = attempts(lambda: source.list(revision), tell)
    check_listing(model, listing)
    # Under the name that the catalogue has for it, which the units know; the manifest records the commit.
    target = root / model / revision
    partial = target.parent / f".{target.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    need_room(partial, listing.entries)
    progress = Progress(model, sum(entry.size for entry in listing.entries), partial.with_suffix(".progress"), tell)
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = {
            entry.path: pool.submit(fetch_file, source, listing, entry, partial, progress)
            for entry in sorted(listing.entries, key=lambda entry: -entry.size)
        }
        checksums = {path: future.result() for path, future in futures.items()}
    progress.add(0, force=True)
    safetensors.describe(partial)
    manifest = store.commit(partial, target, listing.source, listing.revision, checksums)
    progress.file.unlink(missing_ok=True)
    return target, manifest


def check_listing(model: str, listing: Listing) -> None:
    names = {entry.path for entry in listing.entries}
    if "config.json" not in names:
        raise SourceError(f"{model}: {listing.source} has no config.json at {listing.revision}; is it a model?")
    if not any(name.endswith(".safetensors") for name in names):
        raise SourceError(
            f"{model}: {listing.source} has no *.safetensors at {listing.revision}; other containers are refused"
        )


def need_room(partial: Path, entries: Iterable[Entry]) -> None:
    missing = sum(max(0, entry.size - size_of(partial / entry.path)) for entry in entries)
    free = shutil.disk_usage(partial).free
    if missing + MARGIN_BYTES > free:
        raise store.StoreError(
            f"{partial.parent} has {free / 1e9:.1f} GB free and {missing / 1e9:.1f} GB are still to come; "
            f"free {(missing + MARGIN_BYTES - free) / 1e9:.1f} GB, then run again: what is there is kept"
        )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def attempts(act: Callable[[], Listing], tell: Callable[[str], None]) -> Listing:
    """A listing has no parts to resume, so it is simply asked for again."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return act()
        except Interrupted as error:
            tell(f"{error}; trying again")
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return act()


def fetch_file(source: Source, listing: Listing, entry: Entry, partial: Path, progress: Progress) -> str:
    """One file, resumed where it broke off; wrong contents get a second chance from the start, and no third."""
    path = partial / entry.path
    path.parent.mkdir(parents=True, exist_ok=True)
    there = size_of(path)
    progress.add(min(there, entry.size))
    for last in (False, True):
        complete(source, listing, entry, path, progress)
        checksum = sha256_of(path)
        if right(path, entry, checksum):
            return checksum
        progress.add(-path.stat().st_size)
        path.unlink()
        if last:
            break
        progress.tell(f"{entry.path} has the wrong contents; fetching it once more")
    raise SourceError(
        f"{listing.source}: {entry.path} came twice with contents that its checksum denies; "
        "ask who runs the source, or choose another"
    )


def right(path: Path, entry: Entry, checksum: str) -> bool:
    if path.stat().st_size != entry.size:
        return False
    if entry.sha256:
        return checksum == entry.sha256
    return not entry.git_sha1 or store.git_sha1_of(path) == entry.git_sha1


def complete(source: Source, listing: Listing, entry: Entry, path: Path, progress: Progress) -> None:
    """Takes what is missing of the file, as often as the source breaks off but goes on giving."""
    fruitless = 0
    while size_of(path) != entry.size:
        before = size_of(path)
        try:
            take(source, listing, entry, path, progress)
        except Interrupted as error:
            fruitless = 0 if size_of(path) > before else fruitless + 1
            if fruitless >= ATTEMPTS:
                raise SourceError(
                    f"{error}; given up after {ATTEMPTS} attempts without a byte. What is there is kept: run again"
                ) from error
            progress.tell(f"{error}; going on at byte {size_of(path)}")
            if fruitless:
                time.sleep(PAUSE_SECONDS * 2 ** (fruitless - 1))


def take(source: Source, listing: Listing, entry: Entry, path: Path, progress: Progress) -> None:
    have = size_of(path)
    if have > entry.size:
        path.unlink()
        progress.add(entry.size - have)
        have = 0
    with source.open(listing, entry, have) as (start, stream), path.open("r+b" if have else "wb") as file:
        if start != have:  # the server does not resume: from the start, then
            progress.add(start - have)
        file.seek(start)
        file.truncate()
        left = entry.size - start
        while left > 0:
            chunk = read(stream, min(CHUNK, left), entry)
            file.write(chunk)
            left -= len(chunk)
            progress.add(len(chunk))


def read(stream: io.BufferedIOBase, count: int, entry: Entry) -> bytes:
    try:
        chunk = stream.read1(count)  # what has come so far is kept, should the line fall silent next
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Interrupted(f"{entry.path}: {error}") from error
    if not chunk:
        raise Interrupted(f"{entry.path} broke off")
    return chunk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("--repository", default="", help="owner/name on the hub")
    parser.add_argument("--revision", required=True)
    parser.add_argument("--source", type=json.loads, default={"kind": "hub", "url": "https://huggingface.co"})
    parser.add_argument("--root", type=Path, default=Path("/opt/models"))


def run(arguments: argparse.Namespace) -> int:
    try:
        source = source_of(arguments.model, arguments.repository, arguments.revision, arguments.source)
        target, _ = fetch(arguments.model, source, arguments.revision, arguments.root, print)
    except (SourceError, Interrupted, store.StoreError, safetensors.WeightsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(target)
    return 0
