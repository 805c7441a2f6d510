"""citadel-companion --config FILE: serves until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from pathlib import Path

import uvicorn

from citadel_companion.app import application
from citadel_companion.config import ConfigError, load
from citadel_gateway.notify import notify


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # uvicorn lets everybody in
            Path(str(self.config.uds)).chmod(0o660)  # noqa: ASYNC240 - once, before the first request
            notify("READY=1\nSTATUS=serving")


def main() -> int:
    parser = argparse.ArgumentParser(prog="citadel-companion", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="read the file and end")
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
    Path(config.spool).mkdir(parents=True, exist_ok=True)
    settings = uvicorn.Config(
        application(config), uds=config.socket, log_config=None, access_log=False, timeout_graceful_shutdown=10
    )
    Server(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
