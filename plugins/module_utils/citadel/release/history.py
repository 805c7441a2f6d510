"""What is known of each release: kept outside of its tree, which never changes once it is staged."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .failure import RefusedError
from .files import read_json, write_json
from .layout import Layout
from .manifest import NAME

STAGED, GOOD, BAD, INTERRUPTED, WITHDRAWN = "staged", "good", "bad", "interrupted", "withdrawn"


@dataclass
class History:
    """One release's life. `last` counts activations over all releases, so that order never rests on a clock."""

    id: str
    state: str = STAGED
    reason: str = ""
    last: int = 0
    at: str = ""
    uncompiled: str = ""  # why its gateway runs from its source, where a compiler was there
    proof: list[dict[str, Any]] = field(default_factory=list)


class Histories:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def of(self, release: str) -> History:
        value = read_json(self._layout.histories / f"{release}.json", {})
        known = {key: value[key] for key in History.__dataclass_fields__ if key in value}
        return History(**{**known, "id": release})

    def write(self, history: History) -> None:
        write_json(self._layout.histories / f"{history.id}.json", asdict(history))

    def forget(self, release: str) -> None:
        (self._layout.histories / f"{release}.json").unlink(missing_ok=True)

    def all(self) -> list[History]:
        """Every release on the host, by number."""
        if not self._layout.releases.is_dir():
            return []
        names = [path.name for path in self._layout.releases.iterdir() if NAME.match(path.name)]
        return [self.of(name) for name in sorted(names, key=lambda name: (int(name.split("-")[0]), name))]

    def mark(
        self, release: str, state: str, at: str, reason: str = "", proof: list[dict[str, Any]] | None = None
    ) -> None:
        history = self.of(release)
        history.state, history.reason, history.at = state, reason, at
        if proof is not None:
            history.proof = proof
        if state == GOOD:
            history.last = 1 + max((other.last for other in self.all()), default=0)
        self.write(history)

    def before(self, live: str | None) -> str:
        """The release that was good most recently, not counting the live one and those that were rolled back
        from."""
        good = [history for history in self.all() if history.state == GOOD and history.id != live]
        if not good:
            raise RefusedError(
                "There is no earlier good release on this host to go back to. `make releases` shows what "
                "there is; "
                "name one with TO=<id> and FORCE=1 if it shall run all the same."
            )
        return max(good, key=lambda history: history.last).id


def live_release(layout: Layout) -> str | None:
    """What `current` names; a link that leads nowhere is refused with its target."""
    if not layout.current.is_symlink():
        if layout.current.exists():
            raise RefusedError(f"{layout.current} is no symbolic link. Move it away; it belongs to the releases.")
        return None
    target = layout.current.readlink()
    if not (layout.current / "manifest.json").is_file():
        raise RefusedError(
            f"{layout.current} points to {target}, which is no release. "
            "`make rollback TO=<id> FORCE=1` makes it point to one from `make releases`."
        )
    return target.name
