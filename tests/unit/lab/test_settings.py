"""Names and address ranges of a lab: what is refused, and in which words."""

from __future__ import annotations

import pytest

from lab.settings import Lab, LabError


def lab(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Lab:
    for name in ("LAB_PREFIX", "LAB_NETWORK", "CITADEL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Lab.from_environment()


def test_a_lab_needs_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lab(monkeypatch)
    assert [plain.address(host) for host in plain.hosts] == ["10.77.40.29", "10.77.40.35", "10.77.40.37"]


def test_an_empty_setting_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab(monkeypatch, LAB_PREFIX="", LAB_NETWORK="") == lab(monkeypatch)


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


def test_two_labs_share_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = lab(monkeypatch), lab(monkeypatch, LAB_PREFIX="other", LAB_NETWORK="10.77.41")
    for name in ("bridge", "table", "directory", "network", "gateway"):
        assert getattr(one, name) != getattr(other, name)
    assert len(one.bridge) <= 15
