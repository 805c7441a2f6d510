"""Sets the access of this host, in a way that whoever is shut out by it need only wait.

The change is armed first: what was before is kept on the disk, with a timer, and a unit for a boot in between, that
puts it back. Only a connection that is made after the change takes the timer away.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import access_revert, kinds
from .access import TABLE, Operator, Policy, effective, objections, ruleset, sshd_drop_in, sshd_values
from .access_revert import ARMED, FIREWALL, HOME, RULES, SSH, TAKEN
from .declarations import DeclarationError, Result, Store, bring_about
from .kinds import CannotError, Item, NotHereError
from .release.files import write

OWNER = "access"

DROP_IN = "/etc/ssh/sshd_config.d/00-citadel.conf"  # of several files, sshd takes what it reads first
UNITS = "/etc/systemd/system"
FIREWALL_UNIT = f"{UNITS}/{FIREWALL}"
FIREWALL_LINK = f"{UNITS}/sysinit.target.wants/{FIREWALL}"
REVERT = "host-access-revert.service"
TIMER = "host-access-timer"
SCRIPT = f"/{HOME}/revert.py"
CONFIRMED = "confirmed.json"

FIREWALL_TEXT = f"""\
# citadel-llm: the role `access` writes it.
[Unit]
Description=Citadel firewall, who may reach this server
ConditionPathExists={RULES}
DefaultDependencies=no
After=local-fs.target nftables.service
Wants=network-pre.target
Before=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {RULES}
ExecReload=/usr/sbin/nft -f {RULES}
ExecStop=-/usr/sbin/nft delete table inet {TABLE}

[Install]
WantedBy=sysinit.target
"""
# The host's own firewall empties all tables, ours too, whenever it starts, stops or is reloaded.
BESIDE = f"{UNITS}/nftables.service.d/50-citadel.conf"
BESIDE_TEXT = f"""\
# citadel-llm: the role `access` writes it.
[Service]
ExecStartPost=-/usr/sbin/nft -f {RULES}
ExecReload=-/usr/sbin/nft -f {RULES}
ExecStopPost=-/usr/sbin/nft -f {RULES}
"""
REVERT_TEXT = f"""\
# citadel-llm: the role `access` writes it.
[Unit]
Description=Put back what ssh and the firewall were before a change that nobody confirmed
ConditionPathExists=/{HOME}/{ARMED}
DefaultDependencies=no
After=local-fs.target
Before={FIREWALL} {SSH} network-pre.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -B {SCRIPT} --boot

[Install]
WantedBy=sysinit.target
"""
# there as long as the role is, so that a change can be cut off at any moment
SAFETY: dict[str, Any] = {
    f"{UNITS}/{REVERT}": {"text": REVERT_TEXT, "mode": 0o644},
    f"{UNITS}/sysinit.target.wants/{REVERT}": {"link": f"{UNITS}/{REVERT}"},
}
LISTING = f"nft -s list table inet {TABLE}"


class ChangeError(Exception):
    """The host does not do what was asked, and has its access as before."""


def operator(proc: Path = Path("/proc"), process: int = 0) -> Operator | None:
    """Who came here by ssh to run this: told by the nearest process above us that sudo did not clean."""
    process = process or os.getpid()
    while process > 1:
        try:
            pairs = (proc / str(process) / "environ").read_text(encoding="utf-8", errors="replace").split("\0")
            status = (proc / str(process) / "status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if "SSH_CONNECTION" in found:
            address, port, _, ours = found["SSH_CONNECTION"].split()
            plain = address.removeprefix("::ffff:").partition("%")[0]
            return Operator(found.get("USER", ""), plain, int(port), int(ours))
        process = int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])
    return None


def kept(root: Path, path: str) -> dict[str, Any] | None:
    place = root / path.lstrip("/")
    if place.is_symlink():
        return {"link": str(place.readlink())}
    if not place.is_file():
        return None
    return {"text": place.read_bytes().decode("latin-1"), "mode": place.stat().st_mode & 0o7777}


@dataclass
class Host:
    """The access that a host has now, and its change."""

    name: str
    real: kinds.Host = field(default_factory=kinds.Host)
    owner: str = "root"
    group: str = "root"

    @property
    def root(self) -> Path:
        return self.real.root

    @property
    def home(self) -> Path:
        return self.root / HOME

    def refusal(self, policy: Policy, who: Operator | None) -> list[str]:
        return objections(policy, who, who is not None and self.has_key(who.user))

    def has_key(self, user: str) -> bool:
        """Whether sshd could let this user in without a password."""
        values = effective(self.real.ask("sshd", "-T", "-C", f"user={user},host=localhost,addr=127.0.0.1"))
        # keys that come from a program or by a certificate can't be looked at
        if any(values.get(name, "none") != "none" for name in ("authorizedkeyscommand", "trustedusercakeys")):
            return True
        try:
            home = pwd.getpwnam(user).pw_dir
        except KeyError:
            return False
        for pattern in values.get("authorizedkeysfile", ".ssh/authorized_keys").split():
            path = pattern.replace("%h", home).replace("%u", user).replace("%%", "%")
            place = self.real.inside(path if path.startswith("/") else f"{home}/{path}")
            if place.is_file() and any(
                line.strip() and not line.startswith("#") for line in place.read_text(errors="replace").splitlines()
            ):
                return True
        return False

    def items(self, policy: Policy) -> list[Item]:
        """All that a policy sets, in the order in which it is set."""
        owned = {"owner": self.owner, "group": self.group}
        found = []
        if policy.closed:
            rules = ruleset(policy)
            reload = f"! test -e {RULES} || systemctl reload-or-restart {FIREWALL}"
            found += [
                Item(
                    "file",
                    RULES,
                    "content",
                    {**owned, "content": rules, "validate": ["nft", "-c", "-f", "%s"], "then": [["sh", "-c", reload]]},
                ),
                Item(
                    "file",
                    FIREWALL_UNIT,
                    "content",
                    {**owned, "content": FIREWALL_TEXT, "then": [["systemctl", "daemon-reload"]]},
                ),
                Item(
                    "file",
                    BESIDE,
                    "content",
                    {**owned, "content": BESIDE_TEXT, "then": [["systemctl", "daemon-reload"]]},
                ),
                Item("unit", FIREWALL, "enabled active"),
                Item(
                    "command",
                    "rules of the kernel",
                    self.listed(rules),
                    {"read": ["sh", "-c", f"{LISTING} | sha256sum | cut -c -64"], "set": ["sh", "-c", reload]},
                ),
            ]
        found.append(
            Item(
                "file",
                DROP_IN,
                "content",
                {
                    **owned,
                    "content": sshd_drop_in(policy),
                    "validate": ["sshd", "-t", "-f", "%s"],
                    "then": [["sh", "-c", f"sshd -t && systemctl reload {SSH}"]],
                },
            )
        )
        advice = (
            "Let /etc/ssh/sshd_config begin with `Include /etc/ssh/sshd_config.d/*.conf`, and nothing that sorts "
            f"before {DROP_IN} say otherwise"
        )
        options = {"read": ["sshd", "-T"], "advice": advice}
        found += [
            Item("command", f"sshd {name}", value, {**options, "word": name})
            for name, value in sshd_values(policy).items()
        ]
        return found

    def listed(self, rules: str) -> str:
        """The digest of what this kernel would show of these rules, learnt in a network that nobody uses."""
        try:
            done = subprocess.run(
                ["unshare", "--net", "sh", "-c", f"nft -f - && {LISTING}"],
                input=rules,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            return "unknown"
        return hashlib.sha256(done.stdout.encode()).hexdigest()

    def set(self, policy: Policy | None, seconds: int, act: bool) -> Result:
        """Armed, set, read back from the real programs. What fails is undone at once."""
        items = self.items(policy) if policy else []
        result = bring_about(OWNER, items, act=False, host=self.real)
        if not act or not result.changed:
            return result
        if policy and policy.closed and not shutil.which("nft"):
            raise ChangeError(f"{self.name} has no nft: install the package nftables. Nothing was changed.")
        try:
            self.arm(seconds)
            return bring_about(OWNER, items, act=True, host=self.real)
        except (DeclarationError, CannotError, NotHereError) as error:
            self.undo()
            raise ChangeError(f"{error}\n{self.name} has its ssh and firewall as before.") from error
        except BaseException:
            self.undo()
            raise

    def arm(self, seconds: int) -> None:
        """From here on this host has its old access back, unless somebody comes in anew."""
        for name in (CONFIRMED, TAKEN):
            (self.home / name).unlink(missing_ok=True)
        write(self.real.inside(SCRIPT), inspect.getsource(access_revert))
        for path, text in SAFETY.items():
            access_revert.put(self.root, path, text)
        store = Store(Path("/"), OWNER)
        paths = [RULES, FIREWALL_UNIT, FIREWALL_LINK, BESIDE, DROP_IN, str(store.declaration), str(store.kept)]
        before = {"files": {path: kept(self.root, path) for path in paths}, "loaded": self.loaded()}
        write(self.home / ARMED, json.dumps(before), 0o600)
        self.real.act("systemctl", "daemon-reload")
        self.disarm()
        self.real.act(
            *["systemd-run", f"--unit={TIMER}", "--collect", f"--on-active={seconds}s"],
            *["--timer-property=AccuracySec=100ms", "/usr/bin/python3", "-B", SCRIPT],
        )

    def loaded(self) -> bool:
        try:
            return bool(self.real.ask(*LISTING.split()))
        except (CannotError, NotHereError):
            return False

    def disarm(self) -> None:
        try:
            self.real.act("systemctl", "stop", f"{TIMER}.timer")
        except CannotError:
            return  # there is none

    def undo(self) -> None:
        self.disarm()
        if access_revert.take(self.root):
            access_revert.restore(self.root)

    def confirm(self, changed_by: str, who: Operator | None, policy: Policy | None) -> None:
        """Called over a connection that was made after the change."""
        if who is not None and who.connection == changed_by:
            raise ChangeError(
                f"{self.name} was asked over the connection that changed it, which proves nothing: its access goes "
                "back to what it was."
            )
        if not access_revert.take(self.root, CONFIRMED):
            raise ChangeError(
                f"{self.name} waited in vain for a new connection and has its access as before: see whether something "
                "between here and there refuses it, and give it more time with access_patience."
            )
        self.disarm()
        (self.home / CONFIRMED).unlink()
        if policy is None:
            self.leave()

    def leave(self) -> None:
        """The role is gone, and so is what it needed for itself."""
        for path in (*SAFETY, SCRIPT):
            self.real.inside(path).unlink(missing_ok=True)
        state, rules, beside = self.home.parent, self.real.inside(RULES).parent, self.real.inside(BESIDE).parent
        for folder in (self.home, state / "before", state / "declared", state, rules, beside):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self.real.act("systemctl", "daemon-reload")
