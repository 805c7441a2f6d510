"""The programs that the verbs use: Debian packages where they must be, everything else in .venv, pinned."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.handover import pip_settings
from tools import programs
from tools.phases import ROOT, Failure, Journal

VENV = ROOT / ".venv"
PINS = ROOT / "requirements" / "tools.txt"


def program(name: str) -> Path:
    return VENV / "bin" / name


def environment() -> dict[str, str]:
    """molecule and ansible-lint look for ansible beside themselves on PATH."""
    return {"PATH": f"{VENV / 'bin'}:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}


def paths() -> dict[str, str]:
    """The packages of this checkout, for Python that is started from it."""
    return {**environment(), "PYTHONPATH": f"{ROOT}/plugins/module_utils:{ROOT}/gateway/src:{ROOT}"}


def run_python(*arguments: str) -> subprocess.Popen[bytes]:
    """The checkout's own Python on the terminal that we have."""
    return subprocess.Popen([program("python"), *arguments], cwd=ROOT, env={**os.environ, **paths()})


def packages(journal: Journal, verb: str = "") -> None:
    """Install what the verb needs and this machine has not; without root, name it."""
    verb = verb or journal.verb
    missing = programs.missing(verb)
    if not missing:
        return
    if os.geteuid() != 0:
        raise Failure(
            f"These packages are needed and only root can install them: sudo apt-get install {' '.join(missing)}"
        )
    # a package's own scripts may call whatever Debian has
    system = {"PATH": ":".join(programs.SYSTEM), "DEBIAN_FRONTEND": "noninteractive"}
    if not shutil.which("apt-get", path=system["PATH"]):
        raise Failure(
            f"This machine has no apt-get: install {', '.join(missing)} with its own package manager, then run this "
            "again."
        )
    journal.phase("refresh package lists", ["apt-get", "update", "--quiet"], system)
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]
    with nothing_starts():
        journal.phase(f"install {' '.join(missing)}", [*install, *missing], system)
    programs.confine(journal.verb)


@contextmanager
def nothing_starts() -> Iterator[None]:
    """Debian starts the service of what it installs; a verb wants a program and no Prometheus on every address."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():  # somebody has decided already
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def python_tools(journal: Journal, verb: str = "") -> None:
    """Make .venv hold exactly what is pinned; a stamp with the pins' digest tells whether it does."""
    packages(journal, verb)
    digest = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / "pins.sha256"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    journal.phase("make .venv", [sys.executable, "-m", "venv", "--clear", VENV])
    # uv unpacks in seconds what pip needs minutes for
    install: list[str | Path] = [
        program("pip"),
        "install",
        "--quiet",
        "--require-hashes",
        "-r",
        PINS.with_name("uv.txt"),
    ]
    journal.phase("install uv", install)
    install = [program("uv"), "pip", "install", f"--python={VENV}", "--no-deps", "--require-hashes", "-r", PINS]
    journal.phase("install pinned tools", install, {**environment(), **indexes()})
    # not Ansible's collections: they are 15,000 modules, of which a handful is ever used
    compile_most: list[str | Path] = [
        "-m",
        "compileall",
        "-q",
        "-j",
        "0",
        "-x",
        "/(ansible_collections|ansible_test|tests)/",
        VENV / "lib",
    ]
    journal.phase("compile them", [program("python"), *compile_most])
    stamp.write_text(digest)


def indexes() -> dict[str, str]:
    """Where this machine's pip finds packages, in uv's words."""
    settings = pip_settings(program("python"))  # Debian's own may have no pip
    found = {
        "UV_DEFAULT_INDEX": " ".join(settings.get("index-url", [])),
        "UV_EXTRA_INDEX_URL": " ".join(settings.get("extra-index-url", [])),
        "UV_FIND_LINKS": ",".join(settings.get("find-links", [])),
    }
    # a mirror may be signed by an authority that only this machine knows
    own = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "1"}
    return {**own, **{key: value for key, value in found.items() if value}}


def built(journal: Journal, name: str, python: Path = VENV / "bin" / "python") -> Path:
    """An environment for one lock file, on this machine and in this checkout."""
    pins = PINS.with_name(f"{name}.txt")
    folder = ROOT / ".cache" / f"{name}-{hashlib.sha256(pins.read_bytes() + bytes(python)).hexdigest()[:12]}"
    if not (folder / "complete").is_file():
        uv = {**environment(), **indexes()}
        make: list[str | Path] = [program("uv"), "venv", "--clear", "--python", python, folder]
        journal.phase(f"make an environment for {name}", make, uv)
        install: list[str | Path] = [
            program("uv"),
            "pip",
            "install",
            f"--python={folder}",
            "--no-deps",
            "--require-hashes",
            "-r",
            pins,
        ]
        journal.phase(f"install {name}", install, uv)
        (folder / "complete").touch()
    return folder


def compiled(journal: Journal, python: Path) -> Path:
    """The gateway with its path compiled, as a release has it: a folder to put first in PYTHONPATH."""
    source = ROOT / "gateway" / "src"
    digest = hashlib.sha256(bytes(python) + PINS.with_name("gateway.txt").read_bytes())
    for path in sorted(source.rglob("*.py")):
        digest.update(bytes(path) + path.read_bytes())
    folder = ROOT / ".cache" / f"gateway-compiled-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        aside = folder.with_suffix(f".{os.getpid()}")
        command: list[str | Path] = [python, "-B", "-m", "citadel_gateway.compiled", aside]
        journal.phase("compile the gateway", command, {"PYTHONPATH": str(source)})
        aside.rename(folder)
    return folder
