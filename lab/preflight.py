"""What a lab needs of this machine, checked before anything is touched; each refusal is one sentence."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import network
from lab.machine import refuse_foreign
from lab.settings import FLEET, Lab, LabError
from lab.shell import succeeds

# program -> the Debian package that brings it
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
DISK_GIB = 25
MEMORY_GIB = 12
# a second LLM server with one model
FLEET_DISK_GIB = 6
FLEET_MEMORY_GIB = 4


def nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("The lab boots real systemd hosts and needs root: run the same command with sudo.")


def room(lab: Lab) -> None:
    """What can be known before anything is installed: root, namespaces, space and memory."""
    require_root()
    if not succeeds("unshare", "--net", "--mount", "--pid", "--fork", "true"):
        raise LabError(
            "This machine does not allow network namespaces, and the lab's hosts live in them: use a virtual machine "
            "or a server of your own instead of a container."
        )
    # what stands already has the space and memory it needs
    standing = lab.record.exists()
    fleet = any(host in FLEET and host.name not in lab.saved().get("hosts", []) for host in lab.hosts)
    disk = (0 if standing else DISK_GIB) + (FLEET_DISK_GIB if fleet else 0)
    memory = (0 if standing else MEMORY_GIB) + (FLEET_MEMORY_GIB if fleet else 0)
    for place in {nearest(lab.cache), nearest(lab.directory)}:
        free = shutil.disk_usage(place).free / 2**30
        if free < disk:
            raise LabError(
                f"The lab needs {disk} GiB of disk and {place} has {free:.1f} GiB free: make "
                f"{disk - free:.1f} GiB of space, or set CITADEL_CACHE to a folder on a larger disk."
            )
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) / 2**20
    if available < memory:
        raise LabError(
            f"The lab with its models needs {memory} GiB of memory and {available:.1f} GiB are available: stop "
            f"something, {'leave FLEET away, ' if fleet else ''}or destroy another lab (`make destroy`)."
        )


def check(lab: Lab) -> None:
    """All that the lab needs of this machine."""
    room(lab)
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if missing:
        raise LabError(f"The lab needs programs that are not installed: apt-get install {' '.join(missing)}")
    refuse_foreign(lab)
    standing = lab.saved().get("network", str(lab.network))
    if standing != str(lab.network):
        raise LabError(
            f"The lab {lab.prefix!r} stands on {standing} and LAB_NETWORK asks for {lab.network}: leave LAB_NETWORK as "
            "it was, or `make destroy` first."
        )
    network.refuse_taken_range(lab)


@contextmanager
def only_one(lab: Lab) -> Iterator[None]:
    """Two runs on one lab would pull hosts from under each other. The kernel drops this lock when its holder dies."""
    require_root()
    path = Path("/run/lock" if os.access("/run/lock", os.W_OK) else "/tmp") / f"citadel-lab-{lab.prefix}.lock"  # noqa: S108
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise LabError(
                f"The lab {lab.prefix!r} is in use by {holder}: wait until that is done, or start a second lab beside "
                "it with LAB_PREFIX=other."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield
        lock.truncate(0)
