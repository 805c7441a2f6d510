"""What is said of a host that Ansible could not ask, or not as root."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "plugins/filter/reach.py"
SPEC = importlib.util.spec_from_file_location("reach", FILE)
assert SPEC and SPEC.loader
reach: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reach)

SSH = "Task failed: Failed to connect to the host via ssh: "
NOISE = "Warning: Permanently added '10.0.0.9' (ED25519) to the list of known hosts.\r\n"


def unreachable(said: str) -> dict[str, Any]:
    return {"unreachable": True, "changed": False, "msg": SSH + said}


@pytest.mark.parametrize(
    ("answer", "user", "said"),
    [
        (
            unreachable(f"{NOISE}root@10.0.0.9: Permission denied (publickey)."),
            "root",
            "llm (10.0.0.9) refuses root on ssh: name an ordinary user, who has your key and sudo without a password, "
            "as CITADEL_SSH_USER, or as ansible_user in the inventory. Nothing was changed.",
        ),
        (
            unreachable("maria@10.0.0.9: Permission denied (publickey)."),
            "maria",
            "llm (10.0.0.9) refuses maria on ssh: give that user your key (ssh-copy-id), or name another one as "
            "CITADEL_SSH_USER, or as ansible_user in the inventory. Nothing was changed.",
        ),
        (
            unreachable("ssh: connect to host 10.0.0.9 port 22: No route to host"),
            "root",
            "llm (10.0.0.9) cannot be reached on ssh (ssh: connect to host 10.0.0.9 port 22: No route to host): start "
            "it, or correct its ansible_host in the inventory. Nothing was changed there.",
        ),
        (
            unreachable("No ED25519 host key is known for 10.0.0.9.\r\nHost key verification failed."),
            "root",
            "llm (10.0.0.9) showed a host key that known_hosts does not have for it: compare it on the host's own "
            "console, then log in once by hand. Nothing was changed.",
        ),
        (
            {"rc": 1, "stdout": "", "stderr": "sudo: a password is required\n"},
            "maria",
            "llm (10.0.0.9) was reached as maria, who may not become root there without a password (sudo: a password "
            "is required): allow it in /etc/sudoers.d, or name another user as CITADEL_SSH_USER, or as ansible_user in "
            "the inventory. Nothing was changed.",
        ),
        ({"rc": 0, "stdout": ""}, "maria", ""),
    ],
)
def test_one_sentence_says_what_is_wrong_and_what_to_do(answer: dict[str, Any], user: str, said: str) -> None:
    assert reach.citadel_unreached(answer, "llm", "10.0.0.9", user) == said
