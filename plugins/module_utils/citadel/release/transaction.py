"""Activation as a transaction: in the end the new release is proven, or the one before serves as ever.

There is no third outcome, whenever it is interrupted. The journal says how far it came, and recovery finishes
or undoes it: after a kill, at the next boot, and before the next transaction.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .failure import RefusedError
from .files import link
from .history import BAD, GOOD, INTERRUPTED, WITHDRAWN, History, live_release
from .journal import Story, free_reserve, read_story
from .lock import locked
from .manifest import NAME, Manifest, read_manifest
from .memory import compare
from .move import clear, line_up, move, settle
from .plan import plan
from .report import write_report
from .retention import Keep, collect
from .server import Server
from .survey import listens

COMMITTED, RETURNED, UNCHANGED = "committed", "returned", "unchanged"
UNDONE, FINISHED, STUCK = "undone", "finished", "stuck"


@dataclass(frozen=True)
class Outcome:
    """How a transaction ended, in a sentence and in figures."""

    outcome: str
    release: str
    live: str | None
    said: str
    seconds: float = 0.0
    steps: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    proof: list[dict[str, Any]] = field(default_factory=list)
    recovered: str = ""
    memory: list[dict[str, Any]] = field(default_factory=list)
    report: str = ""
    collected: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.outcome in {COMMITTED, UNCHANGED, FINISHED}

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


@dataclass(frozen=True)
class Terms:
    """Who asks for a transaction, and how."""

    who: str
    force: bool = False
    keep: Keep = field(default_factory=Keep)


def activate(server: Server, release: str, terms: Terms) -> Outcome:
    with locked(server.layout, f"the activation of {release}", terms.who, server.now()):
        return Transaction(server).run(release, terms)


def rollback(server: Server, to: str | None, terms: Terms) -> Outcome:
    """Activation of a release that was good before. The one that is left is not gone back to by itself."""
    with locked(server.layout, f"a rollback to {to or 'the release before'}", terms.who, server.now()):
        transaction = Transaction(server)
        left = _live(server, terms.force)
        target = _named(server, to) if to else server.histories.before(left)
        history = server.histories.of(target)
        if _known(server, target) and history.state not in {GOOD, WITHDRAWN} and not terms.force:
            raise RefusedError(
                f"Release {target} is marked {history.state}: {history.reason or 'it was never proven'}. "
                "Choose a good one from `make releases`, or say FORCE=1."
            )
        outcome = transaction.run(target, terms)
        if outcome.good and left and left != target and server.histories.of(left).state == GOOD:
            server.histories.mark(left, WITHDRAWN, server.now(), f"rolled back to {target} by {terms.who}")
        return outcome


def recover(server: Server, boot: bool = False) -> Outcome | None:
    """At boot nothing runs yet and nothing may be waited for: the links are set right, the boot does the
    rest."""
    with locked(server.layout, "the recovery of an interrupted transaction", "this host", server.now()):
        return Transaction(server, boot).recovered


class Transaction:
    """One run under the lock. It begins by settling whatever an earlier one left behind."""

    def __init__(self, server: Server, boot: bool = False) -> None:
        self._server = server
        self._boot = boot
        self._begun = server.clock()
        self.recovered = self._recover()
        self._begun = server.clock()

    def run(self, release: str, terms: Terms) -> Outcome:
        server = self._server
        manifest = self._admit(release, terms.force)
        live = server.survey(units=True)
        objections = server.check(server.layout, server.systemd, manifest, live)
        if objections:
            raise RefusedError(f"Release {release} cannot be activated:\n  " + "\n  ".join(objections))
        todo = plan(manifest, live, listens(server.layout, manifest))
        if not todo.changes and server.histories.of(release).state == GOOD:
            said = f"Release {release} is live, and everything it names runs."
            return Outcome(UNCHANGED, release, release, said, recovered=self._found)
        self._choose_engine(manifest)
        server.journal.write(
            "begin",
            target=manifest.id,
            previous=live.release,
            who=terms.who,
            at=server.now(),
            number=1 + sum(1 for _ in server.layout.journals.glob("*.jsonl")),
            plan=todo.as_dict(),
        )
        try:
            server.journal.write("proven", proof=move(server, manifest))
        except Exception as failure:
            return self._return(str(failure) or type(failure).__name__, BAD)
        outcome = self._commit(COMMITTED)
        return replace(outcome, collected=self._collect(terms.keep))

    def _admit(self, release: str, force: bool) -> Manifest:
        server = self._server
        if not _known(server, release):
            known = ", ".join(history.id for history in server.histories.all()) or "none"
            raise RefusedError(f"There is no release {release} on this host. There are: {known}.")
        manifest = read_manifest(server.layout.release(release))
        history = server.histories.of(release)
        if history.state == BAD and not force:
            raise RefusedError(f"Release {release} is marked bad: {history.reason}. Deploy again, or say FORCE=1.")
        if _live(server, force) is None and server.layout.current.is_symlink():
            server.layout.current.unlink()  # forced past a link that leads nowhere
        return manifest

    def _choose_engine(self, manifest: Manifest) -> None:
        """The engine only ever moves to a later release's: a rollback is run by the code that knows most."""
        layout = self._server.layout
        try:
            match = NAME.match(layout.engine.readlink().parent.name)
        except OSError:
            match = None
        chosen = int(match.group(1)) if match and layout.engine.is_dir() else 0
        if manifest.number > chosen and (layout.release(manifest.id) / "host").is_dir():
            link(layout.engine, f"{layout.release(manifest.id)}/host")

    def _recover(self) -> Outcome | None:
        """Finish what was proven, undo what was not, and say which."""
        story = read_story(self._server.layout)
        if story is None:
            return None
        if not story.begun or story.ended:
            self._server.journal.close(_name(story) if story.begun else "empty")
            return None
        self._server.tell(f"An interrupted transaction was found: {story.target}, in step '{story.step}'.")
        if story.proven and not story.returning:
            return self._commit(FINISHED)
        if story.returning:
            return self._return(story.returning, BAD)
        return self._return("the transaction was interrupted", INTERRUPTED)

    def _commit(self, outcome: str) -> Outcome:
        server, story = self._server, self._story()
        free_reserve(server.layout)
        self._let_go(read_manifest(server.layout.release(story.target)))
        server.histories.mark(story.target, GOOD, server.now(), "", story.proof)
        return self._end(outcome, story.target, f"Release {story.target} is live and proven.")

    def _return(self, reason: str, mark: str) -> Outcome:
        """Back to the release before. Where even that fails the journal stays open, and the next run tries
        again."""
        server, story = self._server, self._story()
        failed = f"Release {story.target} failed in step '{story.step}': {reason}."
        server.tell(failed)
        free_reserve(server.layout)
        with contextlib.suppress(OSError):
            server.journal.write("returning", reason=reason, at=server.now())
        try:
            said = self._go_back(story)
            if story.previous != story.target:
                server.histories.mark(story.target, mark, server.now(), f"in step '{story.step}': {reason}")
            return self._end(RETURNED if mark == BAD else UNDONE, story.previous, f"{failed} {said}")
        except Exception as failure:
            said = (
                f"{failed} The way back to {story.previous or 'an empty host'} failed too: {failure}. "
                "The next boot or the next deployment tries it again."
            )
            server.tell(said)
            return Outcome(STUCK, story.target, None, said, self._seconds, recovered=self._found)

    def _go_back(self, story: Story) -> str:
        server = self._server
        if story.previous is None:
            clear(server, wait=not self._boot)
            return "Nothing was live before, and nothing is now."
        if story.previous == story.target:
            return f"{story.target} was live before and stays so; deploy again to heal it."
        manifest = read_manifest(server.layout.release(story.previous))
        if not self._boot:
            move(server, manifest)
        self._let_go(manifest)
        return f"{story.previous} serves as before."

    def _let_go(self, manifest: Manifest) -> None:
        if self._boot:
            line_up(self._server, manifest)
        else:
            settle(self._server, manifest)

    def _collect(self, keep: Keep) -> list[str]:
        """The deployment is done; what cannot be cleared away now is cleared away by the next one."""
        server = self._server
        try:
            gone = collect(server.layout, server.systemd, keep)
        except OSError as error:
            server.tell(f"Old releases were not cleared away: {error}")
            return []
        for name in gone:
            server.tell(f"cleared away: {name}")
        return gone

    def _end(self, outcome: str, live: str | None, said: str) -> Outcome:
        server, story = self._server, self._story()
        ended = Outcome(
            outcome=outcome,
            release=story.target,
            live=live,
            said=said,
            seconds=self._seconds,
            steps=story.steps(),
            plan=story.plan,
            proof=story.proof,
            recovered=self._found,
            memory=self._memory(story.target) if outcome == COMMITTED else [],
        )
        server.journal.write("end", outcome=outcome, said=said, at=server.now())
        server.journal.close(_name(story))
        server.tell(said)
        told = {**ended.as_dict(), "who": story.who, "began": story.began, "ended": server.now()}
        return replace(ended, report=write_report(server.layout, _name(story), told))

    def _memory(self, release: str) -> list[dict[str, Any]]:
        """All is proven by now, and not knowing this is no reason to fail."""
        server = self._server
        try:
            found = compare(server.layout, read_manifest(server.layout.release(release)))
        except (OSError, RefusedError) as error:
            server.tell(f"The memory in use could not be read: {error}")
            return []
        for use in found:
            if use.note:
                server.tell(use.note)
        return [use.as_dict() for use in found]

    def _story(self) -> Story:
        return read_story(self._server.layout) or Story()

    @property
    def _seconds(self) -> float:
        return round(self._server.clock() - self._begun, 2)

    @property
    def _found(self) -> str:
        recovered: Outcome | None = getattr(self, "recovered", None)
        return recovered.said if recovered else ""


def _name(story: Story) -> str:
    return f"{story.number:05d}-{story.target}"


def _named(server: Server, wanted: str) -> str:
    """A release by its id, or by eight or more digits of its content's digest, which equal hosts share. Of several
    attempts with the same content it is the good one that was live last."""
    if _known(server, wanted) or not re.fullmatch(r"[0-9a-f]{8,64}", wanted):
        return wanted
    found: dict[str, list[History]] = {}
    for history in server.histories.all():
        with contextlib.suppress(RefusedError):
            digest = read_manifest(server.layout.release(history.id)).digest
            if digest.startswith(wanted):
                found.setdefault(digest, []).append(history)
    if not found:
        raise RefusedError(f"No release on this host has a content whose digest begins with {wanted}: `make releases`.")
    if len(found) > 1:
        several = ", ".join(sorted(history.id for alike in found.values() for history in alike))
        raise RefusedError(f"{wanted} is the beginning of several digests ({several}): give more digits, or the id.")
    [alike] = found.values()
    return max(alike, key=lambda history: (history.state in {GOOD, WITHDRAWN}, history.last, history.id)).id


def _known(server: Server, release: str) -> bool:
    return bool(NAME.match(release)) and server.layout.release(release).is_dir()


def _live(server: Server, force: bool) -> str | None:
    """What is live; if forced, a `current` that leads nowhere counts as nothing."""
    try:
        return live_release(server.layout)
    except RefusedError:
        if force and server.layout.current.is_symlink():
            return None
        raise
