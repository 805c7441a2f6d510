"""One transaction at a time, and whoever comes second is told who holds it and since when."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator

from .failure import RefusedError
from .layout import Layout


@contextlib.contextmanager
def locked(layout: Layout, what: str, who: str, since: str) -> Iterator[None]:
    """The kernel's lock, so that it ends with its holder however that ends; the text in it is for people."""
    layout.state.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(holder(layout)) from None
        # A full disk must not stop a recovery: the lock holds without its label.
        with contextlib.suppress(OSError):
            stream.truncate(0)
            stream.write(json.dumps({"what": what, "who": who, "since": since, "pid": os.getpid()}))
            stream.flush()
        yield


def holder(layout: Layout) -> str:
    """Who holds the lock, in a sentence for whoever came second."""
    try:
        told = json.loads(layout.lock.read_text(encoding="utf-8"))
        return (
            f"{told['who']} has been busy with {told['what']} since {told['since']} "
            f"(process {told['pid']}). Wait for it to end and try again."
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "Another transaction is under way on this host. Wait for it to end and try again."
