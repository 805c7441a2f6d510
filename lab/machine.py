"""One lab host: a shared root tree under an overlay of its own, booted by systemd-nspawn."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab.settings import Lab, LabError, LabHost
from lab.shell import run, succeeds

CGROUPS = Path("/sys/fs/cgroup")
# The controllers that enforce MemoryMax, CPUQuota and TasksMax where they are still mounted one by one; AllowedCPUs is
# enforced by version 2 alone, CPUAffinity everywhere.
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids")
# Where systemd keeps track of processes: shared, one host would take another's for its own.
TRACKING = ("systemd", "unified")

# nspawn mounts these read-only; systemd inside needs them writable before it applies a unit's limits.
ENFORCE_LIMITS = """
for name in cpu cpuacct cpuset pids memory; do
    [ -d /sys/fs/cgroup/$name ] || continue
    umount /sys/fs/cgroup/$name
    mount -t cgroup -o $name cgroup /sys/fs/cgroup/$name
done
systemctl daemon-reexec
"""


def split_cgroups() -> bool:
    return (CGROUPS / "memory").is_dir()


def wait(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(otherwise)
        time.sleep(0.1)


def running() -> Iterator[tuple[int, list[str]]]:
    """Every host of every lab on this machine: its nspawn process and the arguments of that."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            arguments = process.read_bytes().decode(errors="replace").split("\0")
            if Path(arguments[0]).name == "systemd-nspawn":
                yield int(process.parent.name), arguments


def refuse_foreign(lab: Lab) -> None:
    """A lab of the same name that another checkout made is not ours to use or to remove."""
    for _, arguments in running():
        folder = next((word.removeprefix("--directory=") for word in arguments if word.startswith("--directory=")), "")
        ours = Path(folder).is_relative_to(lab.directory)
        if any(word.startswith(f"--machine={lab.prefix}-") for word in arguments) and not ours:
            raise LabError(
                f"A lab {lab.prefix!r} runs already and was made from another checkout ({folder}): run `make destroy` "
                "there, or leave LAB_PREFIX away: each checkout has a name of its own."
            )


class Machine:
    """The life of one host. Every method may be called in any state and brings it on from there."""

    def __init__(self, lab: Lab, host: LabHost) -> None:
        self.lab, self.host = lab, host
        self.directory = lab.host_directory(host)
        self.root = self.directory / "root"
        self.console = self.directory / "console.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The nspawn process, found by its arguments: a file with its number could be missing or out of date."""
        return next((pid for pid, arguments in running() if f"--directory={self.root}" in arguments), None)

    @property
    def leader(self) -> int | None:
        """The host's own process 1, seen from outside."""
        if (pid := self.pid) is None:
            return None
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return int(children[0]) if children else None

    def inside(self, *command: str) -> list[str]:
        """A command on the host, with the host's PATH: ours leads to programs of this machine."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["nsenter", "--all", "--target", str(self.leader), "--", "/usr/bin/env", path, *command]

    def start(self, tree: Path, binds: Sequence[str], settle: Callable[[Path], None]) -> None:
        if self.pid is not None:
            return
        self.clear_remains()
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={tree},upperdir={self.directory / 'upper'},workdir={self.directory / 'work'}"
        run("mount", "-t", "overlay", f"citadel-lab-{self.lab.prefix}", "-o", layers, self.root)
        settle(self.root)
        command = [
            *self._scope(),
            "systemd-nspawn",
            f"--directory={self.root}",
            "--boot",
            f"--machine={self.lab.machine(self.host)}",
            f"--hostname={self.host.name}",
            f"--network-bridge={self.lab.bridge}",
            "--resolv-conf=off",
            "--timezone=off",
            "--register=no",
            "--keep-unit",
            *binds,
        ]
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                preexec_fn=self._enter_cgroups,  # noqa: PLW1509 - it only writes files, and takes no lock
            )

    def _scope(self) -> list[str]:
        """Where systemd runs this machine, it is asked for a subtree of its own; else we make one below."""
        if not Path("/run/systemd/system").is_dir():
            return []
        return [
            "systemd-run",
            "--scope",
            "--quiet",
            "--property=Delegate=yes",
            f"--unit=citadel-lab-{self.lab.machine(self.host)}",
        ]

    def _cgroups(self) -> list[Path]:
        if not split_cgroups():
            return []
        hierarchies = [CGROUPS / name for name in (*CONTROLLERS, *TRACKING) if (CGROUPS / name).is_dir()]
        return [hierarchy / f"citadel-lab-{self.lab.machine(self.host)}" for hierarchy in hierarchies]

    def _enter_cgroups(self) -> None:
        """Without a subtree each, the hosts' equally named units would share one limit."""
        for group in self._cgroups():
            group.mkdir(exist_ok=True)
            if group.parent.name == "cpuset":
                for setting in ("cpuset.cpus", "cpuset.mems"):
                    (group / setting).write_text((group.parent / setting).read_text())
                (group / "cgroup.clone_children").write_text("1")
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def await_boot(self, seconds: float = 60) -> None:
        where = f"its console is in {self.console}"

        def answered() -> bool:
            if self.pid is None and (self.process is None or self.process.poll() is not None):
                raise LabError(f"Host {self.host.name} of the lab stopped while it booted; {where}.")
            return self.leader is not None and succeeds(
                *self.inside("systemctl", "is-active", "--quiet", "dbus.service")
            )

        wait(answered, seconds, f"Host {self.host.name} of the lab did not boot within {seconds:.0f} s; {where}.")
        if split_cgroups():
            run(*self.inside("sh", "-ec", ENFORCE_LIMITS))

        def ssh_answers() -> bool:
            try:
                with socket.create_connection((self.lab.address(self.host), 22), timeout=1) as connection:
                    return connection.recv(4) == b"SSH-"
            except OSError:
                return False

        wait(
            ssh_answers,
            seconds,
            f"Host {self.host.name} of the lab does not answer on ssh at "
            f"{self.lab.address(self.host)} after {seconds:.0f} s; {where}.",
        )

    def stop(self) -> None:
        """Power off as a real machine would, and pull the plug if it does not."""
        pid, leader = self.pid, self.leader
        if pid is not None:
            if leader is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(leader, signal.SIGRTMIN + 4)
            try:
                wait(lambda: self.pid is None, 20, "")
            except LabError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    if leader is not None:
                        os.kill(leader, signal.SIGKILL)
                wait(lambda: self.pid is None, 10, f"Host {self.host.name} of the lab (process {pid}) can't be killed.")
        self.clear_remains()

    def clear_remains(self) -> None:
        """Whatever a run that was cut off left of this host: mounts, control groups, its cable."""
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounted if m.startswith(f"{self.root}")), reverse=True):
            run("umount", "--lazy", mount)
        # the kernel lets go of a group only when the last of its processes has been buried
        wait(self._cgroups_are_gone, 60, f"The control groups of {self.host.name} in {CGROUPS} can't be removed.")

    def _cgroups_are_gone(self) -> bool:
        for group in self._cgroups():
            for below in sorted(group.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    below.rmdir()
        return not any(group.exists() for group in self._cgroups())

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
