"""The two inventories describe one estate: the same groups, the same variables, and no word said twice."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = ("citadel", "lab")
# how to reach hosts that live on this machine is the lab's own affair
ONLY_IN_THE_LAB = {"ansible_ssh_private_key_file", "ansible_ssh_common_args"}


@cache
def inventory(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "inventory" / name / "hosts.yml").read_text())["all"]
    return content


def shared_variables() -> dict[str, Path]:
    return {
        variable: file
        for file in sorted((ROOT / "group_vars").rglob("*.yml"))
        for variable in yaml.safe_load(file.read_text()) or {}
    }


def test_both_have_the_same_groups() -> None:
    groups = [list(inventory(name)["children"]) for name in INVENTORIES]
    assert groups[0] == groups[1]


def test_both_have_the_same_variables() -> None:
    citadel, lab = (set(inventory(name)["vars"]) for name in INVENTORIES)
    assert citadel == {name for name in lab if not name.startswith("lab_")} - ONLY_IN_THE_LAB


@pytest.mark.parametrize("name", INVENTORIES)
def test_a_variable_is_either_the_environments_or_everybodys(name: str) -> None:
    both = set(inventory(name)["vars"]) & set(shared_variables())
    assert not both, f"said in inventory/{name} and again in group_vars, where it would win: {both}"


@pytest.mark.parametrize("name", INVENTORIES)
def test_group_vars_are_seen_from_every_folder(name: str) -> None:
    """A playbook in a folder of its own reads the group_vars beside the inventory, so they must be the same."""
    assert (ROOT / "inventory" / name / "group_vars").resolve() == ROOT / "group_vars"


def test_the_hosts_of_the_lab_have_the_last_number_of_their_models() -> None:
    def octets(name: str) -> dict[str, str]:
        return {
            group: variables["ansible_host"].rpartition(".")[2]
            for group, content in inventory(name)["children"].items()
            for variables in (content["hosts"] or {}).values()
        }

    assert octets("lab").items() <= octets("citadel").items()


def test_no_address_of_the_real_estate_reaches_a_play_in_the_lab(tmp_path: Path) -> None:
    (tmp_path / "variables.json").write_text(
        json.dumps(
            {
                "lab_pip_index_url": "",
                "lab_pip_extra_index_urls": [],
                "lab_pip_find_links": [],
                "lab_python": "3.11.7",
                "lab_python_downloads": "",
            }
        )
    )
    ask = ["ansible", "all", "-i", "inventory/lab", "-e", f"lab_directory={tmp_path}"]
    told = subprocess.run(
        [*ask, "-m", "ansible.builtin.debug", "-a", "var=vars"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "10.77.40.29" in told, "nothing was rendered"
    assert "192.168.10." not in told
