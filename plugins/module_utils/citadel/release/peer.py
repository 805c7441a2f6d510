"""Which process is at the other end of a local connection: the kernel knows, whatever the process says.

Two gateways share their listening sockets for a moment, and a proof has to be the new one's own.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

PROC = Path("/proc")


def server_of(client_port: int, server_port: int, pids: set[int], proc: Path = PROC) -> int | None:
    """The process among these that holds the server's end of the connection."""
    inode = _inode(client_port, server_port, proc)
    if inode is None:
        return None
    return next((pid for pid in pids if f"socket:[{inode}]" in _descriptors(pid, proc)), None)


def family(pid: int, proc: Path = PROC) -> set[int]:
    """A process and its children, who may do its listening."""
    found, waiting = {pid}, [pid]
    while waiting:
        for path in (proc / str(waiting.pop()) / "task").glob("*/children"):
            children = {int(child) for child in path.read_text().split()} - found
            found |= children
            waiting += children
    return found


def _inode(client_port: int, server_port: int, proc: Path) -> str | None:
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else []:
            fields = line.split()
            local, remote = (int(end.rpartition(":")[2], 16) for end in fields[1:3])
            if (local, remote) == (server_port, client_port):
                return fields[9]
    return None


def _descriptors(pid: int, proc: Path) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for path in (proc / str(pid) / "fd").iterdir():
            # Descriptors come and go while one looks.
            with contextlib.suppress(OSError):
                found.add(str(path.readlink()))
    return found
