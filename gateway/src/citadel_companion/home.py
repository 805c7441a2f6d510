"""Which state folder this is. Hosts may share a database, and each has the bytes of its own files only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def home(state: Path) -> str:
    """Drawn once, and kept where the bytes are."""
    path = state / "home"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        state.mkdir(parents=True, exist_ok=True)
    part = state / ".home"
    with part.open("w") as file:
        file.write(secrets.token_hex(4))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path.read_text().strip()
