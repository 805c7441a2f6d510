"""The releases on a host, as people read them."""

from __future__ import annotations

import datetime
from typing import Any

from .failure import RefusedError
from .history import Histories, History, live_release
from .layout import Layout
from .manifest import Manifest, read_manifest


def rows(layout: Layout) -> list[dict[str, Any]]:
    """Newest first: id, state, age, who, source, what changed against the one before it, and the proof."""
    live = _live(layout)
    found = []
    before: Manifest | None = None
    for history in Histories(layout).all():
        try:
            manifest = read_manifest(layout.release(history.id))
        except RefusedError as error:
            found.append({"id": history.id, "state": "incomplete", "live": False, "reason": str(error)})
            continue
        found.append(_row(history, manifest, before, history.id == live))
        before = manifest
    return list(reversed(found))


def _live(layout: Layout) -> str | None:
    """A `current` that leads nowhere must not hide the releases that it could lead to."""
    try:
        return live_release(layout)
    except RefusedError:
        return None


def _row(history: History, manifest: Manifest, before: Manifest | None, live: bool) -> dict[str, Any]:
    return {
        "id": history.id,
        "state": history.state,
        "live": live,
        "at": history.at or manifest.created.get("at", ""),
        "by": manifest.created.get("by", ""),
        "source": _source(manifest.source),
        "changed": _changed(manifest, before),
        "reason": history.reason,
        "proof": len(history.proof),
    }


def _source(source: dict[str, Any]) -> str:
    return str(source.get("revision", ""))[:10] + ("+" if source.get("dirty") else "")


def _changed(manifest: Manifest, before: Manifest | None) -> str:
    """The parts of a release that differ from the one before it."""
    if before is None:
        return "everything"
    differing = {
        path.split("/")[0]
        for path in manifest.files.keys() | before.files.keys()
        if manifest.files.get(path) != before.files.get(path)
    }
    moved = {name for name, path in manifest.environments.items() if before.environments.get(name) != path}
    fetched = {name for name, model in manifest.models.items() if before.models.get(name) != model}
    differing |= {f"env {name}" for name in moved} | {f"model {name}" for name in fetched}
    return ", ".join(sorted(differing)) or "nothing"


def table(entries: list[dict[str, Any]], now: str) -> str:
    if not entries:
        return "No release is on this host yet. `make deploy` makes the first."
    lines = [f"  {'release':15}{'state':13}{'age':>6}  {'source':12}{'proofs':>6}  changed"]
    for entry in entries:
        mark = "*" if entry["live"] else " "
        lines.append(
            f"{mark} {entry['id']:15}{entry['state']:13}{age(entry.get('at', ''), now):>6}  "
            f"{entry.get('source', ''):12}{entry.get('proof', 0):>6}  {entry.get('changed', '')}"
        )
        if entry.get("reason"):
            lines.append(f"    {entry['reason']}")
    lines.append("* live")
    return "\n".join(lines)


def age(at: str, now: str) -> str:
    try:
        seconds = (datetime.datetime.fromisoformat(now) - datetime.datetime.fromisoformat(at)).total_seconds()
    except ValueError:
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
