"""Our lines in a YAML file of somebody else: put in between two marks as text, so that the rest stays byte for byte.

No parser of YAML is on the hosts, and one that writes the file anew would lose its comments. Lines are put in before
a line that is there, or after the last; taken out again, they leave the bytes that were there before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

BEGIN, END = "# BEGIN citadel-llm", "# END citadel-llm"
KEY = re.compile(r"""^(?P<indent> *)(?P<quote>["']?)(?P<name>[A-Za-z_][\w.-]*)(?P=quote)\s*:(?:\s+(?P<rest>.*))?$""")
STEP = 2


class BlockError(ValueError):
    """Why our lines cannot be put into that text, or taken out of it."""


def without(text: str) -> str:
    """The text as it was before our blocks came."""
    return "\n".join(_parted(text)[0])


def ours(text: str) -> str:
    """Our lines alone."""
    return "".join(f"{line}\n" for line in _parted(text)[1])


def _parted(text: str) -> tuple[list[str], list[str]]:
    theirs: list[str] = []
    own: list[str] = []
    inside = False
    for number, line in enumerate(text.split("\n"), 1):
        mark = line.strip()
        if mark in {BEGIN, END}:
            if inside == (mark == BEGIN):
                raise BlockError(
                    f"line {number} is `{mark}` and has no counterpart: take out what is left of that block"
                )
            inside = not inside
        else:
            (own if inside else theirs).append(line)
    if inside:
        raise BlockError(f"a block begins with `{BEGIN}` and does not end: take out what is left of it")
    return theirs, own


def first_of(text: str, path: Sequence[str], entries: str) -> str:
    """The text with these entries before all others of the list at `path`, which is made where it is not there."""
    lines = text.split("\n")
    start, stop, indent = 0, len(lines), 0
    for depth, name in enumerate(path):
        at = _key(lines, start, stop, indent, name)
        if at is None:
            if depth and depth < len(path) - 1:
                raise BlockError(f"`{path[0]}` has no `{name}`")
            listed = f"{name}:\n" + _indented(entries, STEP)
            return _put(lines, _first_key(lines, start, stop), _indented(listed, indent))
        if rest := _content(_rest(lines[at])):
            raise BlockError(f"`{name}: {rest}` is written in one line: write it with a line for each entry")
        start, stop = at + 1, _end(lines, at, stop, indent)
        if depth < len(path) - 1:
            indent = _indent(lines, start, stop, f"`{name}`")
    first = _first(lines, start, stop)
    if first is None:
        return _put(lines, start, _indented(entries, indent + STEP))
    if not _entry(lines[first]):
        raise BlockError(f"`{path[-1]}` is no list with a line for each entry")
    return _put(lines, first, _indented(entries, _width(lines[first])))


def listed(text: str, name: str) -> list[str]:
    """Every entry of every list of this name, wherever it stands, written as lines or as [one, two]."""
    lines = text.split("\n")
    found: list[str] = []
    for at, line in enumerate(lines):
        key = KEY.match(re.sub(r"^( *)- ", r"\1  ", line))
        if key is None or key["name"] != name:
            continue
        rest = _content(key["rest"] or "")
        if rest.startswith("["):
            found += [_bare(entry) for entry in rest.strip("[]").split(",") if entry.strip()]
            continue
        for entry in lines[at + 1 :]:
            if _content(entry) == "":
                continue
            if not _entry(entry) or _width(entry) < len(key["indent"]):
                break
            found.append(_bare(entry.strip()[1:]))
    return found


def _bare(entry: str) -> str:
    return _content(entry).strip("\"'")


def _content(line: str) -> str:
    """A line without its comment; enough for what is looked for here."""
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def _rest(line: str) -> str:
    key = KEY.match(line.rstrip("\r"))
    return (key["rest"] or "") if key else ""


def _width(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _entry(line: str) -> bool:
    return line.strip() == "-" or line.lstrip(" ").startswith("- ")


def _key(lines: Sequence[str], start: int, stop: int, indent: int, name: str) -> int | None:
    for at in range(start, stop):
        key = KEY.match(lines[at].rstrip("\r"))
        if key and key["name"] == name and len(key["indent"]) == indent:
            return at
    return None


def _end(lines: Sequence[str], at: int, stop: int, indent: int) -> int:
    """Where what belongs to the key at this line ends. A list may stand at the indent of its key."""
    for later in range(at + 1, stop):
        if _content(lines[later]) and (
            _width(lines[later]) < indent or (_width(lines[later]) == indent and not _entry(lines[later]))
        ):
            return later
    return stop


def _first(lines: Sequence[str], start: int, stop: int) -> int | None:
    return next((at for at in range(start, stop) if _content(lines[at])), None)


def _first_key(lines: Sequence[str], start: int, stop: int) -> int:
    """After what has to come first in a file: comments, and the line `---`."""
    return next((at for at in range(start, stop) if KEY.match(lines[at].rstrip("\r"))), stop - 1)


def _indent(lines: Sequence[str], start: int, stop: int, what: str) -> int:
    first = _first(lines, start, stop)
    if first is None or _entry(lines[first]):
        raise BlockError(f"{what} has nothing below it")
    return _width(lines[first])


def _indented(text: str, width: int) -> str:
    return "".join(f"{' ' * width}{line}\n" if line else "\n" for line in text.rstrip("\n").split("\n"))


def _put(lines: list[str], at: int, block: str) -> str:
    margin = " " * _width(block)
    block_lines = [f"{margin}{BEGIN}", *block.rstrip("\n").split("\n"), f"{margin}{END}"]
    return "\n".join([*lines[:at], *block_lines, *lines[at:]])
