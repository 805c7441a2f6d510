"""Where the gateway listens: sockets that systemd hands over by name, or addresses of its own."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from citadel_gateway.config import Listen, split_address

UNIX = ("management_socket", "inner")
NAMES = ("api", "management", "health", "export", *UNIX)
_FIRST = 3  # SD_LISTEN_FDS_START
_BACKLOG = 1024


class ListenError(Exception):
    """A socket cannot be had; the message says which and why."""


def from_systemd(environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """The sockets of this process, by the names of its socket units (FileDescriptorName=)."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for index in range(count):
        name = names[index] if index < len(names) else ""
        if name not in NAMES:
            raise ListenError(
                f"systemd hands over a socket named {name!r}; set FileDescriptorName= to one of {', '.join(NAMES)}"
            )
        fd = _FIRST + index
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        found[name] = sock
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(variable, None)
    return found


def parse_bind(values: list[str]) -> dict[str, str]:
    """`--bind [NAME=]ADDR:PORT`: only what is named is listened on; NAME is api if left out."""
    bind: dict[str, str] = {}
    for value in values:
        name, separator, address = value.rpartition("=")
        name = name if separator else "api"
        if name not in NAMES:
            raise ListenError(f"--bind {value}: {name!r} is not one of {', '.join(NAMES)}")
        if name not in UNIX:
            try:
                split_address(address)
            except ValueError as error:
                raise ListenError(f"--bind {value}: {error}") from None
        bind[name] = address
    return bind


def open_all(listen: Listen, bind: dict[str, str], environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    if bind:
        wanted: Mapping[str, str | None] = bind
        opened: dict[str, socket.socket] = {}
    else:
        opened = from_systemd(environment)
        wanted = {name: getattr(listen, name) for name in NAMES}
        if opened:
            # what systemd does not hand over is off, except sockets on the file system
            wanted = {name: getattr(listen, name) for name in UNIX}
    for name, where in wanted.items():
        if where is None or name in opened:
            continue
        opened[name] = _unix(name, where) if name in UNIX else _tcp(name, where)
    if "api" not in opened:
        raise ListenError("there is no socket for the API; set listen.api, give --bind, or name a socket unit 'api'")
    return opened


def _tcp(name: str, address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(
            f"{name}: cannot listen on {address}: {error.strerror}; see what holds it with `ss -ltnp`"
        ) from None
    sock.setblocking(False)
    return sock


def _unix(name: str, path: str) -> socket.socket:
    """A socket for the owner and the group; one left by a process that died is replaced, another thing is not."""
    target = Path(path)
    try:
        if target.exists():
            if not stat.S_ISSOCK(target.stat().st_mode):
                raise ListenError(f"{name}: {path} is not a socket; remove it or choose another path")
            target.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(_BACKLOG)
    except OSError as error:
        raise ListenError(f"{name}: cannot listen on {path}: {error.strerror}") from None
    sock.setblocking(False)
    return sock
