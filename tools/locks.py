"""`make lock`: requirements/*.txt from what requirements/*.in ask for, with the hash of every file.

A list whose wishes have not changed keeps its lock byte for byte, whatever the indexes offer today. ONLY=name,name
looks at these alone; UPGRADE=package,package takes newer versions of these, in the lists that ONLY names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.phases import Failure, Journal, say
from tools.toolchain import PINS, environment, indexes, program, python_tools, require_python

FOLDER = PINS.parent
# Hashes of every file and no addresses: where a package comes from is each machine's own affair.
LOCKED = ("--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet")


@dataclass(frozen=True)
class Lock:
    """One lock file: what it is made of, for which Python, and whose versions it takes over."""

    wishes: str
    options: tuple[str, ...] = ()
    python: str = "3.11"
    versions_of: str = ""


LOCKS = {
    "gateway": Lock("gateway"),
    "gateway-3.12": Lock("gateway", ("--no-annotate",), "3.12", "gateway"),
    "bench-serving": Lock("bench-serving"),
    "tools": Lock("tools", ("--universal",), versions_of="gateway"),
    "uv": Lock("uv"),
    "vllm": Lock("vllm", ("--override=vllm-overrides.txt",)),
    "vllm-3.12": Lock("vllm", ("--override=vllm-overrides.txt", "--no-annotate"), "3.12", "vllm"),
}


def lock() -> None:
    require_python()
    names, upgrades = asked(os.environ.get("ONLY", ""), os.environ.get("UPGRADE", ""))
    journal = Journal("lock")
    python_tools(journal)
    recorded = json.loads((FOLDER / "locked.json").read_text())
    for name in names:
        wishes = digest(name)
        if recorded.get(name) == wishes and not upgrades:
            say(f"lock: {name}.txt stays: nothing that it is made of has changed")
            continue
        compiled(journal, name, upgrades)
        # its own lock may be what a later one takes its versions from
        recorded[name] = digest(name)
        (FOLDER / "locked.json").write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    journal.finish()


def asked(only: str, upgrade: str) -> tuple[list[str], list[str]]:
    names, upgrades = (re.split(r"[,\s]+", text.strip()) if text.strip() else [] for text in (only, upgrade))
    if unknown := [name for name in names if name not in LOCKS]:
        raise Failure(f"ONLY={only}: there is no lock {', '.join(unknown)}; the locks are {', '.join(LOCKS)}.")
    if upgrades and not names:
        raise Failure(f"UPGRADE={upgrade}: say in which lock, such as ONLY=gateway; the locks are {', '.join(LOCKS)}.")
    return [name for name in LOCKS if not names or name in names], upgrades


def wishes_of(path: Path) -> Iterator[str]:
    """The lines that ask for something, with those of the files that they include."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split(" #")[0].strip()
        if text.startswith("-r "):
            yield from wishes_of(path.parent / text.removeprefix("-r ").strip())
        elif text and not text.startswith("#"):
            yield text


def versions(name: str) -> list[str]:
    """The pins of a lock without their hashes."""
    return re.findall(
        r"^[A-Za-z0-9._-]+==[^\s;\\]+", (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), re.MULTILINE
    )


def digest(name: str) -> str:
    """Of all that a lock is made of; comments are no wishes."""
    one = LOCKS[name]
    parts = [*one.options, one.python, *wishes_of(FOLDER / f"{one.wishes}.in")]
    for option in one.options:
        if option.startswith("--override="):
            parts += wishes_of(FOLDER / option.partition("=")[2])
    if one.versions_of:
        parts += versions(one.versions_of)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def compiled(journal: Journal, name: str, upgrades: list[str]) -> None:
    """Compile one list. Its present pins are kept where they can be, and the file is replaced as a whole."""
    one, target = LOCKS[name], FOLDER / f"{name}.txt"
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / target.name
        if target.exists():
            shutil.copyfile(target, made)
        options = [*one.options, *(f"--upgrade-package={package}" for package in upgrades)]
        if one.versions_of:
            constraint = Path(scratch) / f"versions-of-{one.versions_of}"
            constraint.write_text("\n".join(versions(one.versions_of)) + "\n")
            options.append(f"--constraint={constraint}")
        settings = {**environment(), **indexes(), "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1"}
        lent = lend(one.python, local_folders(settings), Path(scratch) / "lent")
        if lent:
            settings["UV_FIND_LINKS"] = f"{settings['UV_FIND_LINKS']},{Path(scratch) / 'lent'}"
        journal.phase(
            f"lock {name}",
            [
                program("uv"),
                "pip",
                "compile",
                f"{one.wishes}.in",
                f"--output-file={made}",
                f"--python-version={one.python}",
                *LOCKED,
                *options,
            ],
            settings,
            folder=FOLDER,
        )
        text = made.read_text(encoding="utf-8")
        for ours, theirs in lent.items():
            text = text.replace(ours, theirs)
    aside = target.with_suffix(".new")
    aside.write_text(text.replace(f"{scratch}/", ""), encoding="utf-8")
    aside.replace(target)


def local_folders(settings: dict[str, str]) -> list[Path]:
    return [Path(word) for word in settings.get("UV_FIND_LINKS", "").split(",") if word and Path(word).is_dir()]


def known_files() -> dict[str, str]:
    """Hashes of files that not every machine reaches, by name of the file: requirements/known-files.txt."""
    lines = (line.split() for line in wishes_of(FOLDER / "known-files.txt"))
    return {name: sha256 for sha256, name in lines}


def lend(python: str, folders: list[Path], into: Path) -> dict[str, str]:
    """Stand-ins for known files that this machine cannot reach: the metadata of the same release for another Python.

    Gives the hash of each stand-in with that of the real file, which takes its place in the lock.
    """
    replaced = {}
    tag = f"cp{python.replace('.', '')}"
    for name, sha256 in known_files().items():
        release, _, rest = name.partition("-cp")
        others = [path for folder in folders for path in folder.glob(f"{release}-cp*") if path.name != name]
        here = any((folder / name).exists() for folder in folders)
        if here or not others or f"cp{rest.partition('-')[0]}" != tag:
            continue
        into.mkdir(exist_ok=True)
        with zipfile.ZipFile(others[0]) as wheel, zipfile.ZipFile(into / name, "w") as stand_in:
            for entry in wheel.infolist():
                if entry.filename.endswith((".dist-info/METADATA", ".dist-info/WHEEL", ".dist-info/RECORD")):
                    stand_in.writestr(entry.filename, wheel.read(entry))
        replaced[hashlib.sha256((into / name).read_bytes()).hexdigest()] = sha256
    return replaced
