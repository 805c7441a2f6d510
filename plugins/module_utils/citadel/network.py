"""A static address by netplan, set in a way that undoes itself unless somebody comes in anew.

What was there before is armed first: kept on the disk, with a timer that puts it back, and with a unit that does so at
a boot in between. Only a call over a connection that was made afterwards takes that away.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .release import files

FILE = "etc/netplan/01-network-config.yaml"
HOME = "var/lib/citadel/network"
REVERT = "host-network-revert"
UNIT = f"etc/systemd/system/{REVERT}.service"
WANTS = f"etc/systemd/system/multi-user.target.wants/{REVERT}.service"
# to the moment: by itself systemd would take up to a minute longer, to do several things at once
LATER = ("systemd-run", "--quiet", "--timer-property=AccuracySec=100ms")
DEVICE = re.compile(r"[a-z][a-z0-9_.-]{0,14}")


class NetworkError(ValueError):
    """What can't be meant, or what the host said to it."""


def netplan(wanted: Mapping[str, Any], reached_at: str) -> str:
    """The file of netplan, or nothing where nothing is asked for."""
    if not wanted:
        return ""
    device = str(wanted.get("interface", ""))
    if not re.fullmatch(DEVICE, device):
        raise NetworkError(f"host_network.interface = {device!r}: give the name of a network device, such as eth0")
    try:
        address = ipaddress.IPv4Interface(str(wanted.get("address", "")))
    except ValueError:
        address = ipaddress.IPv4Interface("0.0.0.0/32")
    if "/" not in str(wanted.get("address", "")) or not 8 <= address.network.prefixlen <= 30:
        raise NetworkError(
            f"host_network.address = {wanted.get('address')!r}: give it with its prefix, such as 192.168.10.29/24"
        )
    if address.ip in {address.network.network_address, address.network.broadcast_address}:
        raise NetworkError(
            f"host_network.address = {address}: that is the network itself: give an address inside of it"
        )
    gateway = _address("gateway", wanted.get("gateway"))
    if gateway not in address.network or gateway == address.ip:
        raise NetworkError(f"host_network.gateway = {gateway}: it is none of the others in {address.network}")
    resolvers = [_address("nameservers", one) for one in wanted.get("nameservers") or [""]]
    # moving a server is more than its own settings: inventory, known_hosts, everybody who asks it
    if str(address.ip) != reached_at:
        raise NetworkError(
            f"host_network.address = {address}: the server is reached at {reached_at}, and nothing here moves it to "
            "another address: do that by hand, and name the new one in ansible_host too"
        )
    return f"""\
# Ansible managed
network:
  version: 2
  renderer: networkd
  ethernets:
    {device}:
      dhcp4: false
      addresses: [{address}]
      routes:
        - {{to: default, via: {gateway}}}
      nameservers:
        addresses: [{", ".join(map(str, resolvers))}]
"""


def _address(key: str, given: object) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(str(given))
    except ValueError:
        raise NetworkError(f"host_network.{key} = {given!r}: give an address, such as 192.168.10.1") from None


def run(command: Sequence[str]) -> str:
    """What a command prints, or what it complains about."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NetworkError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise NetworkError(f"`{shlex.join(command)}` said: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Network:
    def __init__(self, root: Path = Path("/"), run: Callable[[Sequence[str]], str] = run) -> None:
        self.root, self.run = root, run
        self.file, self.home = root / FILE, root / HOME
        self.armed, self.applied = self.home / "armed", self.home / "applied"
        self.before, self.script = self.home / "before.yaml", self.home / "revert.sh"

    def refusal(self, text: str) -> str:
        """Why this host cannot have it, found before anything is changed."""
        if not (self.root / "usr/sbin/netplan").exists():
            return "has no netplan, which host_network is for: leave host_network empty and use its own means"
        device = re.search(r"ethernets:\n    (\S+):", text)
        assert device  # noqa: S101 - as rendered above
        if not (self.root / "sys/class/net" / device[1]).exists():
            there = sorted(path.name for path in (self.root / "sys/class/net").iterdir() if path.name != "lo")
            return f"has no network device {device[1]} (host_network.interface); it has {', '.join(there)}"
        for folder in ("etc/netplan", "run/netplan", "lib/netplan"):
            for path in sorted((self.root / folder).glob("*.yaml")):
                named = re.search(
                    rf"^\s+['\"]?{re.escape(device[1])}['\"]?:", path.read_text(errors="replace"), re.MULTILINE
                )
                if path != self.file and named:
                    return (
                        f"has /{path.relative_to(self.root)}, which says something of {device[1]} too: move it away, "
                        "since netplan merges all files"
                    )
        return ""

    def differs(self, text: str) -> bool:
        return not self.file.is_file() or self.file.read_text() != text

    def begin(self, text: str, patience: int) -> None:
        """Arm what undoes it, then change it, a moment after whoever asked has his answer."""
        if self.armed.exists():
            raise NetworkError("an earlier change waits for its end: try again in a minute")
        self.home.mkdir(parents=True, exist_ok=True)
        had = self.file.exists()
        if had:
            shutil.copy2(self.file, self.before)
        place = shlex.quote(f"/{FILE}")
        back = f"cp -p /{HOME}/before.yaml {place}.new && mv {place}.new {place}" if had else f"rm -f {place}"
        files.write(
            self.script,
            # whoever confirms renames it too, and who is first decides
            f"#!/bin/sh\nmv /{HOME}/armed /{HOME}/reverting 2>/dev/null || [ -e /{HOME}/reverting ] || exit 0\n"
            f"{back}\nnetplan apply\n"
            f"rm -f /{HOME}/reverting /{HOME}/applied /{UNIT} /{WANTS}\n",
            0o700,
        )
        files.write(
            self.root / UNIT,
            "[Unit]\nDescription=Put back the network that nobody confirmed\n"
            f"[Service]\nType=oneshot\nExecStart=/bin/sh /{HOME}/revert.sh\n[Install]\nWantedBy=multi-user.target\n",
            0o644,
        )
        self.applied.unlink(missing_ok=True)
        self.armed.touch()
        try:
            self.run(["systemctl", "daemon-reload"])
            self.run(["systemctl", "enable", "--quiet", f"{REVERT}.service"])
            self.run(
                [
                    *LATER,
                    f"--unit={REVERT}-timer",
                    f"--on-active={patience}s",
                    "/bin/sh",
                    f"/{HOME}/revert.sh",
                ]
            )
            files.write(self.file, text, 0o600)
            self.run(["netplan", "generate"])
            apply = f"netplan apply; touch /{HOME}/applied"
            self.run([*LATER, f"--unit={REVERT}-apply", "--on-active=1s", "/bin/sh", "-c", apply])
        except NetworkError:
            self.undo(had)
            raise

    def undo(self, had: bool) -> None:
        if had:
            shutil.copy2(self.before, self.file)
        else:
            self.file.unlink(missing_ok=True)
        with contextlib.suppress(NetworkError):
            self.run(["netplan", "generate"])
        self.disarm()

    def confirm(self, patience: float = 10) -> None:
        """Over a connection that was made after the change."""
        end = time.monotonic() + patience
        while self.armed.exists() and not self.applied.exists() and time.monotonic() < end:
            time.sleep(0.1)
        if self.armed.exists() and not self.applied.exists():
            raise NetworkError("the change has not come about yet")
        try:
            # who renames it first decides
            self.armed.rename(self.home / "confirmed")
        except FileNotFoundError:
            raise NetworkError("nobody came in anew in time, and the network is as it was before") from None
        self.disarm()

    def disarm(self) -> None:
        for mark in (self.armed, self.applied, self.home / "confirmed"):
            mark.unlink(missing_ok=True)
        for unit in (f"{REVERT}-timer.timer", f"{REVERT}-apply.timer"):
            with contextlib.suppress(NetworkError):
                self.run(["systemctl", "stop", unit])
        (self.root / WANTS).unlink(missing_ok=True)
        (self.root / UNIT).unlink(missing_ok=True)
        self.run(["systemctl", "daemon-reload"])
