"""What a lab is: its name, its addresses, its hosts and where it lives. Everything can be set from outside.

Without settings all of it follows from the checkout, so that two checkouts never meet on one machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# The estate that the product is made for. No packet of a lab may ever go there.
ESTATE = ipaddress.ip_network("192.168.10.0/24")


class LabError(Exception):
    """A sentence for the person at the keyboard: what, where, which value, what to do."""


BOOKWORM, TRIXIE = "bookworm", "trixie"

# Who Ansible logs in as on every host of a lab: an ordinary user with sudo, for root is refused there as in the estate.
USER = "admin"


@dataclass(frozen=True)
class LabHost:
    """One machine of the lab. The last octet of its address is the one it has in the estate."""

    name: str
    octet: int
    packages: tuple[str, ...] = ()
    suite: str = BOOKWORM
    group: str = "llm_servers"


BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "libpam-systemd",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)

# Debian 13 is the nearest to Ubuntu 24.04 that there is, and has the estate's PostgreSQL, Pgpool-II and Redis.
HOSTS = (
    LabHost("llm-01", 29, suite=TRIXIE),
    LabHost("data-01", 35, ("postgresql", "pgpool2", "redis-server", "python3-psycopg2"), TRIXIE, "database_servers"),
    LabHost(
        "metrics-01",
        37,
        ("prometheus", "prometheus-alertmanager", "prometheus-pushgateway", "prometheus-node-exporter"),
        group="metrics_servers",
    ),
)
# only there when it is asked for: a second LLM server with one small model, on Debian 12
FLEET = (LabHost("llm-02", 28),)


@dataclass(frozen=True)
class Lab:
    """The names and places of one lab; two labs with different prefixes and networks never meet."""

    prefix: str
    network: ipaddress.IPv4Network
    hosts: tuple[LabHost, ...] = HOSTS
    cache: Path = field(default_factory=lambda: cache_directory())  # noqa: PLW0108 - defined below

    @classmethod
    def from_environment(cls) -> Lab:
        return cls.named(os.environ.get("LAB_PREFIX") or own_prefix(), os.environ.get("LAB_NETWORK") or None)

    @classmethod
    def named(cls, prefix: str, text: str | None = None, third: int | None = None) -> Lab:
        """A lab by its settings, or a sentence on what is wrong with them.

        Without a network (`text`) it is the one that the lab stands on, or else the first that is free from `third` on.
        """
        # the bridge is br-PREFIX and a host's cable vb-PREFIX-HOST is cut to what the kernel allows: 15 characters
        if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", prefix):
            raise LabError(
                f"LAB_PREFIX is {prefix!r}: it names network devices, so it needs 1 to 10 lower-case letters or "
                "digits and starts with a letter. Choose such a name."
            )
        saved = recorded(prefix)
        # a lab keeps the hosts that it came up with, and FLEET=1 adds to them
        fleet = fleet_asked_for()
        hosts = (*HOSTS, *(host for host in FLEET if fleet or host.name in saved.get("hosts", [])))
        if text is None and "network" in saved:
            return cls(prefix, ipaddress.IPv4Network(saved["network"]), hosts)
        if text is None:
            return cls(prefix, next_free(f"br-{prefix}", first_choice(prefix) if third is None else third), hosts)
        try:
            network = ipaddress.IPv4Network(f"{text}.0/24")
        except ValueError as error:
            raise LabError(
                f"LAB_NETWORK is {text!r}: it is the first three numbers of the lab's addresses, like 10.77.40. "
                "Set it to a range that nothing else uses."
            ) from error
        if network.overlaps(ESTATE):
            raise LabError(
                f"LAB_NETWORK is {text!r}: {ESTATE} belongs to the real estate and a lab must never answer there. "
                "Choose another range, like 10.77.40."
            )
        if not network.is_private or network.is_loopback or network.is_link_local:
            raise LabError(
                f"LAB_NETWORK is {text!r}: a lab needs private addresses of its own. Choose a range like 10.77.40."
            )
        return cls(prefix, network, hosts)

    def beside(self, letter: str) -> Lab:
        """Another lab of this checkout, like the tests' own: whoever plays with this one meanwhile is not disturbed."""
        return Lab.named(f"{self.prefix[:9]}{letter}", third=self.network.network_address.packed[2] + 1)

    @property
    def settings(self) -> dict[str, str]:
        """What another process has to be told to mean the same lab."""
        return {"LAB_PREFIX": self.prefix, "LAB_NETWORK": str(self.network.network_address).rpartition(".")[0]}

    @property
    def directory(self) -> Path:
        return ROOT / ".lab" / self.prefix

    @property
    def bridge(self) -> str:
        return f"br-{self.prefix}"

    @property
    def table(self) -> str:
        """The lab's own nftables table: deleting it removes every rule at once."""
        return f"citadel_lab_{self.prefix}"

    @property
    def gateway(self) -> str:
        return str(self.network[1])

    @property
    def record(self) -> Path:
        """What the lab changed on this machine and has to put back."""
        return self.directory / "lab.json"

    @property
    def sockets(self) -> Path:
        """Shared ssh connections, apart from every other lab's and where no path is too long for a socket."""
        return Path("/run/citadel-lab") / self.prefix

    def host_directory(self, host: LabHost) -> Path:
        return self.directory / "hosts" / host.name

    def address(self, host: LabHost) -> str:
        return str(self.network[host.octet])

    def machine(self, host: LabHost) -> str:
        return f"{self.prefix}-{host.name}"

    def saved(self) -> dict[str, Any]:
        return recorded(self.prefix)


def recorded(prefix: str) -> dict[str, Any]:
    """Network and hosts of a lab that stands, so that every verb means the same ones."""
    try:
        content: dict[str, Any] = json.loads((ROOT / ".lab" / prefix / "lab.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content


def own_prefix() -> str:
    return f"lab{hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:6]}"


def first_choice(prefix: str) -> int:
    """The third number of a lab's addresses, the same each time for a checkout and a name."""
    return int.from_bytes(hashlib.sha256(os.fsencode(ROOT) + prefix.encode()).digest()[:2], "big")


def next_free(bridge: str, third: int) -> ipaddress.IPv4Network:
    """The first /24 from here on that nothing else on this machine uses; that none is free is told by the preflight."""
    taken = [network for device, network in routes() if device != bridge]
    choices = [ipaddress.IPv4Network(f"10.77.{(third + step) % 256}.0/24") for step in range(256)]
    return next((choice for choice in choices if not any(choice.overlaps(other) for other in taken)), choices[0])


def routes(table: Path = Path("/proc/net/route")) -> Iterator[tuple[str, ipaddress.IPv4Network]]:
    """Where this machine sends packets, read without a program: a fresh machine has none yet."""
    if not table.exists():
        return
    for line in table.read_text().splitlines()[1:]:
        device, destination, *_, mask = line.split()[:8]
        address, length = (socket.htonl(int(word, 16)) for word in (destination, mask))
        if length:  # a default route leads to everything
            yield device, ipaddress.IPv4Network(f"{ipaddress.IPv4Address(address)}/{length.bit_count()}", strict=False)


def fleet_asked_for() -> bool:
    asked = os.environ.get("FLEET") or "0"
    if asked not in {"0", "1"}:
        raise LabError(
            f"FLEET is {asked!r}: say FLEET=1 for a lab with a second LLM server ({FLEET[0].name}), or leave it away."
        )
    return asked == "1"


def cache_directory() -> Path:
    """Root trees and downloads outlive a checkout: every clone on this machine shares them, named by digest."""
    chosen = os.environ.get("CITADEL_CACHE")
    if chosen:
        return Path(chosen).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "citadel-llm"
