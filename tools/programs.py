"""Every program that this repository starts on the machine it stands on, in one list.

A verb finds `.venv/bin` and a folder of links made from this list: what is not declared here is found nowhere, so
that it fails on the machine of whoever wrote it and not on somebody else's.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tools.phases import ROOT, Failure

FOLDER = ROOT / ".cache" / "programs"
# Where the packages below put their programs; `sbin` is not on everybody's PATH, and a version manager's stand-in is
# no use without the rest of that manager's PATH.
SYSTEM = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

TCMALLOC = "*/libtcmalloc_minimal.so.4"  # which every unit of a model has
OS_RELEASE = Path("/etc/os-release")
# Debian 13 has it in a package of its own
PROMTOOL = "promtool" if OS_RELEASE.exists() and "=trixie" in OS_RELEASE.read_text() else "prometheus"
EVERY = frozenset({"every verb"})
ESTATE = frozenset(
    {
        *(
            "plan",
            "deploy",
            "rollback",
            "releases",
            "keys",
            "variants",
            "audit",
            "smoke",
            "status",
            "validate",
            "drift",
            "untune",
            "register",
            "unregister",
        ),
        *("demo", "test", "prove-alerts", "prove-usage", "bench-deploy"),
    }
)
LAB = frozenset({"demo", "test", "bench-deploy", "destroy"})
BESIDE_OTHERS = frozenset({"bench-gateway", "bench-companion", "bench-hostile"})
CHECK = frozenset({"check", "test"})


@dataclass(frozen=True)
class Need:
    """Programs of one Debian package, or something else of it that `there` looks for."""

    package: str
    verbs: frozenset[str]
    programs: str = ""
    there: Callable[[], bool] | None = None
    # used where it is, and not missed where it is not
    optional: bool = False

    def names(self) -> list[str]:
        return self.programs.split()

    def found(self) -> bool:
        return all(find(name) for name in self.names()) and (self.there is None or self.there())


NEEDS = (
    # Debian's essential packages, as far as they are used: their programs may stand in any script without a thought.
    Need(
        "coreutils",
        EVERY,
        "[ arch b2sum base32 base64 basename basenc cat chcon chgrp chmod chown chroot cksum comm cp csplit cut date "
        "dd df dir dircolors dirname du echo env expand expr factor false fmt fold groups head hostid id install join "
        "link ln logname ls md5sum mkdir mkfifo mknod mktemp mv nice nl nohup nproc numfmt od paste pathchk pinky pr "
        "printenv printf ptx pwd readlink realpath rm rmdir runcon seq sha1sum sha224sum sha256sum sha384sum sha512sum "
        "shred shuf sleep sort split stat stdbuf stty sum sync tac tail tee test timeout touch tr true truncate tsort "
        "tty uname unexpand uniq unlink users vdir wc who whoami yes",
    ),
    Need("dash", EVERY, "sh"),
    Need("bash", EVERY, "bash"),
    Need("sed", EVERY, "sed"),
    Need("grep", EVERY, "grep"),
    Need("hostname", EVERY, "hostname"),
    # of every checkout
    Need("python3", EVERY, "python3"),
    Need("python3-venv", EVERY, there=lambda: importlib.util.find_spec("ensurepip") is not None),
    Need("git", EVERY, "git"),
    Need("make", EVERY, "make"),
    Need("mawk", EVERY, "awk"),
    # Ansible's way to a host
    Need("openssh-client", ESTATE, "ssh sftp scp ssh-keygen"),
    # the hosts of a lab
    Need("systemd-container", LAB, "systemd-nspawn"),
    Need("systemd", LAB, "systemd-run"),
    Need("mmdebstrap", LAB, "mmdebstrap"),
    # the lab's hosts are Debian, also where this machine is not
    Need("debian-archive-keyring", LAB, there=Path("/usr/share/keyrings/debian-archive-keyring.gpg").is_file),
    Need("apt", LAB, "apt-get apt-config"),
    Need("dpkg", LAB, "dpkg dpkg-deb"),
    Need("tar", LAB, "tar"),
    Need("util-linux", LAB, "unshare nsenter"),
    Need("mount", LAB, "mount umount"),
    Need("iproute2", LAB, "ip"),
    Need("nftables", LAB, "nft"),
    # a firewall that drops forwarded packets is asked to let the lab's pass
    Need("iptables", LAB, "iptables", optional=True),
    # the tests
    Need("shellcheck", CHECK, "shellcheck"),
    Need("nodejs", CHECK, "node"),
    Need("npm", CHECK, "npm"),
    Need("openssl", CHECK | {"bench-gateway"}, "openssl"),
    # of rules, routes and targets: both themselves, and what says whether they would take something
    Need("prometheus", CHECK, "prometheus"),
    Need(PROMTOOL, CHECK, "promtool"),
    Need("prometheus-alertmanager", CHECK, "amtool prometheus-alertmanager"),
    # of the companion: a database of the tests' own
    Need(
        "postgresql", CHECK | {"bench-companion"}, there=lambda: any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    ),
    # of the gateway: a Redis of the tests' own
    Need("redis-server", CHECK | {"bench-companion"}, "redis-server"),
    Need("util-linux", CHECK | {"bench-companion"}, "runuser"),
    Need("util-linux", CHECK, "prlimit"),
    # of the role environment, which tests run on this machine too
    Need("util-linux", frozenset({"test"}), "flock"),
    # a core for each side of a measurement
    Need("util-linux", BESIDE_OTHERS | {"bench-serving", "bench-host"}, "taskset"),
    # vLLM asks it for the cores that it has
    Need("util-linux", frozenset({"bench-serving", "bench-host", "bench-accuracy"}), "lscpu"),
    # torch asks it for a digest before it compiles, which the untuned server does
    Need("openssl", frozenset({"bench-serving"}), "openssl"),
    # of the role host likewise, and what reads the settings of needrestart
    Need("libc-bin", CHECK, "getent"),
    Need("dpkg", CHECK, "dpkg-query"),
    Need("perl-base", CHECK, "perl"),
    # of the role storage: a disk that is a file gets a file system
    Need("mount", CHECK, "losetup"),
    Need("util-linux", CHECK, "blkid mkswap"),
    Need("e2fsprogs", CHECK, "mkfs.ext4"),
    # of the role logs: the rotation that a host has
    Need("logrotate", CHECK, "logrotate"),
    # named by units, whose programs systemd-analyze looks for
    Need("procps", CHECK, "kill"),
    Need("systemd", CHECK, "systemd-analyze systemd-escape"),
    Need("openssh-client", CHECK, "ssh ssh-keygen"),
    # the gateway's path is compiled
    Need("gcc", BESIDE_OTHERS | {"test"}, f"gcc {platform.machine()}-linux-gnu-gcc"),
    Need("binutils", BESIDE_OTHERS | {"test", "bench-serving"}, "as ld"),
    Need("python3-dev", LAB, there=lambda: Path(sysconfig.get_path("include"), "Python.h").is_file()),
    # measuring: the gateway as it is deployed, with the distribution's Python, beside others
    Need(
        "python3-dev",
        BESIDE_OTHERS,
        there=lambda: any(Path("/usr/include").glob("python3*/Python.h")),
    ),
    Need("haproxy", frozenset({"bench-gateway"}), "haproxy"),
    Need("nginx", frozenset({"bench-gateway", "bench-companion"}), "nginx"),
    Need("wrk", frozenset({"bench-gateway", "bench-companion"}), "wrk"),
    Need("g++", frozenset({"bench-serving"}), "g++"),
    # llama.cpp is compiled for this processor
    Need("gcc", frozenset({"bench-serving"}), "gcc"),
    Need("binutils", frozenset({"bench-serving"}), "ar ranlib"),
    Need("cmake", frozenset({"bench-serving"}), "cmake"),
    Need("ninja-build", frozenset({"bench-serving"}), "ninja"),
    Need(
        "libtcmalloc-minimal4",
        frozenset({"bench-serving", "bench-host"}),
        there=lambda: any(Path("/usr/lib").glob(TCMALLOC)),
    ),
)


def needs(verb: str) -> Iterator[Need]:
    return (need for need in NEEDS if need.verbs == EVERY or verb in need.verbs)


def missing(verb: str) -> list[str]:
    """Packages that this verb needs and this machine has not."""
    importlib.invalidate_caches()
    return sorted({need.package for need in needs(verb) if not (need.optional or need.found())})


def find(name: str) -> Path | None:
    """Where a program of this machine is, from inside of a verb's PATH as well."""
    if name == "python3":
        # the real interpreter that runs this: neither a version manager's stand-in nor an environment's link
        return Path(sys.executable).resolve()
    found = shutil.which(name, path=":".join([*SYSTEM, os.environ.get("PATH", "")]))
    if found is None:
        return None
    return Path(found).readlink() if FOLDER in Path(found).parents else Path(found)


def confine(verb: str) -> None:
    """From here on this process, and all that it starts, finds what its verb declares and nothing else."""
    folder = FOLDER / verb
    try:
        _links(folder, verb)
    except PermissionError as error:
        raise Failure(
            f"{error.filename} belongs to somebody else, who ran a verb in this checkout before: run this one as the "
            f"same user, or remove {FOLDER.parent}."
        ) from None
    os.environ["PATH"] = str(folder)


def _links(folder: Path, verb: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: path for need in needs(verb) for name in need.names() if (path := find(name))}
    for link in folder.iterdir():
        if link.name not in wanted:
            link.unlink(missing_ok=True)
    for name, path in wanted.items():
        link = folder / name
        if link.is_symlink() and link.readlink() == path:
            continue
        # renamed into its place, since the same verb may run beside us
        aside = folder / f".{name}.{os.getpid()}"
        with suppress(FileNotFoundError):  # another run took it for a stray link; it makes the same one
            aside.symlink_to(path)
            aside.replace(link)
