"""The role `host`: its modules as Ansible runs them, and the file that needrestart reads."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "roles/host/files/etc/needrestart/conf.d/citadel-llm.conf"


def module(called: str, *options: str, **arguments: Any) -> dict[str, Any]:
    command = ["ansible", "localhost", "-c", "local", "-m", called, "-a", json.dumps(arguments), *options]
    done = subprocess.run(
        [*command, "-i", "localhost,"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout.partition("=>")[2].rpartition("}")[0] + "}")
    return found


def test_folders_by_ansible(tmp_path: Path) -> None:
    folders = [{"path": f"{tmp_path}/one", "mode": "0751", "owner": tmp_path.owner()}]
    told = {"groups": {tmp_path.owner(): tmp_path.group()}, "folders": folders}
    planned = module("citadel_folders", "--check", **told)
    assert planned["changed"] and not (tmp_path / "one").exists()
    assert module("citadel_folders", **told)["changed_folders"] == planned["changed_folders"]
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o751
    assert not module("citadel_folders", **told)["changed"]


def test_a_person_with_our_users_name_is_refused() -> None:
    """On whatever this is run: root is somebody to log in as everywhere, and no distribution has these figures."""
    told = module("citadel_host", name="llm", accounts=["root"], cores=1, memory_gib=10**6)["msg"].splitlines()
    assert any(line.startswith("llm has a user root whom a person can be (its shell is /bin/bash") for line in told)
    assert any(line.startswith("llm has ") and "host_minimum_memory_gib asks for 1000000" in line for line in told)


@pytest.mark.parametrize(
    ("unit", "left_alone"),
    [
        ("citadel-llm@phi-3-mini.service", True),
        ("citadel-gateway@0007-1a2b3c4d.service", True),
        ("ssh.service", False),
        ("not-citadel-llm.service", False),
    ],
)
def test_needrestart_leaves_our_units_alone(unit: str, left_alone: bool) -> None:
    """Read as needrestart reads it: the first pattern of override_rc that fits decides, and 0 is: do not restart."""
    reads = (
        "our %nrconf; eval do { local $/; open my $f, '<', $ARGV[0]; <$f> }; die $@ if $@; "
        "my ($rule) = grep { $ARGV[1] =~ /$_/ } keys %{$nrconf{override_rc}}; "
        "print defined $rule ? $nrconf{override_rc}{$rule} : 'restart';"
    )
    told = subprocess.run(["perl", "-e", reads, FILE, unit], capture_output=True, text=True, check=True).stdout
    assert told == ("0" if left_alone else "restart")


def test_the_role_puts_it_where_needrestart_looks() -> None:
    tasks = yaml.safe_load((ROOT / "roles/host/tasks/main.yml").read_text())
    [copied] = [task["ansible.builtin.copy"] for task in tasks if "ansible.builtin.copy" in task]
    assert copied["dest"] == "/etc/needrestart/conf.d/citadel-llm.conf" == f"/{copied['src']}"
    assert (ROOT / "roles/host/files" / copied["src"]) == FILE


def test_a_declaration_by_ansible(tmp_path: Path) -> None:
    """A command that tells one thing is all that may be declared on the machine of whoever runs this."""
    item = {"kind": "command", "name": "answer", "desired": "no", "read": ["echo", "yes"]}
    told = module("citadel_declare", "--check", owner="the-tests", items=[item])
    assert told["changed"] and told["told"] == ["command answer: yes → no"]
    refused = module("citadel_declare", "--check", owner="the-tests", items=[{**item, "kind": "sysctrl"}])
    assert "there is no kind 'sysctrl'; there are sysctl, " in refused["msg"]


def test_a_server_is_known_by_the_first_part_of_its_name_too(tmp_path: Path) -> None:
    """As it is itself, when its name in the inventory has dots."""
    names = {"hx-llm.example.org": "10.0.0.1", "plain": "10.0.0.2", "10.0.0.3": "10.0.0.3"}
    task = {
        "ansible.builtin.copy": {"content": "{{ host__aliases | to_json }}", "dest": f"{tmp_path}/out", "mode": "0644"}
    }
    play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}]
    play[0] |= {"vars": {"host_names": names}, "vars_files": [str(ROOT / "roles/host/vars/main.yml")]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    subprocess.run(["ansible-playbook", "-i", "localhost,", tmp_path / "play.yml"], cwd=ROOT, check=True)
    told = json.loads((tmp_path / "out").read_text())
    assert told == {"hx-llm.example.org": "hx-llm.example.org hx-llm", "plain": "plain", "10.0.0.3": "10.0.0.3"}
