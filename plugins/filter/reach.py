"""Why a host could not be asked, in one sentence for whoever keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# where ssh speaks of what it was about to do; the reason is what comes after
NOISE = ("Failed to connect to the host via ssh:", "Task failed:", "Data could not be sent to remote host")


def citadel_unreached(answer: Mapping[str, Any], host: str, address: str, user: str) -> str:
    """What stands between us and this host, by the answer to a command that root should have run there; or nothing."""
    named = "CITADEL_SSH_USER, or as ansible_user in the inventory"
    said = str(answer.get("msg") or answer.get("module_stderr") or answer.get("stderr") or answer.get("stdout") or "")
    where = f"{host} ({address})"
    if not answer.get("unreachable"):
        if answer.get("rc") == 0:
            return ""
        return (
            f"{where} was reached as {user}, who may not become root there without a password ({reason(said)}): allow "
            f"it in /etc/sudoers.d, or name another user as {named}. Nothing was changed."
        )
    if "Permission denied" in said and user == "root":
        return (
            f"{where} refuses root on ssh: name an ordinary user, who has your key and sudo without a password, as "
            f"{named}. Nothing was changed."
        )
    if "Permission denied" in said:
        return (
            f"{where} refuses {user} on ssh: give that user your key (ssh-copy-id), or name another one as {named}. "
            "Nothing was changed."
        )
    if "Host key verification failed" in said or "HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            f"{where} showed a host key that known_hosts does not have for it: compare it on the host's own console, "
            "then log in once by hand. Nothing was changed."
        )
    return (
        f"{where} cannot be reached on ssh ({reason(said)}): start it, or correct its ansible_host in the inventory. "
        "Nothing was changed there."
    )


def reason(said: str) -> str:
    """The last thing that ssh or sudo said."""
    for noise in NOISE:
        said = said.replace(noise, "")
    lines = [line.strip(" .\r") for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"citadel_unreached": citadel_unreached}
