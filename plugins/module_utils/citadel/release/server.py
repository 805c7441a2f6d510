"""An LLM server as a transaction sees it: its files, its systemd, its proofs, and the time."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .check import check
from .files import read_json, write_json
from .gate import Gate
from .history import Histories
from .journal import Journal
from .layout import Layout
from .manifest import Manifest
from .probe import Prober
from .survey import Live, survey
from .systemd import Systemd

Check = Callable[[Layout, Systemd, Manifest, Live], list[str]]


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Server:
    layout: Layout
    systemd: Systemd
    prober: Prober
    gate: Gate
    check: Check = check
    tell: Callable[[str], None] = lambda line: print(line, flush=True)
    now: Callable[[], str] = now
    clock: Callable[[], float] = time.monotonic
    histories: Histories = field(init=False)
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.histories = Histories(self.layout)
        self.journal = Journal(self.layout)

    def survey(self, units: bool = False) -> Live:
        return survey(self.layout, self.systemd, units)

    def measured(self, name: str, seconds: float) -> None:
        """Remember how long a start took, for the next plan; not worth failing for."""
        figures: dict[str, Any] = read_json(self.layout.load_seconds, {})
        with contextlib.suppress(OSError):
            write_json(self.layout.load_seconds, {**figures, name: round(seconds, 1)})
