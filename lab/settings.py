"""What a lab is: its name, its addresses, its hosts and where it lives. Everything can be set from outside."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The estate that the product is made for. No packet of a lab may ever go there.
ESTATE = ipaddress.ip_network("192.168.10.0/24")


class LabError(Exception):
    """A sentence for the person at the keyboard: what, where, which value, what to do."""


@dataclass(frozen=True)
class Host:
    """One machine of the lab. The last octet of its address is the one it has in the estate."""

    name: str
    octet: int
    packages: tuple[str, ...] = ()


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

HOSTS = (
    Host("llm-01", 29),
    Host("data-01", 35, ("postgresql", "pgpool2", "redis-server", "python3-psycopg2")),
    Host(
        "metrics-01",
        37,
        ("prometheus", "prometheus-alertmanager", "prometheus-pushgateway", "prometheus-node-exporter"),
    ),
)

SUITE = "bookworm"


@dataclass(frozen=True)
class Lab:
    """The names and places of one lab; two labs with different prefixes and networks never meet."""

    prefix: str
    network: ipaddress.IPv4Network
    hosts: tuple[Host, ...] = HOSTS
    cache: Path = field(default_factory=lambda: cache_directory())  # noqa: PLW0108 - defined below

    @classmethod
    def from_environment(cls) -> Lab:
        return cls.named(os.environ.get("LAB_PREFIX") or "citadel", os.environ.get("LAB_NETWORK") or "10.77.40")

    @classmethod
    def named(cls, prefix: str, text: str) -> Lab:
        """A lab by its two settings, or a sentence on what is wrong with them."""
        # the bridge is br-PREFIX and a host's cable vb-PREFIX-HOST is cut to what the kernel allows: 15 characters
        if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", prefix):
            raise LabError(
                f"LAB_PREFIX is {prefix!r}: it names network devices, so it needs 1 to 10 lower-case letters or "
                "digits and starts with a letter. Choose such a name."
            )
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
        return cls(prefix, network)

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

    def host_directory(self, host: Host) -> Path:
        return self.directory / "hosts" / host.name

    def address(self, host: Host) -> str:
        return str(self.network[host.octet])

    def machine(self, host: Host) -> str:
        return f"{self.prefix}-{host.name}"

    def saved(self) -> dict[str, str]:
        try:
            content: dict[str, str] = json.loads(self.record.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return content


def cache_directory() -> Path:
    """Root trees and downloads outlive a checkout: every clone on this machine shares them, named by digest."""
    chosen = os.environ.get("CITADEL_CACHE")
    if chosen:
        return Path(chosen).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "citadel-llm"
