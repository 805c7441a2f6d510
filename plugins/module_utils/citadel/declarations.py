"""What roles set on this host: told in check mode, set, read back from the real thing, declared, and put back.

A role hands its items to `bring_about`: it sets those that differ, reads them back from the real thing, and declares
them, so that anybody can compare later (`drift`). What was there before is kept once, and put back when the role no
longer has the item, or undoes all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .kinds import KINDS, CannotError, Host, Item, NotHereError
from .release import files

# Root's, and not below /opt/citadel: a role may be used where no release ever was.
PLACE = Path("var/lib/citadel")
# of every item: whether it is set or only compared, and what to do when it can't be had
COMMON = frozenset({"apply", "advice"})
# of no declaration: a declaration may be read by anybody, and content may be secret
UNDECLARED = frozenset({"content", "validate"})


class DeclarationError(ValueError):
    """What nobody can want, or what could not be had: a sentence for each item."""


def item_of(given: Mapping[str, Any]) -> Item:
    """Checked: kind, name, desired, and beside them options that this kind has."""
    kind, name = str(given.get("kind", "")), str(given.get("name", ""))
    if kind not in KINDS:
        raise DeclarationError(f"{name or 'an item'}: there is no kind {kind!r}; there are {', '.join(KINDS)}")
    for key in ("name", "desired"):
        if given.get(key) in (None, ""):
            raise DeclarationError(f"{kind} {name}: it has no `{key}`: give one")
    options = {key: value for key, value in given.items() if key not in {"kind", "name", "desired"}}
    unknown = options.keys() - KINDS[kind].options - COMMON
    if unknown:
        known = ", ".join(sorted(KINDS[kind].options | COMMON))
        raise DeclarationError(f"{kind} {name}: it has no option {', '.join(sorted(unknown))}; there are {known}")
    return Item(kind, name, given["desired"], options)


@dataclass(frozen=True)
class Look:
    """An item and what the host really has; `left` is why it is not for us to set."""

    item: Item
    found: Any
    left: str = ""

    @property
    def desired(self) -> Any:
        return KINDS[self.item.kind].desired(self.item)

    @property
    def fits(self) -> bool:
        return bool(self.found == self.desired)

    def __str__(self) -> str:
        return f"{self.item}: {short(self.found)}"


def short(value: Any) -> str:
    """A digest is for machines; its beginning does for people."""
    first, blank, rest = str(value).partition(" ")
    return f"{first[:12] if len(first) == 64 else first}{blank}{rest}" if value is not None else "not there"


def look(host: Host, item: Item) -> Look:
    try:
        found = KINDS[item.kind].read(host, item)
    except NotHereError as error:
        return Look(item, None, str(error))
    except (CannotError, OSError) as error:
        return Look(item, f"unknown ({error})")
    return Look(item, found)


def compared(host: Host, item: Item) -> Look:
    """As it is, and why it is left where it is not for us to set, whatever it is today."""
    seen = look(host, item)
    if seen.left:
        return seen
    if not item.option("apply", True):
        return replace(seen, left="here it is only compared")
    return replace(seen, left=KINDS[item.kind].untouchable(host, item))


def notes_on(seen: Sequence[Look]) -> list[str]:
    """What is left as it is, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for one in seen:
        if one.left and not one.fits:
            now = f" ({short(one.found)}, not {short(one.desired)})" if one.found is not None else ""
            by_reason.setdefault(one.left, []).append(f"{one.item}{now}")
    return [f"left as it is, since {reason}: {', '.join(items)}" for reason, items in by_reason.items()]


@dataclass
class Result:
    changes: list[tuple[str, str, str]] = field(default_factory=list)  # which, before, after
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.changes)

    @property
    def before(self) -> list[str]:
        return [f"{name}: {old}" for name, old, _ in self.changes]

    @property
    def after(self) -> list[str]:
        return [f"{name}: {new}" for name, _, new in self.changes]

    @property
    def told(self) -> list[str]:
        """For people."""
        return [*(f"{name}: {old} → {new}" for name, old, new in self.changes), *self.notes]


@dataclass(frozen=True)
class Store:
    """What an owner has declared, and what was there before it came."""

    root: Path
    owner: str

    @property
    def declaration(self) -> Path:
        return self.root / PLACE / "declared" / f"{self.owner}.json"

    @property
    def kept(self) -> Path:
        return self.root / PLACE / "before" / f"{self.owner}.json"

    def declared(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = files.read_json(self.declaration, [])
        return found

    def before(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = files.read_json(self.kept, {})
        return found

    def declare(self, items: Sequence[Mapping[str, Any]]) -> None:
        if items:
            files.write_json(self.declaration, list(items))
        else:
            self.declaration.unlink(missing_ok=True)

    def keep(self, before: Mapping[str, Any]) -> None:
        if not before:
            self.kept.unlink(missing_ok=True)
            return
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        self.kept.parent.chmod(0o700)
        files.write(self.kept, json.dumps(before, indent=2) + "\n", 0o600)


def declaration_of(seen: Look) -> dict[str, Any]:
    options = {key: value for key, value in seen.item.options.items() if key not in UNDECLARED}
    left = {"left": seen.left} if seen.left else {}
    return {"kind": seen.item.kind, "name": seen.item.name, "desired": seen.desired, **options, **left}


def declared_item(said: Mapping[str, Any]) -> Item:
    return item_of({key: value for key, value in said.items() if key != "left"})


def bring_about(owner: str, items: Sequence[Item], act: bool, host: Host | None = None) -> Result:
    """Set what differs and prove it; without `act`, only tell. No items at all is an undo."""
    host = host or Host()
    refuse_impossible(host, owner, items)
    store = Store(host.root, owner)
    before, declared = store.before(), store.declared()
    names = {str(item) for item in items}
    gone = [(name, said) for name, said in reversed(before.items()) if name not in names]
    seen = [compared(host, item) for item in items]
    result = Result(notes=notes_on(seen))
    for name, said in gone:
        item = declared_item(said["item"])
        result.changes.append((name, short(KINDS[item.kind].desired(item)), "as it was before"))
    differing = [one for one in seen if not one.fits and not one.left]
    result.changes += [(str(one.item), short(one.found), short(one.desired)) for one in differing]
    news = [declaration_of(one) for one in seen]
    if news != declared and not result.changed:
        result.changes.append((owner, f"declares {len(declared)} items", f"declares {len(news)} items"))
    if not act or not result.changed:
        return result
    refuse_needed(host, owner, [declared_item(said["item"]) for _, said in gone])
    put_back(host, [(declared_item(said["item"]), said["value"]) for _, said in gone])
    # before anything is set: whoever is cut off here can be undone, and drift tells what is missing
    kept = {name: said for name, said in before.items() if name in names}
    for one, said in zip(seen, news, strict=True):
        if not one.left and str(one.item) not in kept:
            kept[str(one.item)] = {"item": {**said}, "value": KINDS[one.item.kind].keep(host, one.item)}
    store.keep(kept)
    store.declare(news)
    set_all(host, owner, [one.item for one in differing])
    return result


def refuse_impossible(host: Host, owner: str, items: Sequence[Item]) -> None:
    said = [
        f"{owner}: {item} cannot be {item.desired!r}: {problem}"
        for item in items
        if (problem := KINDS[item.kind].problem(host, item))
    ]
    names = [str(item) for item in items]
    said += [
        f"{owner}: {name} is there twice: give it once" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if said:
        raise DeclarationError("\n".join(said))


def refuse_needed(host: Host, owner: str, items: Sequence[Item]) -> None:
    said = [f"{owner}: {item} stays: {why}" for item in items if (why := KINDS[item.kind].needed(host, item))]
    if said:
        raise DeclarationError("\n".join(said))


def set_all(host: Host, owner: str, items: Sequence[Item]) -> None:
    """Set each, then read each back from the real thing."""
    failed: dict[str, str] = {}
    for item in items:
        try:
            KINDS[item.kind].set(host, item)
        except (CannotError, NotHereError, OSError) as error:
            failed[str(item)] = str(error)
    for command in followups([item for item in items if str(item) not in failed]):
        try:
            host.act(*command)
        except (CannotError, NotHereError) as error:
            failed[" ".join(command)] = str(error)
    host.told.clear()
    said = [f"{owner}: {name}: {why}" for name, why in failed.items() if name not in {str(item) for item in items}]
    for item in items:
        if not (seen := look(host, item)).fits:
            said.append(sentence(host, owner, seen, failed.get(str(item), "")))
    if said:
        raise DeclarationError("\n".join(said))


def sentence(host: Host, owner: str, seen: Look, why: str = "") -> str:
    """Item, wanted, found, likely cause, and what to do where the role knows it."""
    kind = KINDS[seen.item.kind]
    reason = why or seen.left or kind.cause(host, seen.item, seen.found)
    advice = seen.item.option("advice", "")
    said = f"{owner}: {seen.item} shall be {short(seen.desired)} and is {short(seen.found)}"
    return said + (f": {reason}" if reason else "") + (f". {advice}" if advice else "")


def followups(items: Sequence[Item]) -> list[tuple[str, ...]]:
    """Each command once, in the order in which it was first asked for."""
    return list(dict.fromkeys(tuple(command) for item in items for command in item.option("then", [])))


def put_back(host: Host, kept: Sequence[tuple[Item, Any]]) -> None:
    failed = []
    for item, value in kept:
        try:
            KINDS[item.kind].restore(host, item, value)
        except NotHereError:
            continue  # what this host has not, or must not touch, was never changed by us
        except (CannotError, OSError) as error:
            failed.append(f"{item} could not be put back: {error}")
    for command in followups([item for item, _ in kept]):
        try:
            host.act(*command)
        except (CannotError, NotHereError) as error:
            failed.append(str(error))
    host.told.clear()
    if failed:
        raise DeclarationError("\n".join(failed))


@dataclass(frozen=True)
class Finding:
    """An item that somebody declared, as it is now."""

    owner: str
    item: str
    desired: str
    found: str
    state: str  # as declared, drifted, left
    cause: str = ""


def drift(host: Host | None = None) -> list[Finding]:
    """Every item that is declared on this host."""
    host = host or Host()
    return [finding for path in declarations(host) for finding in drift_of(host, path.stem)]


def declarations(host: Host) -> list[Path]:
    return sorted((host.root / PLACE / "declared").glob("*.json"))


def drift_of(host: Host, owner: str) -> Iterator[Finding]:
    for said in Store(host.root, owner).declared():
        seen = look(host, declared_item(said))
        told = (owner, str(seen.item), short(seen.desired), short(seen.found))
        if seen.fits:
            yield Finding(*told, "as declared")
        elif said.get("left"):
            yield Finding(*told, "left", said["left"])
        else:
            yield Finding(*told, "drifted", seen.left or KINDS[seen.item.kind].cause(host, seen.item, seen.found))


def declared_units(root: Path) -> set[str]:
    """Units that a role brought, by name: no release has them, and they are nobody's that is unknown."""
    folder = "/etc/systemd/system/"
    return {
        str(said["name"]).removeprefix(folder)
        for path in declarations(Host(root))
        for said in Store(root, path.stem).declared()
        if said["kind"] == "file" and str(said["name"]).startswith(folder) and said["desired"] != "absent"
    }
