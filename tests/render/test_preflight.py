"""What a deployment refuses before it asks any host anything: the inventory, and every variable of every role."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB = {
    "lab_pip_index_url": "",
    "lab_pip_extra_index_urls": [],
    "lab_pip_find_links": [],
    "lab_python": "3.11.7",
    "lab_python_downloads": "",
}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    (tmp_path / "variables.json").write_text(json.dumps(LAB))
    return tmp_path


def preflight(lab: Path, *options: str, inventory: str = "inventory/lab") -> subprocess.CompletedProcess[str]:
    command = ["ansible-playbook", "playbooks/preflight.yml", "-i", inventory, "-e", f"lab_directory={lab}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("inventory", ["inventory/lab", "inventory/citadel"])
def test_both_inventories_pass_as_they_are(lab: Path, inventory: str) -> None:
    done = preflight(lab, inventory=inventory)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("host_minimum_cores", "many", "argument 'host_minimum_cores' is of type str and we were unable to convert"),
        ("citadel_profile", "moon", "value of gateway_profile must be one of: development, production, got: moon"),
        (
            "citadel_python",
            "3.13",
            "citadel_python = '3.13': packages are pinned for 3.11 and 3.12. Name a full version",
        ),
        ("citadel_python", "python3", "citadel_python = 'python3': packages are pinned for 3.11 and 3.12"),
        ("citadel_models_settings", {"share_cores": "perhaps"}, "share_cores = 'perhaps': give true or false"),
        ("citadel_models_settings", {"reserve": 3}, "there is no such setting; known are share_cores, reserve_gib"),
        ("citadel_health_port", 8000, "citadel_ports.health = 8000: the gateway has that port already; change one"),
        ("citadel_tls", {"key": "/k"}, "citadel_tls is {'key': '/k'}: give the paths of two files on llm-01"),
        ("citadel_tmpfs", {"model_cache": -1}, "storage_tmpfs.model_cache = -1: give a size in GiB, more than 0"),
        (
            "citadel_disks",
            [{"path": "/opt/models", "device": "sdb"}],
            "/opt/models has device = 'sdb': give a disk or a",
        ),
        (
            "citadel_network",
            {"interface": "eth0", "address": "10.0.0.2/24", "gateway": "10.9.0.1", "nameservers": ["10.0.0.1"]},
            "host_network.gateway = 10.9.0.1: it is none of the others in 10.0.0.0/24",
        ),
        (
            "citadel_log_collector",
            {"host": "one", "prot": 5140},
            "prot. Supported parameters include: host, port, spool",
        ),
        ("citadel_share_cores", True, "citadel_share_cores is called citadel_models_settings.share_cores now"),
        (
            "access_management",
            ["10.0.0.1/8"],
            "access_management = '10.0.0.1/8': that is an address inside of",
        ),
        ("access_clients", ["some-host"], "access_clients = 'some-host': give an address such as 192.168.10.5"),
        ("access_state", "gone", "value of access_state must be one of: present, absent, got: gone"),
        ("tuning_sysctl", {"vm.swappiness": -1}, "tuning_sysctl['vm.swappiness'] = -1: give 0 to 200"),
        ("tuning_governor", "fast", "value of tuning_governor must be one of: performance, powersave, ondemand"),
        ("tuning_scheduler", "cfq", "value of tuning_scheduler must be one of: mq-deadline, none, kyber, bfq"),
        ("citadel_hugepages", "some", "models_settings.hugepages = 'some': give a whole number"),
        ("citadel_hugepages", -3, "models_settings.hugepages = -3: give 0 or more, or -1 for what the host has"),
        ("citadel_alerts", {"DiskLwo": {}}, "citadel_alerts.DiskLwo = {}: there is no such alert or setting"),
        ("release_keep", "all", "argument 'release_keep' is of type str"),
    ],
)
def test_a_variable_that_no_role_can_use(lab: Path, variable: str, value: object, said: str) -> None:
    done = preflight(lab, "-e", json.dumps({variable: value}))
    assert done.returncode != 0
    assert said in " ".join((done.stdout + done.stderr).split())


def test_an_override_of_a_model_that_is_not_there(lab: Path) -> None:
    done = preflight(lab, "-e", json.dumps({"citadel_models_overrides": {"phi-4": {"port": 1}}}))
    assert done.returncode != 0
    assert "citadel_models has no such model" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phi-3-mini": {"port": 11400}}, "port = 11400"),
        ({"phi-3-mini": {"port": 8000}}, "the gateway"),
        ({"phi-3-mini": {"context": "long"}}, "citadel_models.phi-3-mini.context = 'long': give a whole number"),
    ],
)
def test_a_stanza_that_cannot_be_meant(lab: Path, change: dict[str, dict[str, object]], said: str) -> None:
    done = preflight(lab, "-e", json.dumps({"citadel_models_overrides": change}))
    assert done.returncode != 0
    assert said in " ".join((done.stdout + done.stderr).split())


def test_an_inventory_without_a_server_for_the_models(lab: Path, tmp_path: Path) -> None:
    empty = tmp_path / "hosts.yml"
    empty.write_text("all: {children: {llm_servers: {hosts: {}}, metrics_servers: {hosts: {}}}}\n")
    done = preflight(lab, inventory=str(empty))
    assert done.returncode != 0
    assert "has no host in its group llm_servers: add the server" in " ".join(done.stdout.split())
