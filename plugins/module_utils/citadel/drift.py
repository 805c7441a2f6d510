"""Compares what roles and the live release declare on this host with what it really has: what differs, whose it is,
and why."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import declarations
from .declarations import Finding
from .kinds import Host
from .release.failure import RefusedError
from .release.files import write_json
from .release.history import live_release
from .release.installed import look
from .release.layout import Layout
from .release.manifest import read_manifest, tampering


def findings(host: Host) -> list[Finding]:
    return [*declarations.drift(host), *of_release(Layout(host.root))]


def of_release(layout: Layout) -> Iterator[Finding]:
    """Its files against its manifest, its units against its files."""
    try:
        release = live_release(layout)
        manifest = read_manifest(layout.release(release)) if release else None
    except RefusedError as error:
        yield Finding("release", "the live release", "whole", "damaged", "drifted", str(error))
        return
    if release is None or manifest is None:
        return
    altered = tampering(layout.release(release), manifest)
    units = look(layout, manifest).healed
    for said in altered:
        yield Finding("release", f"release {release}", "as its manifest says", said, "drifted")
    for said in units:
        yield Finding("release", f"units of {release}", "as it brought them", said, "drifted")
    if not altered and not units:
        yield Finding("release", f"release {release}", "as its manifest says", "the same", "as declared")


def table(found: Sequence[Finding]) -> list[str]:
    """For people: what differs, and how much does not."""
    drifted = [one for one in found if one.state == "drifted"]
    left = sum(one.state == "left" for one in found)
    lines = []
    if drifted:
        rows = [("item", "desired", "found", "owner"), *((o.item, o.desired, o.found, o.owner) for o in drifted)]
        widths = [max(len(row[n]) for row in rows) for n in range(4)]
        shown = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(shown[0])
        for line, one in zip(shown[1:], drifted, strict=True):
            lines += [line, *([f"    {one.cause}"] if one.cause else [])]
    if not found:
        return ["Nothing is declared on this host yet: a deployment does that."]
    owners = ", ".join(sorted({one.owner for one in found}))
    count = f"{len(drifted)} of {len(found)} items drifted" if drifted else f"{len(found) - left} items are as declared"
    beside = f"; {left} are not this host's to set" if left else ""
    return [*lines, f"{count} ({owners}){beside}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="every item, also those that are as declared")
    parser.add_argument("--keep", type=Path, help="a file that gets how many items of each owner drifted, and when")


def run(arguments: argparse.Namespace) -> int:
    found = findings(Host())
    if arguments.keep:
        owners = {one.owner: sum(o.owner == one.owner and o.state == "drifted" for o in found) for one in found}
        write_json(arguments.keep, {"at": time.time(), "owners": owners})
    print(json.dumps([vars(one) for one in found], indent=2) if arguments.json else "\n".join(table(found)))
    return 1 if any(one.state == "drifted" for one in found) else 0
