"""Names, address ranges and hosts of a lab: what follows from the checkout, and what is refused, in which words."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from lab import settings
from lab.__main__ import address
from lab.settings import Lab, LabError

ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
br-citadel\t00284D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
vpn0\t00004D0A\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0
"""


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout of its own on a machine that has nothing else."""
    at(monkeypatch, tmp_path / "one")
    uses(monkeypatch)
    return tmp_path / "one"


def at(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(settings, "ROOT", folder)


def uses(monkeypatch: pytest.MonkeyPatch, *taken: tuple[str, str]) -> None:
    monkeypatch.setattr(settings, "routes", lambda: iter([(device, IPv4Network(range_)) for device, range_ in taken]))


def lab(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Lab:
    for name in ("LAB_PREFIX", "LAB_NETWORK", "FLEET", "CITADEL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Lab.from_environment()


def record(lab: Lab, **content: object) -> None:
    lab.directory.mkdir(parents=True)
    lab.record.write_text(json.dumps(content))


def names(lab: Lab) -> list[str]:
    return [host.name for host in lab.hosts]


def test_a_lab_needs_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lab(monkeypatch)
    assert plain.network.subnet_of(IPv4Network("10.77.0.0/16"))
    assert [plain.address(host).rpartition(".")[2] for host in plain.hosts] == ["29", "35", "37"]
    assert lab(monkeypatch) == plain, "the same each time"


def test_an_empty_setting_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab(monkeypatch, LAB_PREFIX="", LAB_NETWORK="", FLEET="") == lab(monkeypatch)


def test_two_checkouts_share_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = lab(monkeypatch)
    at(monkeypatch, tmp_path / "two")
    assert_apart(one, lab(monkeypatch))


def test_the_tests_lab_shares_nothing_with_the_demos(monkeypatch: pytest.MonkeyPatch) -> None:
    for demo in (lab(monkeypatch), lab(monkeypatch, LAB_PREFIX="elevenless", LAB_NETWORK="10.77.255")):
        assert_apart(demo, demo.beside("t"))
        assert_apart(demo.beside("t"), demo.beside("c"), but_for_the_network=True)


def assert_apart(one: Lab, other: Lab, but_for_the_network: bool = False) -> None:
    for name in ("bridge", "table", "directory", "sockets", *(() if but_for_the_network else ("network", "gateway"))):
        assert getattr(one, name) != getattr(other, name)
    assert len(one.bridge) <= 15
    # what ssh adds while it makes the socket, and Ansible's or its own name for the connection
    assert all(len(f"{lab.sockets}/{'x' * 40}.{'x' * 16}") < 104 for lab in (one, other))


def test_a_network_that_something_else_uses_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first = lab(monkeypatch).network
    uses(monkeypatch, ("vpn0", str(first)), ("eth0", "192.0.2.0/24"))
    second = lab(monkeypatch).network
    assert not second.overlaps(first)
    uses(monkeypatch, ("vpn0", str(first)), ("br-other", str(second)))
    assert not any(lab(monkeypatch).network.overlaps(taken) for taken in (first, second))


def test_our_own_bridge_takes_no_network_from_us(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lab(monkeypatch)
    uses(monkeypatch, (plain.bridge, str(plain.network)))
    assert lab(monkeypatch) == plain


def test_a_lab_stays_on_the_network_that_it_stands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    record(lab(monkeypatch), network="10.77.200.0/24", hosts=["llm-01", "data-01", "metrics-01"])
    assert str(lab(monkeypatch).network) == "10.77.200.0/24"
    assert str(lab(monkeypatch, LAB_NETWORK="10.77.41").network) == "10.77.41.0/24", "the preflight tells the two apart"


def test_another_process_is_told_the_same_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = lab(monkeypatch).beside("t")
    assert lab(monkeypatch, **tests.settings) == tests


def test_what_the_kernel_says_of_its_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "route").write_text(ROUTES)
    found = [(device, str(network)) for device, network in settings.routes(tmp_path / "route")]
    assert found == [("br-citadel", "10.77.40.0/24"), ("vpn0", "10.77.0.0/20")]
    assert list(settings.routes(tmp_path / "none")) == []


def test_a_second_llm_server_when_it_is_asked_for_and_as_long_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "llm-02" not in names(lab(monkeypatch))
    assert "llm-02" not in names(lab(monkeypatch, FLEET="0"))
    fleet = lab(monkeypatch, FLEET="1")
    assert fleet.address(fleet.hosts[-1]).endswith(".28")
    record(fleet, network=str(fleet.network), hosts=names(fleet))
    assert names(lab(monkeypatch)) == ["llm-01", "data-01", "metrics-01", "llm-02"], "verbs see what came up"


def test_where_a_host_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lab(monkeypatch, LAB_NETWORK="10.77.41")
    assert address(plain, "data-01") == "10.77.41.35"
    with pytest.raises(LabError, match="has no host 'llm-02': it has llm-01, data-01, metrics-01"):
        address(plain, "llm-02")


def test_a_fleet_that_is_no_yes_or_no(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match=r"FLEET is 'two': say FLEET=1 for a lab with a second LLM server \(llm-02\)"):
        lab(monkeypatch, FLEET="two")


@pytest.mark.parametrize("prefix", ["Lab", "1lab", "lab-1", "elevenchars", "l b"])
def test_a_prefix_that_no_network_device_can_have(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    with pytest.raises(LabError, match=f"LAB_PREFIX is '{prefix}'.*Choose such a name"):
        lab(monkeypatch, LAB_PREFIX=prefix)


@pytest.mark.parametrize("network", ["10.77", "10.77.40.0", "ten.77.40", "10.77.256"])
def test_a_network_that_is_none(monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    with pytest.raises(LabError, match=f"LAB_NETWORK is '{network}'"):
        lab(monkeypatch, LAB_NETWORK=network)


@pytest.mark.parametrize(
    ("network", "why"),
    [("192.168.10", "belongs to the real estate"), ("8.8.8", "private addresses"), ("127.0.0", "private addresses")],
)
def test_a_network_that_is_somebody_elses(monkeypatch: pytest.MonkeyPatch, network: str, why: str) -> None:
    with pytest.raises(LabError, match=why):
        lab(monkeypatch, LAB_NETWORK=network)
