"""The two inventories describe one estate, and a third one may stand anywhere and say what it likes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.settings import Lab

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = ("citadel", "lab")


@cache
def inventory(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "inventory" / name / "hosts.yml").read_text())["all"]
    return content


def test_both_have_the_same_groups() -> None:
    groups = [list(inventory(name)["children"]) for name in INVENTORIES]
    assert groups[0] == groups[1]


def test_what_an_inventory_says_is_known_to_the_product_or_its_own() -> None:
    """An inventory may say more than the example does; the example names nothing that is read nowhere."""
    read = (
        "".join(path.read_text() for folder in ("group_vars", "roles") for path in (ROOT / folder).rglob("*.yml"))
        + (ROOT / "inventory/citadel/hosts.yml").read_text().partition("children:")[0]
    )
    for variable in inventory("citadel")["vars"]:
        assert len(re.findall(rf"\b{variable}\b", read)) > 1, f"{variable} is read nowhere"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An inventory outside of the checkout, with no more than it must say, and one variable for a group and a host."""
    folder = tmp_path / "estate"
    (folder / "group_vars").mkdir(parents=True)
    (folder / "group_vars" / "llm_servers.yml").write_text("citadel_gateway_port: 8010\nhost_minimum_cores: 4\n")
    (folder / "hosts.yml").write_text(
        "all:\n  vars: {citadel_profile: production, citadel_health_port: 8081}\n  children:\n"
        "    llm_servers:\n      hosts:\n"
        "        one: {ansible_host: 10.0.0.1}\n"
        "        two: {ansible_host: 10.0.0.2, citadel_models_overrides: {mixtral-8x7b: {enabled: false}}}\n"
        "    metrics_servers: {hosts: {watcher: {ansible_host: 10.0.0.3}}}\n"
    )
    return folder


def test_an_inventory_anywhere_wins_over_the_product(own: Path) -> None:
    ask = ["ansible", "watcher", "-i", str(own), "-o", "-m", "ansible.builtin.debug"]
    told = subprocess.run(
        [*ask, "-a", "msg={{ [citadel_contracts, monitoring_targets] }}"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    contracts, targets = json.loads(told.partition("=>")[2])["msg"]
    assert contracts["one"]["ports"] == {"api": 8010, "management": 8002, "health": 8081, "export": 9090, "node": 9100}
    all_models = {"mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "nomic-embed-text"}
    assert set(contracts["one"]["models"]) == all_models
    assert set(contracts["two"]["models"]) == all_models - {"mixtral-8x7b"}
    assert {host: {target for group in groups for target in group["targets"]} for host, groups in targets.items()} == {
        "one": {"10.0.0.1:9090", "10.0.0.1:9100"},
        "two": {"10.0.0.2:9090", "10.0.0.2:9100"},
    }


def test_playbooks_in_their_folder_know_the_product_too(own: Path) -> None:
    done = subprocess.run(
        ["ansible-playbook", "-i", own, "playbooks/preflight.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


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
        [*ask, "-m", "ansible.builtin.debug", "-a", "var=vars"],
        cwd=ROOT,
        env={**os.environ, "LAB_NETWORK": "10.77.40"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "10.77.40.29" in told, "nothing was rendered"
    assert "192.168.10." not in told


def listed(**environment: str) -> dict[str, Any]:
    nothing_said = {"LAB_PREFIX": "nolab", "LAB_NETWORK": "", "FLEET": ""}
    told = subprocess.run(
        ["ansible-inventory", "-i", "inventory/lab", "--list"],
        cwd=ROOT,
        env={**os.environ, **nothing_said, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    # a plugin's values are no templates, and ansible-inventory says so of each
    found: dict[str, Any] = json.loads(told.stdout, object_hook=lambda each: each.get("__ansible_unsafe", each))
    return found


def test_ansible_by_hand_means_the_lab_that_make_means(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAB_PREFIX", "LAB_NETWORK", "FLEET"):
        monkeypatch.delenv(name, raising=False)
    lab = Lab.from_environment()
    told = listed(LAB_PREFIX="")["_meta"]["hostvars"]["data-01"]
    assert told["lab_network"] == lab.settings["LAB_NETWORK"]
    assert (told["lab_directory"], told["lab_sockets"]) == (str(lab.directory), str(lab.sockets))


def test_the_labs_inventory_has_the_hosts_that_the_lab_has() -> None:
    assert listed()["llm_servers"]["hosts"] == ["llm-01"]
    fleet = listed(FLEET="1", LAB_NETWORK="10.77.41")
    assert fleet["llm_servers"]["hosts"] == ["llm-01", "llm-02"]
    second = fleet["_meta"]["hostvars"]["llm-02"]
    assert second["ansible_host"] == "10.77.41.28"
    assert "phi-3-mini" in second["citadel_models_overrides"]


def test_a_setting_that_names_no_lab_ends_ansible() -> None:
    with pytest.raises(AssertionError, match=r"LAB_PREFIX is 'No'.*Choose such a name"):
        listed(LAB_PREFIX="No")
