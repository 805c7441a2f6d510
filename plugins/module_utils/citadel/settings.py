"""What the deployer decides about models beside the catalogue: the keys of `models_settings`, each with its default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from .topology import GIB, Host

RESERVE_BYTES, RESERVE_SHARE = 8 * GIB, 0.08  # for system, gateway and page cache: whichever is more
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FRACTIONS = ("reserve_gib", "tmpfs_gib")
WHOLE, NUMBER = re.compile(r"-?\d+"), re.compile(r"-?\d+(\.\d+)?")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsError(ValueError):
    """One key, its value, and what it takes."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        super().__init__(f"models_settings.{key} = {value!r}: {problem}")


@dataclass(frozen=True)
class Settings:
    """A setting more is a line here and the place that uses it."""

    share_cores: bool = False  # several models on the same cores, for a machine that has few
    reserve_gib: float = 0  # memory that is not for models; 0 is 8 GiB or 8 %, whichever is more
    hugepages: int = -1  # that the host reserves; -1 is what it has, or what spare_hugepages says
    spare_hugepages: int = 0  # that the host reserves if they take nothing from the models
    tmpfs_gib: float = 0  # the sum of caches in memory
    revisions_kept: int = 2  # of each model, which the disk has to hold
    zentorch: bool = False  # whether the environment has it
    address: str = "127.0.0.1"  # where models listen; their /metrics and /tokenize know no key, so this is loopback
    clients: str = ""  # networks that may reach them when it is not
    drain: int = 30  # seconds that running requests get when a model stops
    log_level: str = "INFO"  # what vLLM writes to the journal
    traces: str = ""  # where a collector takes spans by OTLP over HTTP; empty: none are made
    # loaded before all others
    libraries: tuple[str, ...] = (
        "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
        "{environment}/lib/libiomp5.so",
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Checked, with defaults for what is not said."""
        known = {one.name: getattr(cls, one.name) for one in fields(cls)}
        for key, value in given.items():
            if key not in known:
                raise SettingsError(key, value, f"there is no such setting; known are {', '.join(known)}")
        settings = cls(**{key: _typed(key, value, known[key]) for key, value in given.items()})
        settings._check()
        return settings

    def _check(self) -> None:
        for key in ("reserve_gib", "tmpfs_gib", "drain", "spare_hugepages"):
            if getattr(self, key) < 0:
                raise SettingsError(key, getattr(self, key), "give 0 or more")
        if self.hugepages < -1:
            raise SettingsError("hugepages", self.hugepages, "give 0 or more, or -1 for what the host has")
        if self.revisions_kept < 1:
            raise SettingsError(
                "revisions_kept", self.revisions_kept, "the one that serves has to be kept; give 1 or more"
            )
        if self.log_level not in LOG_LEVELS:
            raise SettingsError("log_level", self.log_level, f"choose one of {', '.join(LOG_LEVELS)}")
        if self.traces and not _leads_to_an_address(self.traces):
            raise SettingsError(
                "traces", self.traces, "give http://ADDRESS:4318/v1/traces; units let out to addresses, not to names"
            )
        if self.address not in LOOPBACK and not self.clients:
            raise SettingsError("address", self.address, "say in models_settings.clients which networks may ask there")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "libraries": list(self.libraries)}

    @property
    def asks_no_hugepages(self) -> bool:
        """Those that the host has by itself are counted, and nobody sets how many."""
        return self.hugepages < 0 and not self.spare_hugepages

    @property
    def reserve(self) -> int:
        return round(self.reserve_gib * GIB)

    def reserve_of(self, memory: int) -> int:
        return self.reserve or max(RESERVE_BYTES, round(memory * RESERVE_SHARE))

    def fixed_on(self, host: Host) -> int:
        """What is not for models."""
        return self.reserve_of(host.memory) + host.hugepages + host.tmpfs


def _leads_to_an_address(url: str) -> bool:
    where = urlsplit(url)
    try:
        return where.scheme == "http" and bool(ip_address(where.hostname or "")) and len(where.path) > 1
    except ValueError:
        return False


def _typed(key: str, value: Any, default: Any) -> Any:
    """In the type of its default, or a complaint; a text of Ansible's command line is read as what it says."""
    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in words:
            raise SettingsError(key, value, "give true or false")
        return words[str(value).lower()]
    if isinstance(default, int | float):
        whole = key not in FRACTIONS
        if isinstance(value, bool) or not (WHOLE if whole else NUMBER).fullmatch(str(value)):
            raise SettingsError(key, value, "give a whole number" if whole else "give a number")
        return int(value) if whole else float(value)
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise SettingsError(key, value, "give a list of texts")
        return tuple(str(one) for one in value)
    if not isinstance(value, str):
        raise SettingsError(key, value, "give a text")
    return str(value)
