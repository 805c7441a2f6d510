"""Root trees of lab hosts: built once by mmdebstrap for a list of packages, kept under a digest of all inputs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.settings import BASE_PACKAGES, SUITE, Lab
from lab.shell import lines, run

# What a fresh tree must not carry from one host to the next, and what would only wake up to use the network.
CLEAN = (
    'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/var/lib/dbus/machine-id',
    'chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer systemd-networkd-wait-online.service',
    'chroot "$1" systemctl enable systemd-networkd.service',
)

# apt of this machine may go through a proxy or read an archive of an old date; a lab host has to do the same.
APT_SETTINGS = re.compile(r"^Acquire::(http|https|Check-|Retries|ForceIPv)", re.IGNORECASE)


def apt_sources() -> str:
    """This machine's own package sources if it runs the same Debian, else the distribution's defaults."""
    release = Path("/etc/os-release").read_text()
    if f"VERSION_CODENAME={SUITE}" not in release:
        return ""
    parts = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))]
    texts = [part.read_text().strip() + "\n" for part in parts if part.is_file()]
    # a list of mirrors in a file, or another vendor's key, is not there inside the tree
    return "\n".join(text for text in texts if SUITE in text and "debian-archive" in text and "file:" not in text)


def apt_settings() -> str:
    kept = [line for line in lines("apt-config", "dump") if APT_SETTINGS.match(line)]
    return "\n".join(kept) + "\n"


def tree(lab: Lab, packages: Sequence[str]) -> Path:
    """The tree of a lab host with these packages."""
    return bare_tree(lab.cache, [*BASE_PACKAGES, *packages], CLEAN)


def bare_tree(cache: Path, wanted: Sequence[str], hooks: Sequence[str] = ()) -> Path:
    """Return the tree with these packages alone, building it first if no earlier run has."""
    sources, settings = apt_sources(), apt_settings()
    inputs = "\0".join([SUITE, *wanted, sources, settings, *hooks, "with package lists"])
    target = cache / "trees" / hashlib.sha256(inputs.encode()).hexdigest()[:16]
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
            *(f"--customize-hook={hook}" for hook in hooks),
            SUITE,
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
