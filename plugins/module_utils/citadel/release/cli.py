"""Releases on this host: activate one, go back to one, recover an interrupted transaction, list and verify
them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .failure import RefusedError
from .files import write_json
from .gate import ManagementGate
from .layout import Layout
from .manifest import read_manifest, tampering
from .prober import HttpProber
from .retention import Keep
from .server import Server, now
from .systemd import Systemctl
from .table import rows, table
from .transaction import Outcome, Terms, activate, recover, rollback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
    one = acts.add_parser("activate", help="make a staged release live, proven or not at all")
    one.add_argument("release")
    two = acts.add_parser("rollback", help="make the good release before this one live again")
    two.add_argument("--to", default=None, help="this one instead")
    for act in (one, two):
        act.add_argument("--force", action="store_true", help="even if it is marked bad")
        act.add_argument("--who", default="an operator on the host")
        act.add_argument("--keep", type=int, default=Keep.good, help="good releases that stay")
        act.add_argument("--keep-bad", type=int, default=Keep.other, help="other releases that stay for study")
    one.add_argument("--keep-revisions", type=int, default=Keep.revisions, help="revisions of each model that stay")
    three = acts.add_parser("recover", help="finish or undo a transaction that was interrupted")
    three.add_argument("--boot", action="store_true", help="before the services start: wait for none of them")
    for act in (one, two, three):
        act.add_argument("--result", type=Path, help="write the outcome here as JSON")
    listing = acts.add_parser("list", help="the releases on this host")
    listing.add_argument("--json", action="store_true")
    acts.add_parser("verify", help="compare the files of a release with its manifest").add_argument("release")


def run(arguments: argparse.Namespace) -> int:
    layout = Layout()
    systemd = Systemctl()
    try:
        with HttpProber(layout, systemd) as prober:
            return _act(Server(layout, systemd, prober, ManagementGate(layout)), arguments)
    except RefusedError as refusal:
        print(refusal, file=sys.stderr)
        _result(arguments, {"outcome": "refused", "good": False, "said": str(refusal)})
        return 2


def _act(server: Server, arguments: argparse.Namespace) -> int:
    match arguments.act:
        case "activate":
            return _ended(arguments, activate(server, arguments.release, _terms(arguments)))
        case "rollback":
            return _ended(arguments, rollback(server, arguments.to, _terms(arguments)))
        case "recover":
            outcome = recover(server, boot=arguments.boot)
            if outcome is None:
                return 0
            _ended(arguments, outcome)
            return 1 if outcome.outcome == "stuck" else 0
        case "list":
            entries = rows(server.layout)
            print(json.dumps(entries, indent=2) if arguments.json else table(entries, now()))
            return 0
        case _:
            release = server.layout.release(arguments.release)
            found = tampering(release, read_manifest(release))
            print("\n".join(found) or f"{arguments.release} is what its manifest says.")
            return 1 if found else 0


def _terms(arguments: argparse.Namespace) -> Terms:
    return Terms(arguments.who, arguments.force, _keep(arguments))


def _keep(arguments: argparse.Namespace) -> Keep:
    revisions = getattr(arguments, "keep_revisions", Keep.revisions)
    return Keep(max(arguments.keep, 1), max(arguments.keep_bad, 0), max(revisions, 1))


def _ended(arguments: argparse.Namespace, outcome: Outcome) -> int:
    _result(arguments, outcome.as_dict())
    return 0 if outcome.good else 1


def _result(arguments: argparse.Namespace, value: dict[str, Any]) -> None:
    """Best effort: a full disk has been survived before this, and must not fail what is done."""
    path = getattr(arguments, "result", None)
    if path is None:
        return
    try:
        write_json(path, value)
    except OSError as error:
        print(f"the outcome could not be written to {path}: {error}", file=sys.stderr)
