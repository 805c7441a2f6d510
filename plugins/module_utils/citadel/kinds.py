"""The kinds of things that a role sets on a host: how each is read back, set, kept from before and put back.

A kind more is a small class here and a line in KINDS. `name` says which thing, `desired` what it shall be; a value is
anything that JSON can hold, and equal to what `read` finds when all is well.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import grp
import hashlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from .release.files import flush_folder
from .topology import GIB, read_meminfo


class NotHereError(Exception):
    """This host has no such thing, or it is not this host's to set; the sentence says why. Told, and gone on."""


class CannotError(Exception):
    """What was tried and what the host said to it."""


@dataclass(frozen=True)
class Item:
    """One thing that a role sets; `options` are those of its kind."""

    kind: str
    name: str
    desired: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def option(self, key: str, default: Any = None) -> Any:
        return self.options.get(key, default)


@dataclass
class Host:
    """The host itself; a root other than `/` serves the tests."""

    root: Path = Path("/")
    told: dict[tuple[str, ...], str] = field(default_factory=dict)

    def inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def ask(self, *command: str) -> str:
        """What a command prints; asked once for all items that read the same."""
        if command not in self.told:
            self.told[command] = self._run(command)
        return self.told[command]

    def act(self, *command: str) -> None:
        self.told.clear()
        self._run(command)

    def _run(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        except FileNotFoundError:
            raise NotHereError(f"{command[0]} is not installed") from None
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
            raise CannotError(f"`{' '.join(command)}` said: {said}")
        return done.stdout


class Kind(ABC):
    """What every kind answers; most need `read` and `set` alone."""

    options: ClassVar[frozenset[str]] = frozenset()

    def problem(self, host: Host, item: Item) -> str:
        """Why the desired value is impossible, found before anything is changed."""
        return ""

    def desired(self, item: Item) -> Any:
        """In the form that `read` gives."""
        return str(item.desired)

    @abstractmethod
    def read(self, host: Host, item: Item) -> Any: ...

    @abstractmethod
    def set(self, host: Host, item: Item) -> None: ...

    def untouchable(self, host: Host, item: Item) -> str:
        """Why this host must not set it, found before anything is changed; empty where it may."""
        return ""

    def keep(self, host: Host, item: Item) -> Any:
        """What `restore` needs to put everything back as it was."""
        return self.read(host, item)

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        self.set(host, Item(item.kind, item.name, kept, item.options))

    def needed(self, host: Host, item: Item) -> str:
        """Why it cannot be put back now, found before anything is."""
        return ""

    def cause(self, host: Host, item: Item, found: Any) -> str:
        """Why it may be otherwise than desired, as far as the host knows."""
        return ""


class Values(Kind):
    """Values that the kernel shows as files: one, or the same one in several places."""

    @abstractmethod
    def paths(self, host: Host, item: Item) -> list[Path]:
        """Never empty: without a place it says why."""

    def read(self, host: Host, item: Item) -> Any:
        return ", ".join(sorted(set(self.keep(host, item).values())))

    def keep(self, host: Host, item: Item) -> dict[str, str]:
        return {f"/{path.relative_to(host.root)}": chosen(path.read_text()) for path in self.paths(host, item)}

    def untouchable(self, host: Host, item: Item) -> str:
        sealed = [path for path in self.paths(host, item) if not os.access(path, os.W_OK)]
        return "it is read-only here and belongs to the machine that this host runs on" if sealed else ""

    def set(self, host: Host, item: Item) -> None:
        for path in self.paths(host, item):
            write_value(path, self.desired(item))

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        for place, value in kept.items():
            path = host.inside(place)
            if not path.exists() or chosen(path.read_text()) == value:
                continue
            write_value(path, value)
            if (now := chosen(path.read_text())) != value:
                raise CannotError(f"it was {value} and is {now}")

    def problem(self, host: Host, item: Item) -> str:
        with contextlib.suppress(NotHereError):
            for path in self.paths(host, item):
                # what is not this host's to set is left, whatever it takes
                known = choices(path) if os.access(path, os.W_OK) else []
                if known and self.desired(item) not in known:
                    return f"{path} takes {', '.join(known)}: choose one of them"
        return ""


def chosen(text: str) -> str:
    """`none [mq-deadline] kyber` is a list of which one is chosen; tabs and blanks are the same."""
    found = re.search(r"\[(\S+)\]", text)
    return found[1] if found else " ".join(text.split())


def choices(path: Path) -> list[str]:
    """What the kernel says that it takes there, if it says so."""
    beside = path.with_name(path.name.replace("_governor", "_available_governors"))
    text = beside.read_text() if beside != path and beside.exists() else path.read_text()
    return text.replace("[", "").replace("]", "").split() if "[" in text or beside != path else []


def write_value(path: Path, value: str) -> None:
    if not os.access(path, os.W_OK):
        raise NotHereError(f"{path} is read-only here and belongs to the machine that this host runs on")
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        raise CannotError(f"the kernel refuses {value!r}: {error.strerror}") from None


class Sysctl(Values):
    FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")

    def desired(self, item: Item) -> str:
        return " ".join(str(item.desired).split())

    def paths(self, host: Host, item: Item) -> list[Path]:
        path = host.inside(f"/proc/sys/{item.name.replace('.', '/')}")
        if not path.exists():
            raise NotHereError("this kernel, or this host's network namespace, has no such setting")
        return [path]

    def problem(self, host: Host, item: Item) -> str:
        if item.name != "vm.nr_hugepages":
            return ""
        if not self.desired(item).isdecimal():
            return "give a number of pages, 0 or more"
        meminfo = read_meminfo(host.inside("/proc/meminfo").read_text(encoding="ascii"))
        asked = int(self.desired(item)) * meminfo.get("Hugepagesize", 0)
        if asked >= meminfo["MemTotal"]:
            return f"that is {asked / GIB:.1f} GiB, and the host has {meminfo['MemTotal'] / GIB:.1f}: ask for fewer"
        return ""

    def set(self, host: Host, item: Item) -> None:
        super().set(host, item)
        compact = host.inside("/proc/sys/vm/compact_memory")
        if item.name == "vm.nr_hugepages" and self.read(host, item) != self.desired(item) and compact.exists():
            write_value(compact, "1")  # makes whole pages of scattered ones, and is worth one more try
            super().set(host, item)

    def cause(self, host: Host, item: Item, found: Any) -> str:
        if item.name == "vm.nr_hugepages" and int(found) < int(self.desired(item)):
            return (
                "the kernel found no more unbroken memory: boot the host anew, whose memory is whole then, or ask for "
                "fewer"
            )
        setting = re.compile(rf"^\s*-?\s*{re.escape(item.name).replace('/', '.')}\s*=\s*(.*?)\s*$", re.MULTILINE)
        for path in self._files(host):
            said = setting.findall(path.read_text(errors="replace"))
            if said and " ".join(said[-1].split()) == found:
                return f"/{path.relative_to(host.root)} sets it to that"
        return "no file of sysctl.d says so: somebody or some program has set it since the last boot"

    def _files(self, host: Host) -> Iterator[Path]:
        yield from (path for path in [host.inside("/etc/sysctl.conf")] if path.is_file())
        for folder in self.FOLDERS:
            yield from sorted((host.root / folder).glob("*.conf"), reverse=True)


class Sysfs(Values):
    """A file below /sys, or a pattern of several that shall all have the value."""

    def paths(self, host: Host, item: Item) -> list[Path]:
        found = sorted(host.root.glob(item.name.lstrip("/")))
        if not found:
            raise NotHereError("this kernel or this machine has no such thing")
        return found


NO_DISKS = ("loop*", "ram*", "zram*", "sr*", "fd*", "nbd*")


class Disk(Values):
    """A setting of the queue of every disk, or of those in `disks`; what only stands for a disk is none."""

    options = frozenset({"disks"})

    def paths(self, host: Host, item: Item) -> list[Path]:
        every = [path.name for path in host.inside("/sys/block").glob("*")]
        disks = [name for name in every if not any(fnmatch.fnmatch(name, pattern) for pattern in NO_DISKS)]
        names = item.option("disks") or disks
        found = [host.inside(f"/sys/block/{name}/queue/{item.name}") for name in sorted(names)]
        missing = next((path.parents[1].name for path in found if not path.exists()), "")
        if missing:
            raise NotHereError(f"there is no disk {missing}")
        # one that has no schedulers, as behind several paths, has nothing to choose
        found = [path for path in found if item.option("disks") or path.read_text().strip() not in {"none", "[none]"}]
        if not found:
            raise NotHereError("this host has no disks that have it")
        return found


class Irq(Values):
    """The cores that interrupts go to, as a list like `0-1`; those that the kernel lets nobody move are left."""

    def paths(self, host: Host, item: Item) -> list[Path]:
        every = host.inside("/proc/irq").glob("[0-9]*/smp_affinity_list")
        found = sorted(path for path in every if path.stat().st_mode & stat.S_IWUSR)
        if not found:
            raise NotHereError("this host has no interrupts that can be moved")
        return found


class File(Kind):
    """A file with its content, mode and owner; `desired: absent` is none. A declaration has the content's digest alone.

    `validate` is a command that is asked before the file comes to its place, with its path instead of %s; `then` are
    commands that are run once when the file has changed or gone.
    """

    options = frozenset({"content", "mode", "owner", "group", "validate", "then"})

    def problem(self, host: Host, item: Item) -> str:
        if not item.name.startswith("/"):
            return "give an absolute path"
        if item.desired != "absent" and not re.fullmatch("[0-7]{3,4}", str(item.option("mode", "0644"))):
            return f"mode = {item.option('mode')!r}: give it as text in octal digits, such as '0644'"
        return ""

    def desired(self, item: Item) -> Any:
        """Either the content itself, or what a declaration has kept of it."""
        if item.desired == "absent":
            return "absent"
        digest = item.desired
        if "content" in item.options:
            digest = hashlib.sha256(str(item.options["content"]).encode()).hexdigest()
        owner, group, mode = (item.option(*one) for one in (("owner", "root"), ("group", "root"), ("mode", "0644")))
        return digest if " " in str(digest) else f"{digest} {owner}:{group} {int(str(mode), 8):04o}"

    def read(self, host: Host, item: Item) -> Any:
        kept = self.keep(host, item)
        if "absent" in kept:
            return "absent"
        digest = hashlib.sha256(base64.b64decode(kept["content"])).hexdigest()
        return f"{digest} {user_name(kept['uid'])}:{group_name(kept['gid'])} {kept['mode']:04o}"

    def keep(self, host: Host, item: Item) -> Any:
        path = host.inside(item.name)
        if path.is_symlink():
            raise CannotError(f"{path} is a link to {path.readlink()}: name the file itself")
        try:
            content, status = path.read_bytes(), path.stat()
        except FileNotFoundError:
            # folders that come with it go with it
            return {"absent": [str(above.relative_to(host.root)) for above in path.parents if not above.exists()]}
        except IsADirectoryError:
            raise CannotError(f"{path} is a folder: move it away") from None
        return {
            "content": base64.b64encode(content).decode(),
            "mode": status.st_mode & 0o7777,
            "uid": status.st_uid,
            "gid": status.st_gid,
        }

    def set(self, host: Host, item: Item) -> None:
        if item.desired == "absent":
            self.restore(host, item, {"absent": []})
            return
        try:
            uid = pwd.getpwnam(item.option("owner", "root")).pw_uid
            gid = grp.getgrnam(item.option("group", "root")).gr_gid
        except KeyError as error:
            raise CannotError(f"there is no such account ({error.args[0]}): make it first") from None
        kept = {"mode": int(str(item.option("mode", "0644")), 8), "uid": uid, "gid": gid}
        self._place(host, item, {**kept, "bytes": str(item.options["content"]).encode()})

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        if "absent" in kept:
            path = host.inside(item.name)
            path.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                flush_folder(path.parent)
            with contextlib.suppress(OSError):  # somebody else has put something there
                for folder in kept["absent"]:
                    (host.root / folder).rmdir()
        else:
            self._place(host, item, {**kept, "bytes": base64.b64decode(kept["content"])}, checked=False)

    def _place(self, host: Host, item: Item, wanted: Mapping[str, Any], checked: bool = True) -> None:
        path = host.inside(item.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # beside it, in a folder that no program takes its configuration from
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".citadel-") as folder:
            aside = Path(folder) / path.name
            with aside.open("xb") as stream:
                os.fchown(stream.fileno(), wanted["uid"], wanted["gid"])
                os.fchmod(stream.fileno(), wanted["mode"])
                stream.write(wanted["bytes"])
                stream.flush()
                os.fsync(stream.fileno())
            if checked and item.option("validate"):
                host.act(*[word.replace("%s", str(aside)) for word in item.option("validate")])
            aside.replace(path)
        flush_folder(path.parent)

    def cause(self, host: Host, item: Item, found: Any) -> str:
        path = host.inside(item.name)
        if not path.exists():
            return "somebody has taken it away"
        status = path.stat()
        at = datetime.fromtimestamp(status.st_ctime, UTC)
        return f"it was changed at {at:%Y-%m-%d %H:%M:%S} UTC and belongs to {user_name(status.st_uid)}"


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


class Unit(Kind):
    """A unit of systemd. `desired` is what systemctl says of it: `enabled active`, `disabled inactive`, `- active`."""

    PROPERTIES = ("LoadState", "UnitFileState", "ActiveState", "NeedDaemonReload", "StateChangeTimestamp")

    def problem(self, host: Host, item: Item) -> str:
        enabled, _, active = str(item.desired).partition(" ")
        if enabled in {"enabled", "disabled", "masked", "-"} and active in {"active", "inactive", "-"}:
            return ""
        return "give `enabled`, `disabled`, `masked` or `-`, and `active`, `inactive` or `-`"

    def show(self, host: Host, item: Item) -> dict[str, str]:
        told = host.ask("systemctl", "show", f"--property={','.join(self.PROPERTIES)}", item.name)
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def read(self, host: Host, item: Item) -> Any:
        shown = self.show(host, item)
        wanted = str(item.desired).split(" ")
        # one that is not there is disabled enough
        without = "disabled" if wanted[0] == "disabled" else "not-there"
        found = (shown.get("UnitFileState") or without, shown.get("ActiveState") or "inactive")
        # what is not asked for is not looked at
        return " ".join("-" if len(wanted) > n and wanted[n] == "-" else one for n, one in enumerate(found))

    def keep(self, host: Host, item: Item) -> Any:
        shown = self.show(host, item)
        return f"{shown.get('UnitFileState') or 'disabled'} {shown.get('ActiveState') or 'inactive'}"

    def set(self, host: Host, item: Item) -> None:
        enabled, _, active = str(item.desired).partition(" ")
        shown = self.show(host, item)
        if shown.get("NeedDaemonReload") == "yes" or shown.get("LoadState") == "not-found":
            host.act("systemctl", "daemon-reload")
        verbs = {"enabled": "enable", "disabled": "disable", "masked": "mask"}
        if enabled != "masked" and shown.get("UnitFileState") == "masked":
            host.act("systemctl", "unmask", item.name)
        if enabled in verbs:
            host.act("systemctl", verbs[enabled], "--quiet", item.name)
        if active in {"active", "inactive"}:
            host.act("systemctl", "start" if active == "active" else "stop", item.name)

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        if self.show(host, item).get("LoadState") == "not-found":
            return
        enabled, _, active = str(kept).partition(" ")
        wanted = str(item.desired).partition(" ")
        was = enabled if enabled in {"enabled", "disabled", "masked"} and wanted[0] != "-" else "-"
        runs = (
            ("active" if active in {"active", "activating", "reloading"} else "inactive") if wanted[2] != "-" else "-"
        )
        self.set(host, Item(item.kind, item.name, f"{was} {runs}"))

    def cause(self, host: Host, item: Item, found: Any) -> str:
        at = self.show(host, item).get("StateChangeTimestamp")
        return f"its state changed at {at}; `journalctl -u {item.name}` tells why" if at else ""


class Mount(Kind):
    """An option of a file system that is mounted there; where nothing is, there is nothing to set."""

    def options_of(self, host: Host, item: Item) -> list[str]:
        place = os.path.realpath(item.name) if host.root == Path("/") else item.name
        lines = host.inside("/proc/self/mountinfo").read_text().splitlines()
        found = [line.split()[5] for line in lines if line.split()[4] == place]
        if not found:
            raise NotHereError("nothing of its own is mounted there")
        return found[-1].split(",")

    def read(self, host: Host, item: Item) -> Any:
        found = self.options_of(host, item)
        wanted = self.desired(item).split(",")
        return self.desired(item) if all(one in found for one in wanted) else ",".join(found)

    def keep(self, host: Host, item: Item) -> Any:
        found = self.options_of(host, item)
        # which the kernel shows only when it is not the default
        return [*found, *(["strictatime"] if not {"noatime", "relatime"} & set(found) else [])]

    def set(self, host: Host, item: Item) -> None:
        host.act("mount", "-o", f"remount,{self.desired(item)}", item.name)

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        with contextlib.suppress(NotHereError):
            if self.keep(host, item) == kept:
                return
            # mount of util-linux 2.38 keeps noatime beside relatime unless it is told to give it up
            words = kept if "noatime" in kept else ["atime", *kept]
            host.act("mount", "-o", f"remount,{','.join(words)}", item.name)
            if (now := self.keep(host, item)) != kept:
                raise CannotError(f"it was {','.join(kept)} and is {','.join(now)}")

    def cause(self, host: Host, item: Item, found: Any) -> str:
        return "it was mounted anew; /etc/fstab or its mount unit may say otherwise"


class FileSystem(Kind):
    """A disk or partition with a file system of ours. One that has data is never written to, and none is undone."""

    options = frozenset({"large_files"})
    # may be made there: nothing else is of use to us
    MADE = "ext4"

    def problem(self, host: Host, item: Item) -> str:
        device = host.inside(item.name)
        if item.desired != self.MADE:
            return f"what is made is {self.MADE}"
        if not device.exists():
            return "there is no such device: `lsblk` tells which there are"
        if not stat.S_ISBLK(device.stat().st_mode):
            return "it is no block device: give a disk or a partition, such as /dev/disk/by-id/…"
        found = self.read(host, item)
        if found not in {self.MADE, "nothing"}:
            return f"it has data ({found}): whoever is sure that nobody needs it says `wipefs --all {item.name}`"
        holders = list(host.inside(f"/sys/class/block/{device.resolve().name}/holders").glob("*"))
        parts = list(host.inside(f"/sys/class/block/{device.resolve().name}").glob("*/partition"))
        users = [*(path.name for path in holders), *(path.parent.name for path in parts)]
        return f"{', '.join(users)} use it: name one of them, or free it first" if users else ""

    def read(self, host: Host, item: Item) -> Any:
        probe = ["blkid", "--probe", "--output", "export", item.name]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        found = [said[key] for key in ("TYPE", "PTTYPE") if key in said]
        if found:
            return found[0] if len(found) == 1 else " and ".join(found)
        # 2: no signature that is known
        return "nothing" if done.returncode == 2 else f"unknown: {done.stderr.strip()}"

    def set(self, host: Host, item: Item) -> None:
        if self.read(host, item) != "nothing":
            raise CannotError("it has data by now")
        host.act("mkfs.ext4", "-q", *(["-T", "largefile"] if item.option("large_files") else []), item.name)

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        """What is on a disk stays there."""


class Mounted(Kind):
    """A file system that a mount unit mounts there, and the options that it has then."""

    options = frozenset({"source", "memory"})

    def unit(self, item: Item) -> str:
        """As systemd-escape(1) says it."""
        escaped = "".join(c if c.isalnum() or c in ":_./" else f"\\x{ord(c):02x}" for c in item.name.strip("/"))
        return escaped.replace("/", "-") + ".mount"

    def entries(self, host: Host) -> list[list[str]]:
        return [line.split() for line in host.inside("/proc/self/mountinfo").read_text().splitlines()]

    def here(self, host: Host, item: Item) -> list[str] | None:
        """Source, and all options, of what is mounted there on top."""
        found = [entry for entry in self.entries(host) if entry[4] == item.name]
        if not found:
            return None
        kind, source, more = found[-1][-3:]
        return [source if kind != "tmpfs" else "tmpfs", *found[-1][5].split(","), *more.split(",")]

    def problem(self, host: Host, item: Item) -> str:
        source, path = str(item.option("source", "")), host.inside(item.name)
        memory = read_meminfo(host.inside("/proc/meminfo").read_text(encoding="ascii"))["MemTotal"]
        if (asked := int(item.option("memory", 0))) >= memory:
            return (
                f"with the other caches it is {asked / GIB:.1f} GiB, and the host has {memory / GIB:.1f} GiB of "
                "memory: ask for less"
            )
        device = str(host.inside(source).resolve())
        elsewhere = [
            entry[4]
            for entry in self.entries(host)
            if entry[4] != item.name and entry[-2].startswith("/") and os.path.realpath(entry[-2]) == device
        ]
        if elsewhere:
            return f"{source} is mounted at {elsewhere[0]}: unmount it there, or name another"
        here = self.here(host, item)
        if here is not None:
            same = here[0] == source or os.path.realpath(here[0]) == device
            return "" if same else f"{here[0]} is mounted there by somebody else: unmount it, or choose another place"
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            return "it is there and is no folder: move it away"
        if path.is_dir() and (inside := sorted(one.name for one in path.iterdir())):
            return (
                f"the folder has something in it ({', '.join(inside[:3])}), which nobody could see then: move it away, "
                "and into the file system when that is mounted"
            )
        return ""

    def read(self, host: Host, item: Item) -> Any:
        here = self.here(host, item)
        if here is None:
            return "not mounted"
        wanted = self.desired(item).split(",")
        return self.desired(item) if all(one in here for one in wanted) else ",".join(here)

    def keep(self, host: Host, item: Item) -> Any:
        return None  # before us nothing was there, which `problem` has seen to

    def set(self, host: Host, item: Item) -> None:
        host.act("systemctl", "daemon-reload")
        # mounted anew with its new options, or for the first time
        host.act("systemctl", "reload-or-restart", self.unit(item))

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        if self.here(host, item) is not None:
            host.act("systemctl", "stop", self.unit(item))

    def needed(self, host: Host, item: Item) -> str:
        if self.here(host, item) is None:
            return ""
        users = host.ask("systemctl", "show", "--property=RequiredBy", "--value", self.unit(item)).split()
        states = {user: host.ask("systemctl", "show", "--property=ActiveState", "--value", user) for user in users}
        running = [user for user, state in states.items() if state.strip() not in {"inactive", "failed"}]
        return f"{', '.join(sorted(running))} would end with it: stop that first" if running else ""

    def cause(self, host: Host, item: Item, found: Any) -> str:
        return f"`systemctl status {self.unit(item)}` tells why"


class Space(Kind):
    """How many GiB a place shall have, by itself or as a part of what it lies on. Fewer are told, and gone on."""

    def desired(self, item: Item) -> Any:
        return f"{float(item.desired):g} GiB"

    def read(self, host: Host, item: Item) -> Any:
        path = host.inside(item.name)
        while not path.exists():
            path = path.parent
        usage = shutil.disk_usage(path)
        # what a file system needs for itself, and who counts in units of a thousand
        if usage.total >= float(item.desired) * GIB * 0.9:
            return self.desired(item)
        own = os.path.ismount(path) and path == host.inside(item.name)
        what = "its file system" if own else "the file system that it lies on"
        raise NotHereError(f"{what} has {usage.total / GIB:.1f} GiB: mount a larger one there, or ask for less")

    def set(self, host: Host, item: Item) -> None:
        """Nothing: it fits, or `read` has said why it does not."""

    def keep(self, host: Host, item: Item) -> Any:
        return None

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        """Nothing was done."""


class Command(Kind):
    """What a command prints, such as `sshd -T`; with `word`, what stands behind that word. What it reads from is set
    by other items, or by `set`."""

    options = frozenset({"read", "word", "set"})

    def problem(self, host: Host, item: Item) -> str:
        return "" if item.option("read") else "say in `read` which command tells it"

    def read(self, host: Host, item: Item) -> Any:
        told = host.ask(*item.option("read"))
        word = item.option("word")
        if not word:
            return told.strip()
        return ", ".join(
            line.partition(" ")[2].strip() for line in told.splitlines() if line.partition(" ")[0].lower() == word
        )

    def set(self, host: Host, item: Item) -> None:
        if item.option("set"):
            host.act(*item.option("set"))

    def keep(self, host: Host, item: Item) -> Any:
        return None

    def restore(self, host: Host, item: Item, kept: Any) -> None:
        """What it reads from is put back by its own item."""


KINDS: dict[str, Kind] = {
    "sysctl": Sysctl(),
    "sysfs": Sysfs(),
    "disk": Disk(),
    "irq": Irq(),
    "file": File(),
    "unit": Unit(),
    "mount": Mount(),
    "filesystem": FileSystem(),
    "mounted": Mounted(),
    "space": Space(),
    "command": Command(),
}
