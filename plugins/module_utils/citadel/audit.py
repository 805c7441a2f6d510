"""Looks for what makes this host easier to break into than it has to be, each with a remedy; then shows what it saw."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .access import LOOPBACK, effective
from .inspection import SECTIONS, SSH, shown
from .known_weaknesses import AS_OF, KNOWN_WEAKNESSES, Weakness
from .release.layout import Layout
from .status import settings

# severity -> status of the verb; 2 is argparse's, for words that it does not know
STATUS = {"note": 0, "warning": 1, "critical": 3}
SHOWN = 5  # of many of a kind
# who asks for an address by DHCP listens, and so does the name service of the host
HARMLESS_UDP = (68, 546)
EXPOSURE = 5.0  # systemd calls more than this MEDIUM
MANY_FAILED = 20  # logins in a day
OLD_LISTS = 7  # days since apt last looked
OLD_KNOWLEDGE = 90

# unit -> the exposure that it may have, and why
WAIVERS: dict[str, tuple[float, str]] = {
    "citadel-recover.service": (9.8, "root at boot, who puts links and units of a release right"),
    "citadel-activate.service": (9.8, "root while a release is switched; it starts and stops every other unit"),
    "host-access-revert.service": (9.8, "root at boot, who puts ssh and firewall back; it reads one file of root's"),
    "host-access-timer.service": (9.8, "the same, while a change waits for a new connection"),
    "host-firewall.service": (9.8, "loads rules of root's into the kernel and ends"),
    "citadel-sockets.service": (9.8, "/bin/true, which holds the sockets open"),
    "citadel-logs.service": (
        5.6,
        "an ordinary account without network, devices or capabilities; it reads all journals",
    ),
    "citadel-revive@*.service": (9.8, "one systemctl start, which only root may"),
}

Show = Callable[[list[str]], str]


@dataclass(frozen=True)
class Finding:
    severity: str
    subject: str
    said: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.subject}: {self.said}. {self.remedy}."


def listening(told: str, contract: Mapping[int, str], closed: bool) -> Iterator[Finding]:
    """Of `ss -Hlntup`: what others may reach and nobody has promised them."""
    for line in told.splitlines():
        words = line.split()
        if len(words) < 5 or words[0] not in {"tcp", "udp"}:
            continue
        address, _, port = words[4].rpartition(":")
        plain = address.strip("[]").partition("%")[0]
        number = int(port) if port.isdecimal() else 0
        if plain.startswith("127.") or plain in LOOPBACK or (words[0] == "udp" and number in HARMLESS_UDP):
            continue
        if words[0] == "tcp" and number in contract:
            continue
        who = re.search(r'\(\("([^"]+)"', line)
        yield Finding(
            "note" if closed else "warning",
            f"port {number}/{words[0]}",
            f"{who[1] if who else 'somebody'} listens on {address}, and the contract has no such door"
            + (" (the firewall lets nobody in there)" if closed else ""),
            "Stop it, let it listen on 127.0.0.1, or close it in the network",
        )


def firewall(profile: str, rules: str) -> Iterator[Finding]:
    if profile == "production" and "policy drop" not in rules:
        yield Finding(
            "critical",
            "firewall",
            "production has none: the table inet citadel is not loaded",
            "`systemctl restart host-firewall`; if there is no such unit, deploy once more",
        )


def ssh(profile: str, told: str) -> Iterator[Finding]:
    """Of `sshd -T`."""
    found = effective(told)
    root, passwords = found.get("permitrootlogin", ""), found.get("passwordauthentication") == "yes"
    again = "Deploy once more, and see which file of /etc/ssh/sshd_config.d says so"
    if root == "yes":
        yield Finding("critical", "ssh", "root may come in, with a password where passwords are taken", again)
    elif root and root != "no":
        remedy = "Deploy as a user with sudo (CITADEL_SSH_USER), and root is refused"
        yield Finding("critical" if profile == "production" else "note", "ssh", "root may come in with a key", remedy)
    if passwords and profile == "production":
        yield Finding("critical", "ssh", "passwords are taken", again)
    elif passwords:
        yield Finding("note", "ssh", "passwords are taken, as the profile development has it", "See production")


def logins(failed: str) -> Iterator[Finding]:
    """Of the last day's lines of sshd."""
    lines = failed.splitlines()
    sources = Counter(re.findall(r"\b(?:from|user \S+) ([0-9a-f]+[.:][0-9a-f.:]+)", failed))
    if len(lines) >= MANY_FAILED:
        often = ", ".join(f"{source} ({count})" for source, count in sources.most_common(SHOWN))
        yield Finding(
            "warning",
            "logins",
            f"{len(lines)} failed in a day" + (f", most of them from {often}" if often else ""),
            "See who that is; the profile production takes no passwords and lets only access_management in",
        )


def exposure(table: str, waivers: Mapping[str, tuple[float, str]] = WAIVERS) -> Iterator[Finding]:
    """Of the lines of `systemd-analyze security` that name our units."""
    for unit, figure in re.findall(r"^\s*((?:citadel|host)-\S+)\s+([\d.]+)\s", table, re.MULTILINE):
        allowed = next((limit for name, (limit, _) in waivers.items() if fnmatch.fnmatch(unit, name)), EXPOSURE)
        if float(figure) > allowed:
            yield Finding(
                "warning",
                unit,
                f"its exposure is {figure} and shall be {allowed} at most",
                f"`systemd-analyze security {unit}` says what it may do and need not",
            )


@dataclass(frozen=True)
class Secret:
    """Files that a pattern names: which bits nobody but their owner may have, and how bad they are."""

    pattern: str
    forbidden: int
    severity: str


SECRETS = (
    Secret("opt/citadel/keys", 0o077, "critical"),
    Secret("opt/citadel/keys/*", 0o077, "critical"),
    Secret("etc/citadel/credentials", 0o077, "critical"),
    Secret("etc/citadel/credentials/*", 0o077, "critical"),
    Secret("etc/ssh/ssh_host_*_key", 0o077, "critical"),
    Secret("etc/citadel/firewall.nft", 0o022, "critical"),
    Secret("opt/citadel/config/**/*", 0o022, "warning"),
    Secret("var/log/citadel-llm", 0o007, "warning"),
    Secret("var/log/citadel-llm/*", 0o027, "warning"),
)


def modes(root: Path, secrets: Sequence[Secret] = SECRETS) -> Iterator[Finding]:
    for secret in secrets:
        for path in sorted(root.glob(secret.pattern)):
            mode = path.lstat().st_mode & 0o777
            if path.is_symlink() or (path.is_dir() and "*" in secret.pattern) or not mode & secret.forbidden:
                continue
            others = "read" if mode & secret.forbidden & 0o055 else "write"
            yield Finding(
                secret.severity,
                f"/{path.relative_to(root)}",
                f"its mode is {mode:04o}, so that others may {others} it",
                f"`chmod {mode & ~secret.forbidden:04o} /{path.relative_to(root)}`",
            )


def writable(found: str) -> Iterator[Finding]:
    """Of the section with files that root runs and others may write."""
    paths = [line for line in found.splitlines() if line.startswith("/")]
    if paths:
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        yield Finding(
            "critical",
            "files of root",
            f"others may write {', '.join(paths[:SHOWN])}{more}",
            "Find out who did, give them back to root, and deploy once more",
        )


def updates(told: str, days: float | None) -> Iterator[Finding]:
    """Of `apt list --upgradable`: what the host knows, and how old that is."""
    waiting = [line.partition("/")[0] for line in told.splitlines() if re.match(r"^\S+/\S*-security", line)]
    if waiting:
        more = f" and {len(waiting) - SHOWN} more" if len(waiting) > SHOWN else ""
        said = f"{len(waiting)} of them wait for {', '.join(waiting[:SHOWN])}{more}"
        yield Finding("warning", "security updates", said, "`apt upgrade`; units of ours are not restarted by it")
    if days is None or days > OLD_LISTS:
        said = "apt has never looked for any" if days is None else f"apt has not looked for any in {days:.0f} days"
        yield Finding("note", "security updates", said, "`apt update`, or let apt-daily.timer do it")


def weaknesses(
    installed: Mapping[str, str], today: datetime.date, known: Sequence[Weakness] = KNOWN_WEAKNESSES, as_of: str = AS_OF
) -> Iterator[Finding]:
    for one in known:
        version = installed.get(one.package)
        if version and numbers(version) < numbers(one.fixed):
            yield Finding(
                "critical",
                f"{one.package} {version}",
                f"{one.name}, {one.what}",
                f"Pin {one.fixed} or newer (`make lock UPGRADE={one.package}`) and deploy",
            )
    age = (today - datetime.date.fromisoformat(as_of)).days
    if age > OLD_KNOWLEDGE:
        yield Finding(
            "note",
            "known weaknesses",
            f"the list is of {as_of}, {age} days old, and has nothing that was found since",
            "Check requirements/*.txt with a tool that asks the network, and add to known_weaknesses.py",
        )


def numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` is 2.13.0 here."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


def installed(layout: Layout) -> dict[str, str]:
    """Every package of the live environments, of the oldest version where two differ."""
    found: dict[str, str] = {}
    for path in layout.current.glob("env/*/lib/python3*/site-packages/*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name not in found or numbers(version) < numbers(found[name]):
            found[name] = version
    return found


def contract(layout: Layout, sshd: str) -> dict[int, str]:
    """Who may listen for others, by what the live release and sshd say."""
    told = settings(layout)
    ports = {name: told.get(f"{name.upper()}_PORT", "") for name in ("gateway", "management", "health", "export")}
    doors = {int(port): name for name, port in ports.items() if port.isdecimal()}
    # models listen on loopback unless an inventory opens them, and then their doors are in the contract
    for path in layout.current.glob("config/models/*.env"):
        port = re.search(r"^SERVICE_PORT=\"?(\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if port:
            doors[int(port[1])] = path.stem
    own = [line.split()[1] for line in sshd.splitlines() if line.lower().startswith("port ")]
    return doors | dict.fromkeys(map(int, own or ["22"]), "ssh")


def looked(layout: Layout, today: datetime.datetime) -> float | None:
    """Days since apt last looked for updates."""
    lists = [path.stat().st_mtime for path in layout.inside("/var/lib/apt/lists").glob("*_*Release")]
    return (today.timestamp() - max(lists)) / 86400 if lists else None


def audit(layout: Layout, show: Show = shown) -> list[Finding]:
    """Every finding, worst first."""
    now = datetime.datetime.now(datetime.UTC)
    profile, sshd = settings(layout).get("CITADEL_ENV", "development"), show(["sshd", "-T"])
    rules = show(["nft", "list", "table", "inet", "citadel"])
    sections = SECTIONS["audit"]
    last_day = [*(word for word in SSH if not word.startswith("--lines")), "--since=-1d", "--output=cat"]
    failed = next(word for word in sections["Failed logins"] if word.startswith("--grep"))
    found = [
        *listening(show(["ss", "-Hlntup"]), contract(layout, sshd), "policy drop" in rules),
        *firewall(profile, rules),
        *ssh(profile, sshd),
        *logins(empty(show([*last_day, failed]))),
        *exposure(show(sections["Exposure of the services"])),
        *modes(layout.root),
        *writable(show(sections["Files of root that others may write"])),
        *updates(show(sections["Updates that wait"]), looked(layout, now)),
        *weaknesses(installed(layout), now.date()),
    ]
    return sorted(found, key=lambda one: -STATUS[one.severity])


def empty(told: str) -> str:
    return "" if told.startswith("(") else told


def verdict(found: Sequence[Finding]) -> str:
    counts = Counter(one.severity for one in found)
    return ", ".join(f"{counts[severity]} {severity}" for severity in ("critical", "warning", "note"))


def as_json(found: Iterable[Finding], at: str) -> str:
    told = {
        "host": socket.gethostname(),
        "at": at,
        "weaknesses_as_of": AS_OF,
        "findings": [asdict(one) for one in found],
    }
    return json.dumps(told, indent=2) + "\n"


def as_text(found: Sequence[Finding], at: str, show: Show = shown) -> str:
    lines = [f"=== Findings on {socket.gethostname()} at {at}: {verdict(found)}", *map(str, found), ""]
    for title, command in SECTIONS["audit"].items():
        lines += [f"=== {title}", show(command), ""]
    return "\n".join(lines)


def keep(folder: Path, name: str, text: str) -> None:
    """Root writes where another account may: under a name that nobody foresees, then renamed."""
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{name}.", delete=False, encoding="utf-8") as stream:
        stream.write(text)
        os.fchmod(stream.fileno(), 0o640)
        owner = folder.stat()
        os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
    Path(stream.name).replace(folder / name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the findings for programs, without what was looked at")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write both there, named by today's date")


def run(arguments: argparse.Namespace) -> int:
    """The status is 0 where there are only notes, 1 for warnings, 3 for something critical."""
    found = audit(Layout())
    now = datetime.datetime.now(datetime.UTC)
    at = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    if arguments.report:
        name = f"security-audit-{now:%Y%m%d}"
        keep(arguments.report, f"{name}.json", as_json(found, at))
        keep(arguments.report, f"{name}.log", as_text(found, at))
        print(f"{verdict(found)}: {arguments.report}/{name}.log")
    else:
        print(as_json(found, at) if arguments.json else as_text(found, at), end="")
    return max((STATUS[one.severity] for one in found), default=0)
