"""citadel-companion --config FILE: serves until it is told to stop. `forget USER` deletes what is kept of a user."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from pathlib import Path

import httpx
import uvicorn

from citadel_companion.app import application
from citadel_companion.config import Config, ConfigError, load
from citadel_gateway.notify import notify


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # uvicorn lets everybody in
            Path(str(self.config.uds)).chmod(0o660)  # noqa: ASYNC240 - once, before the first request
            notify("READY=1\nSTATUS=serving")


def forget(config: Config, user: str) -> int:
    """The companion does it, since it may be about to keep more of that user."""
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=config.socket), timeout=600.0) as client:
            answer = client.post("http://companion/forget", json={"user": user})
    except httpx.TransportError as error:
        print(f"The companion does not answer at {config.socket} ({error}): start it, and try again.", file=sys.stderr)
        return 1
    if answer.status_code != 200:
        print(answer.json()["error"]["message"], file=sys.stderr)
        return 1
    print(answer.text)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="citadel-companion", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="read the file and end")
    verbs = parser.add_subparsers(dest="verb", metavar="[forget USER]")
    verbs.add_parser("forget", help="delete all that is kept of a user").add_argument(
        "user", help="key:ID or address:IP"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
    try:
        config = load(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        return 0
    if options.verb == "forget":
        return forget(config, options.user)
    Path(config.spool).mkdir(parents=True, exist_ok=True)
    settings = uvicorn.Config(
        application(config), uds=config.socket, log_config=None, access_log=False, timeout_graceful_shutdown=10
    )
    Server(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
