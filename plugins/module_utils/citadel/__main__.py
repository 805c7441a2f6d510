"""`python3 -m citadel VERB`: the commands that a host runs between deployments."""

from __future__ import annotations

import argparse
import importlib
import sys

# verb -> the module whose `add_arguments(parser)` and `run(arguments) -> int` implement it
VERBS: dict[str, str] = {
    "accept": "acceptance",
    "audit": "audit",
    "capacity": "capacity",
    "diagnose": "inspection",
    "drift": "drift",
    "face": "gateway_service",
    "fetch": "fetch",
    "logs": "logs",
    "make": "making",
    "metrics": "exporting",
    "prestart": "prestart",
    "ready": "ready",
    "release": "release.cli",
    "status": "status",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="citadel", description="What a Citadel host knows how to do.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    words = sys.argv[1:] if argv is None else argv
    modules = {}
    # who names a verb does not wait for the code of all others, nor keeps it in memory
    for verb, name in {key: VERBS[key] for key in words[:1] if key in VERBS}.items() or VERBS.items():
        module = importlib.import_module(f"{__package__}.{name}")
        modules[verb] = module
        module.add_arguments(verbs.add_parser(verb, help=(module.__doc__ or "").strip().splitlines()[0]))
    arguments = parser.parse_args(argv)
    return int(modules[arguments.verb].run(arguments))


if __name__ == "__main__":
    sys.exit(main())
