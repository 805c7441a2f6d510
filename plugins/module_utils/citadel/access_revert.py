"""Puts back what ssh and the firewall were before a change that no new connection confirmed.

A file by itself, copied to the host, since it runs whatever release is live: by a timer, or at boot where a change was
cut off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = "var/lib/citadel/access"
ARMED, TAKEN = "before.json", "reverting.json"
RULES = "/etc/citadel/firewall.nft"
# no citadel-*: those are of a release, which stops what it does not name
FIREWALL = "host-firewall.service"
SSH = "ssh.service"


NO_TABLE = "table inet citadel\ndelete table inet citadel\n"  # the first line, so that the second finds one


def call(*command: str, stdin: str = "") -> bool:
    """False too where there is no such program: a host in development need not have nft."""
    try:
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def take(root: Path, name: str = TAKEN) -> bool:
    """Whoever renames it first decides: the timer that undoes, or the connection that confirms."""
    try:
        (root / HOME / ARMED).rename(root / HOME / name)
    except FileNotFoundError:
        return False
    return True


def put(root: Path, path: str, kept: dict[str, Any] | None) -> None:
    """A file or link as it was, or none."""
    place = root / path.lstrip("/")
    if kept is None:
        place.unlink(missing_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.new")
    aside.unlink(missing_ok=True)
    if "link" in kept:
        aside.symlink_to(kept["link"])
    else:
        with aside.open("w", encoding="latin-1", newline="") as stream:
            stream.write(kept["text"])
            os.fchmod(stream.fileno(), kept["mode"])
            os.fsync(stream.fileno())
    aside.replace(place)


def restore(root: Path, booting: bool = False) -> None:
    kept = json.loads((root / HOME / TAKEN).read_text(encoding="utf-8"))
    loaded = kept["loaded"] and kept["files"][RULES] is not None
    if not booting and not loaded:
        call("systemctl", "stop", FIREWALL)
        call("nft", "-f", "-", stdin=NO_TABLE)
    for path, before in kept["files"].items():
        put(root, path, before)
    if not booting:
        call("systemctl", "daemon-reload")
        if loaded:
            call("systemctl", "reload-or-restart", FIREWALL)
        call("systemctl", "reload", SSH)
    (root / HOME / TAKEN).unlink()


def main() -> int:
    root = Path("/")
    if not take(root) and not (root / HOME / TAKEN).exists():
        return 0
    restore(root, booting="--boot" in sys.argv)
    print("No new connection confirmed what was changed of ssh and firewall: both are as before.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
