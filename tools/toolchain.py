"""The programs that the verbs use: Debian packages where they must be, everything else in .venv, pinned."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab import python_mirror
from lab.handover import pip_settings
from tools.phases import ROOT, Failure, Journal

VENV = ROOT / ".venv"
PINS = ROOT / "requirements" / "tools.txt"

# program -> Debian package; what the lab needs besides is in lab/preflight.py
LAB_PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "ssh": "openssh-client",
    # the lab's hosts are Debian, also where this machine is not
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    # the lab's hosts get this machine's Python, and compile against it
    f"{python_mirror.headers()}/Python.h": "python3-dev",
}
TEST_PROGRAMS = {"shellcheck": "shellcheck", "node": "nodejs", "npm": "npm"}


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


def require_python() -> None:
    if sys.version_info < (3, 11):
        raise Failure(
            f"python3 is {sys.version.split()[0]} and 3.11 or newer is needed: use Debian 12 or Ubuntu 24.04, or name "
            "a newer one with `make PYTHON=python3.12 …`."
        )


def packages(journal: Journal, wanted: dict[str, str]) -> None:
    """Install Debian packages of programs that are not there; without root, name them."""
    missing = sorted({package for name, package in wanted.items() if not (shutil.which(name) or Path(name).exists())})
    if not missing:
        return
    if os.geteuid() != 0:
        raise Failure(
            f"These packages are needed and only root can install them: sudo apt-get install {' '.join(missing)}"
        )
    if not shutil.which("apt-get"):
        raise Failure(
            f"This machine has no apt-get: install {', '.join(missing)} with its own package manager, then run this "
            "again."
        )
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    journal.phase("refresh package lists", ["apt-get", "update", "--quiet"], quiet)
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]
    journal.phase(f"install {' '.join(missing)}", [*install, *missing], quiet)


def python_tools(journal: Journal) -> None:
    """Make .venv hold exactly what is pinned; a stamp with the pins' digest tells whether it does."""
    require_python()
    digest = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / "pins.sha256"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    try:
        import ensurepip  # noqa: F401, PLC0415 - Debian ships it in a package of its own
    except ImportError:
        packages(journal, {"ensurepip, which is a module and never on PATH": "python3-venv"})
    journal.phase("make .venv", [sys.executable, "-m", "venv", "--clear", VENV])
    journal.phase(
        "install pinned tools", [program("pip"), "install", "--quiet", "--require-hashes", "--requirement", PINS]
    )
    stamp.write_text(digest)


def indexes() -> dict[str, str]:
    """Where this machine's pip finds packages, in uv's words."""
    settings = pip_settings()
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
    headers = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('include'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    packages(journal, {"gcc": "gcc", f"{headers}/Python.h": "python3-dev"})
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
