"""Where things are on the host. A root other than `/` serves the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    root: Path = Path("/")

    @property
    def home(self) -> Path:
        return self.root / "opt/citadel"

    @property
    def releases(self) -> Path:
        return self.home / "releases"

    @property
    def current(self) -> Path:
        return self.home / "current"

    @property
    def environments(self) -> Path:
        return self.home / "envs"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def engine(self) -> Path:
        """The host package that runs transactions: not the live release's, which changes in the middle of
        one."""
        return self.state / "engine"

    @property
    def histories(self) -> Path:
        return self.state / "releases"

    @property
    def journal(self) -> Path:
        return self.state / "transaction.jsonl"

    @property
    def journals(self) -> Path:
        return self.state / "journals"

    @property
    def reports(self) -> Path:
        return self.state / "reports"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def reserve(self) -> Path:
        return self.state / "reserve"

    @property
    def load_seconds(self) -> Path:
        return self.state / "load-seconds.json"

    @property
    def models(self) -> Path:
        return self.root / "opt/models"

    @property
    def compiled(self) -> Path:
        """Compiled gateways by what they were compiled from; whatever is lost there is only compiled again."""
        return self.root / "var/cache/citadel-compiled"

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    def release(self, name: str) -> Path:
        return self.releases / name

    def inside(self, path: str) -> Path:
        """An absolute path of the host, seen from this root."""
        return self.root / path.lstrip("/")
