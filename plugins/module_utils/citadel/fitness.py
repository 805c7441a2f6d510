"""Whether a host can carry this product: what it is, what it has, and who has the name of our accounts there."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .topology import GIB, read_meminfo

# the oldest of each distribution that this is tried on, or made for
OLDEST = {"Debian": (12,), "Ubuntu": (24, 4)}
NAMES = {"debian": "Debian", "ubuntu": "Ubuntu"}
# firmware and kernel keep a share of what is built in: a machine sold with 128 GiB shows about 125
SHOWN = 0.97

HOSTNAME = re.compile(r"(?!\d+$)[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
# only one of them is ever installed: each conflicts with the others
TIMESYNC = "systemd-timesyncd"
CLOCKS = (TIMESYNC, "chrony", "ntpsec", "ntp", "openntpd")

Run = Callable[[list[str]], str]


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@dataclass(frozen=True)
class Wanted:
    """What the deployer asks of a host."""

    accounts: tuple[str, ...]
    cores: int
    memory_gib: int
    python: str = ""  # the host's own interpreter, where it shall have one
    name: str = ""  # how it shall be called


@dataclass(frozen=True)
class Found:
    distribution: str
    version: str
    cores: int
    memory: int
    # of each account that has the name of one of ours: what shows that somebody logs in with it
    persons: Mapping[str, Sequence[str]] = field(default_factory=dict)
    python: bool = True

    @classmethod
    def here(cls, wanted: Wanted, root: Path = Path("/"), run: Run = _run) -> Found:
        told = _settings((root / "etc/os-release").read_text(encoding="utf-8"))
        system = told.get("ID", "")
        return cls(
            NAMES.get(system, told.get("NAME", system)),
            told.get("VERSION_ID", ""),
            os.cpu_count() or 1,
            read_meminfo((root / "proc/meminfo").read_text(encoding="ascii"))["MemTotal"],
            {
                name: person(run(["getent", "passwd", name]), run(["getent", "shadow", name]))
                for name in wanted.accounts
            },
            not wanted.python or (root / wanted.python.lstrip("/")).exists(),
        )


def person(passwd: str, shadow: str) -> list[str]:
    """What of an account, in the words of passwd(5) and shadow(5), ours would not have."""
    if not passwd.strip():
        return []
    fields = passwd.strip().split(":")
    uid, home, shell = fields[2], fields[5], fields[6]
    password = shadow.strip().split(":")[1] if shadow.strip() else ""
    return [
        *([f"its uid is {uid}"] if int(uid) >= 1000 else []),
        *([f"its shell is {shell}"] if Path(shell).name not in {"nologin", "false", "sync"} else []),
        *([f"its home is {home}"] if home.startswith("/home/") else []),
        *(["it has a password"] if password.startswith("$") else []),
    ]


def objections(found: Found, wanted: Wanted, reached_as: str = "") -> list[str]:
    """Everything that speaks against this host, each with what to do; said of its name."""
    system = f"{found.distribution} {found.version}".strip()
    oldest = OLDEST.get(found.distribution)
    said = []
    if oldest is None or _number(found.version) < oldest:
        said.append(
            f"runs {system or 'an unknown system'}; this product is made for Ubuntu 24.04 and runs on Debian 12 and "
            "13: install one of them."
        )
    if found.cores < wanted.cores:
        said.append(
            f"has {found.cores} cores and host_minimum_cores asks for {wanted.cores}: use a larger machine, or lower "
            "the figure in the inventory and serve fewer models."
        )
    if found.memory < wanted.memory_gib * GIB * SHOWN:
        said.append(
            f"has {found.memory / GIB:.1f} GiB of memory and host_minimum_memory_gib asks for {wanted.memory_gib}: use "
            "a larger machine, or lower the figure in the inventory and serve fewer models."
        )
    if reached_as in wanted.accounts:
        said.append(
            f"is reached as {reached_as}, an account of services that cannot log in: reach it as another one "
            "(CITADEL_SSH_USER)."
        )
    for name, signs in found.persons.items():
        if signs and name != reached_as:
            said.append(
                f"has a user {name} whom a person can be ({', '.join(signs)}), and accounts of services cannot log in: "
                "rename that one, or name another in citadel_user or citadel_engine_user."
            )
    if wanted.name and not HOSTNAME.fullmatch(wanted.name):
        said.append(
            f"cannot be called {wanted.name!r} (citadel_host_name): give letters, digits and `-`, at most 63 of them."
        )
    if not found.python:
        said.append(
            f"has no {wanted.python}, which citadel_python in the inventory asks for: install it, or name a full "
            "version there, which uv then brings."
        )
    return said


@dataclass(frozen=True)
class Clock:
    """What keeps the clock of a host in time: a package to come, a unit to run, or why there is neither."""

    package: str = ""
    unit: str = ""
    said: str = ""


def clock(installed: Sequence[str], container: bool) -> Clock:
    if container:
        return Clock(said="is a container, whose clock is its machine's: nothing is set for it")
    others = [name for name in installed if name != TIMESYNC]
    if others:
        return Clock(said=f"has {others[0]}, which keeps its clock: that is left to it")
    return Clock("" if installed else TIMESYNC, f"{TIMESYNC}.service")


def clock_here(root: Path = Path("/"), run: Run = _run) -> Clock:
    absent = missing(CLOCKS, run)
    return clock([name for name in CLOCKS if name not in absent], (root / "run/systemd/container").exists())


def missing(packages: Sequence[str], run: Run = _run) -> list[str]:
    """Which of these packages are not installed: dpkg's own list is read far faster than apt's."""
    told = run(["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n", *packages])
    there = {line.split()[0] for line in told.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in there]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _settings(text: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}
