"""A static address: what is refused, what netplan reads, and that only a new connection keeps a change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel.network import FILE, HOME, UNIT, WANTS, Network, NetworkError, netplan

WANTED = {
    "interface": "eth0",
    "address": "192.168.10.29/24",
    "gateway": "192.168.10.1",
    "nameservers": ["8.8.8.8", "8.8.4.4"],
}
TEXT = netplan(WANTED, "192.168.10.29")


def test_netplan_reads_it() -> None:
    found = yaml.safe_load(TEXT)["network"]
    assert (found["version"], found["renderer"]) == (2, "networkd")
    assert found["ethernets"] == {
        "eth0": {
            "dhcp4": False,
            "addresses": ["192.168.10.29/24"],
            "routes": [{"to": "default", "via": "192.168.10.1"}],
            "nameservers": {"addresses": ["8.8.8.8", "8.8.4.4"]},
        }
    }
    assert netplan({}, "192.168.10.29") == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"interface": "eth 0"}, "host_network.interface = 'eth 0': give the name of a network device"),
        ({"address": "192.168.10.29"}, "host_network.address = '192.168.10.29': give it with its prefix"),
        ({"address": "192.168.10.300/24"}, "host_network.address = '192.168.10.300/24': give it with its prefix"),
        ({"address": "192.168.10.255/24"}, "host_network.address = 192.168.10.255/24: that is the network itself"),
        (
            {"gateway": "192.168.11.1"},
            "host_network.gateway = 192.168.11.1: it is none of the others in 192.168.10.0/24",
        ),
        ({"gateway": "192.168.10.29"}, "host_network.gateway = 192.168.10.29: it is none of the others"),
        ({"nameservers": ["dns"]}, "host_network.nameservers = 'dns': give an address"),
        ({"nameservers": []}, "host_network.nameservers = '': give an address"),
        ({"address": "192.168.10.30/24"}, "the server is reached at 192.168.10.29, and nothing here moves it"),
    ],
)
def test_what_can_not_be_meant(change: dict[str, Any], said: str) -> None:
    with pytest.raises(NetworkError) as refused:
        netplan({**WANTED, **change}, "192.168.10.29")
    assert said in str(refused.value)


class World:
    """A host with netplan; what its programs were asked for, and which of them complains."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.complains = root, [], ""  # type: Path, list[str], str
        for place in ("usr/sbin/netplan", "sys/class/net/eth0/x", "sys/class/net/lo/x"):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).touch()

    def run(self, command: Sequence[str]) -> str:
        self.asked.append(" ".join(command))
        if self.complains and self.complains in self.asked[-1]:
            raise NetworkError("it complains")
        return ""

    @property
    def network(self) -> Network:
        return Network(self.root, self.run)

    def there(self, place: str) -> bool:
        return (self.root / place).exists()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_a_host_cannot_have(world: World) -> None:
    assert world.network.refusal(TEXT) == ""
    assert "has no network device eth1 (host_network.interface); it has eth0" in world.network.refusal(
        netplan({**WANTED, "interface": "eth1"}, "192.168.10.29")
    )
    other = world.root / "etc/netplan/50-cloud-init.yaml"
    other.parent.mkdir(parents=True)
    other.write_text("network:\n  ethernets:\n    eth01: {dhcp4: true}\n")
    assert world.network.refusal(TEXT) == ""
    other.write_text("network:\n  ethernets:\n    eth0:\n      dhcp4: true\n")
    assert "has /etc/netplan/50-cloud-init.yaml, which says something of eth0 too" in world.network.refusal(TEXT)
    (world.root / "usr/sbin/netplan").unlink()
    assert world.network.refusal(TEXT).startswith("has no netplan, which host_network is for")


def test_it_is_armed_before_it_is_changed_and_kept_by_a_new_connection(world: World) -> None:
    world.network.begin(TEXT, 60)
    timer, apply = (next(i for i, said in enumerate(world.asked) if word in said) for word in ("60s", "netplan apply"))
    assert timer < world.asked.index("netplan generate") < apply
    assert (world.root / FILE).read_text() == TEXT and (world.root / FILE).stat().st_mode & 0o777 == 0o600
    assert world.there(UNIT), "a boot in between undoes it too"
    with pytest.raises(NetworkError, match="an earlier change waits for its end"):
        world.network.begin(TEXT, 60)
    with pytest.raises(NetworkError, match="the change has not come about yet"):
        world.network.confirm(patience=0)
    (world.root / HOME / "applied").touch()
    world.network.confirm()
    assert not world.network.differs(TEXT)
    assert not world.there(UNIT) and not world.there(WANTS) and not world.there(f"{HOME}/armed")
    assert "systemctl stop host-network-revert-timer.timer" in world.asked


def test_what_netplan_refuses_is_as_it_was(world: World) -> None:
    (world.root / FILE).parent.mkdir(parents=True)
    (world.root / FILE).write_text("before")
    world.complains = "netplan generate"
    with pytest.raises(NetworkError, match="it complains"):
        world.network.begin(TEXT, 60)
    assert (world.root / FILE).read_text() == "before"
    assert not world.there(f"{HOME}/armed") and not world.there(UNIT)
    assert not any("netplan apply" in said for said in world.asked)


def test_who_comes_too_late_is_told(world: World) -> None:
    world.network.begin(TEXT, 60)
    (world.root / HOME / "armed").rename(world.root / HOME / "reverting")
    (world.root / HOME / "applied").touch()
    with pytest.raises(NetworkError, match="nobody came in anew in time, and the network is as it was before"):
        world.network.confirm()
