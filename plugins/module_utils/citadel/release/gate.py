"""The gateway's door to a model: shut while the model is replaced, so that requests wait instead of failing."""

from __future__ import annotations

import http.client
import re
import socket
from pathlib import Path
from typing import Protocol

from .layout import Layout

# Seconds that running requests get to end before their model is stopped: as long as the slowest model may take.
IDLE = 300.0
ANSWER = 10.0
_MANAGEMENT = "FileDescriptorName=management_socket\n"


class Gate(Protocol):
    """Each method says whether a gateway was there to hear it; a host without one has nobody to keep waiting."""

    def shut(self, instance: str) -> bool: ...
    def open(self, instance: str) -> bool: ...


class ManagementGate:
    """The management API on the gateway's own socket, which needs no key: the file's mode has said who may."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def shut(self, instance: str) -> bool:
        return self._post(f"/management/replicas/{instance}/drain?wait={IDLE:.0f}", IDLE + ANSWER)

    def open(self, instance: str) -> bool:
        return self._post(f"/management/replicas/{instance}/undrain", ANSWER)

    def _post(self, path: str, timeout: float) -> bool:
        where = control_socket(self._layout)
        if where is None:
            return False
        connection = _UnixConnection(where, timeout)
        try:
            connection.request("POST", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def control_socket(layout: Layout) -> Path | None:
    """The listening socket of the live release that is a path, and the management's where there are several."""
    paths: list[str] = []
    for unit in sorted((layout.current / "units").glob("citadel-gateway*.socket")):
        text = unit.read_text(encoding="utf-8")
        found = re.search(r"^ListenStream=(/\S+)", text, re.MULTILINE)
        if found:
            paths.insert(0 if _MANAGEMENT in text else len(paths), found.group(1))
    return layout.inside(paths[0]) if paths else None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
