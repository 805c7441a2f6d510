"""Root trees of lab hosts: built once by mmdebstrap for a list of packages, kept under a digest of all inputs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.settings import BASE_PACKAGES, BOOKWORM, Lab
from lab.shell import lines, run

# What a fresh tree must not carry from one host to the next, and what would only wake up to use the network.
CLEAN = (
    'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/var/lib/dbus/machine-id',
    'chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer systemd-networkd-wait-online.service',
    'chroot "$1" systemctl enable systemd-networkd.service',
)

# apt of this machine may go through a proxy or read an archive of an old date; a lab host has to do the same.
APT_SETTINGS = re.compile(r"^Acquire::(http|https|Check-|Retries|ForceIPv)", re.IGNORECASE)


def apt_sources(suite: str) -> str:
    """This machine's own sources of Debian, for this suite if the machine runs another; else the distribution's."""
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    if release is None:
        return ""
    parts = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))]
    return for_suite([part.read_text() for part in parts if part.is_file()], release[1], suite)


def for_suite(texts: Sequence[str], own: str, suite: str) -> str:
    """Only Debian's own: a list of mirrors in a file, or another vendor's key, is not there inside the tree."""
    kept = [text.strip() + "\n" for text in texts if own in text and "debian-archive" in text and "file:" not in text]
    return re.sub(rf"\b{own}\b", suite, "\n".join(kept))


def apt_settings() -> str:
    kept = [line for line in lines("apt-config", "dump") if APT_SETTINGS.match(line)]
    return "\n".join(kept) + "\n"


def tree(lab: Lab, packages: Sequence[str], suite: str = BOOKWORM) -> Path:
    """Return the tree with these packages, building it first if no earlier run has."""
    wanted = [*BASE_PACKAGES, *packages]
    sources, settings = apt_sources(suite), apt_settings()
    inputs = "\0".join([suite, *wanted, sources, settings, *CLEAN, "with package lists"])
    target = lab.cache / "trees" / hashlib.sha256(inputs.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    # Built under a name that nobody reads and renamed when whole: an interrupted build leaves no half tree behind.
    building = target.with_name(f"{target.name}.{os.getpid()}.part")
    for old in target.parent.glob(f"{target.name}.*.part"):
        if not Path(f"/proc/{old.suffixes[-2][1:]}").exists():  # who built it is gone; another lab's may still grow
            shutil.rmtree(old, ignore_errors=True)
    building.mkdir(parents=True)
    configuration = building.with_suffix(".apt")
    configuration.write_text(settings)
    try:
        run(
            "env",
            "LC_ALL=C.UTF-8",
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            # a server that has been installed knows its packages; check mode needs that on a fresh host
            "--skip=cleanup/apt/lists",
            f"--include={','.join(wanted)}",
            f"--aptopt={configuration}",
            *(f"--customize-hook={hook}" for hook in CLEAN),
            suite,
            building,
            *(["-"] if sources else []),
            stdin=sources or None,
        )
        if not target.is_dir():  # another lab may have been faster
            building.rename(target)
    finally:
        configuration.unlink(missing_ok=True)
        shutil.rmtree(building, ignore_errors=True)
    return target
