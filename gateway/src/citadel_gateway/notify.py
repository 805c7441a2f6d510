"""sd_notify(3), of which a process needs a few lines."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Silent without systemd."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.sendall(message.encode())
