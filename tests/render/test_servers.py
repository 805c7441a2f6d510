"""Several LLM servers: they are changed one after another, and one that fails or is gone does not spoil the others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# the role's place, with what each server is told to do written by the inventory
STUB = """
- name: Note that it is this server's turn
  ansible.builtin.shell: echo {{ inventory_hostname }} begins >> {{ log }}
- name: Lose the server
  ansible.builtin.set_fact:
    ansible_connection: ssh
    ansible_port: 1
  when: fate == 'dies'
- name: Meet its fate
  ansible.builtin.command: "{{ 'false' if fate == 'fails' else 'true' }}"
- name: Note that it is done
  ansible.builtin.shell: echo {{ inventory_hostname }} ends >> {{ log }}
"""


def change(tmp_path: Path, playbook: str, **fates: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    tasks = tmp_path / "roles/release/tasks"
    tasks.mkdir(parents=True)
    for name in ("main", "rollback"):
        (tasks / f"{name}.yml").write_text(STUB)
    hosts = "".join(
        f"        {name}: {{ansible_host: 127.0.0.1, ansible_connection: {'ssh' if fate == 'is gone' else 'local'}, "
        f"ansible_port: 1, fate: {fate}}}\n"
        for name, fate in fates.items()
    )
    (tmp_path / "hosts.yml").write_text(
        f"all:\n  vars: {{ansible_become: false, citadel_python: '3.11', log: {tmp_path}/log}}\n"
        f"  children:\n    llm_servers:\n      hosts:\n{hosts}"
    )
    done = subprocess.run(
        ["ansible-playbook", "-i", tmp_path / "hosts.yml", playbook],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_ROLES_PATH": f"{tmp_path}/roles", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    log = tmp_path / "log"
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("playbook", ["playbooks/release.yml", "playbooks/rollback.yml"])
def test_one_after_another(tmp_path: Path, playbook: str) -> None:
    done, log = change(tmp_path, playbook, one="serves", two="serves")
    assert done.returncode == 0, done.stdout
    assert log == ["one begins", "one ends", "two begins", "two ends"]


@pytest.mark.parametrize("fate", ["fails", "dies", "is gone"])
def test_the_others_have_their_turn(tmp_path: Path, fate: str) -> None:
    done, log = change(tmp_path, "playbooks/release.yml", one=fate, two="serves")
    assert log[-2:] == ["two begins", "two ends"], done.stdout
    assert "one ends" not in log
    assert done.returncode != 0, "a server was left behind and nobody is told"
    verdict = done.stdout.partition("PLAY [Tell how it went]")[2]
    assert "fatal: [one]" in verdict
    assert "fatal: [two]" not in verdict
    assert ("it can no longer be reached" in verdict) == (fate != "fails")


def test_a_server_that_is_alone_fails_aloud(tmp_path: Path) -> None:
    done, _ = change(tmp_path, "playbooks/rollback.yml", one="fails")
    assert done.returncode != 0
    assert "non-zero return code" in done.stdout.partition("PLAY [Tell how it went]")[2]
