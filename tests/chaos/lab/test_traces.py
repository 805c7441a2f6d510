"""A lab comes and goes without a trace, also when it is cut off in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab.__main__ import down, up
from lab.machine import CGROUPS, Machine
from lab.network import FORWARDING
from lab.settings import ROOT, Host, Lab
from tools import programs

pytestmark = pytest.mark.timeout(600)
ONE_HOST = "Lab.from_environment(), hosts=(Host('llm-01', 29),)"
COMES_UP = f"""
from dataclasses import replace
from lab.__main__ import up
from lab.settings import Host, Lab
up(replace({ONE_HOST}))
"""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    if os.geteuid() != 0 or programs.missing("demo"):
        pytest.skip("a lab host needs root and the lab's programs (`sudo make test` installs them)")
    monkeypatch.setenv("LAB_PREFIX", "trace")
    monkeypatch.setenv("LAB_NETWORK", "10.77.52")
    small = replace(Lab.from_environment(), hosts=(Host("llm-01", 29),))
    yield small
    down(small)


def traces() -> dict[str, object]:
    """Everything that a lab of this name changes on a machine, as it is now; other labs may come and go meanwhile."""

    def ours(*command: str) -> list[str]:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return sorted(line for line in said.splitlines() if "trace" in line or "10.77.52." in line)

    return {
        "links": ours("ip", "-oneline", "link"),
        "addresses": ours("ip", "-oneline", "-4", "addr"),
        "routes": ours("ip", "route", "show", "table", "all"),
        "nft": ours("nft", "list", "ruleset"),
        "iptables": ours("iptables-save") if programs.find("iptables-save") else [],
        "mounts": ours("cat", "/proc/mounts"),
        "control groups": ours("find", str(CGROUPS), "-maxdepth", "2", "-name", "citadel-lab-*"),
        "processes": ours("pgrep", "--list-full", "systemd-nspawn"),
        "forwarding": FORWARDING.read_text(),
        "folder": (ROOT / ".lab/trace").exists(),
    }


def test_after_it_is_gone_everything_is_as_before(lab: Lab) -> None:
    before = traces()
    assert up(lab) is True
    assert traces() != before
    assert up(lab) is False, "a lab that stands needs nothing"
    assert down(lab) is True
    assert traces() == before
    assert down(lab) is False


@pytest.mark.parametrize("moment", ["id_ed25519", "hosts/llm-01/root", "hosts/llm-01/console.log"])
def test_a_run_that_was_killed_is_no_stumbling_block(lab: Lab, moment: str) -> None:
    before = traces()
    with subprocess.Popen([sys.executable, "-c", COMES_UP], cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while not (lab.directory / moment).exists():
            assert process.poll() is None, "it was over before it could be cut off"
            assert time.monotonic() < deadline, f"{moment} never came"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    up(lab)
    assert Machine(lab, lab.hosts[0]).leader is not None
    down(lab)
    assert traces() == before
