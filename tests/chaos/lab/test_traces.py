"""A lab comes and goes without a trace, also when it is cut off in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.__main__ import down, up
from lab.machine import CGROUPS, Machine, running
from lab.network import FORWARDING
from lab.settings import ROOT, Lab, LabHost
from tools import programs

pytestmark = pytest.mark.timeout(600)
ONE_HOST = "Lab.from_environment(), hosts=(LabHost('llm-01', 29),)"
COMES_UP = f"""
from dataclasses import replace
from lab.__main__ import up
from lab.settings import LabHost, Lab
up(replace({ONE_HOST}))
"""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    if os.geteuid() != 0 or programs.missing("demo"):
        pytest.skip("a lab host needs root and the lab's programs (`sudo make test` installs them)")
    ours = Lab.from_environment().beside("c")
    for name, value in ours.settings.items():
        monkeypatch.setenv(name, value)
    small = replace(ours, hosts=(LabHost("llm-01", 29),))
    yield small
    down(small)


def traces(lab: Lab) -> dict[str, object]:
    """Everything that a lab of this name changes on a machine, as it is now; other labs may come and go meanwhile."""

    addresses = str(lab.network.network_address).removesuffix("0")

    def ours(lines: Iterable[str]) -> list[str]:
        return sorted(line for line in lines if lab.prefix in line or addresses in line)

    def said(*command: str) -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return ours(done.stdout.splitlines())

    return {
        "links": said("ip", "-oneline", "link"),
        "addresses": said("ip", "-oneline", "-4", "addr"),
        "routes": said("ip", "route", "show", "table", "all"),
        "nft": said("nft", "list", "ruleset"),
        # where docker or ufw have brought iptables, the lab lets its packets pass there; else there is nothing to see
        "iptables": said("iptables", "-S", "FORWARD") if programs.find("iptables") else [],
        "mounts": ours(Path("/proc/mounts").read_text().splitlines()),
        "control groups": ours(map(str, CGROUPS.glob("**/citadel-lab-*"))),
        "processes": ours(" ".join(arguments) for _, arguments in running()),
        "forwarding": FORWARDING.read_text(),
        "folders": (lab.directory.exists(), lab.sockets.exists()),
    }


def test_after_it_is_gone_everything_is_as_before(lab: Lab) -> None:
    before = traces(lab)
    assert up(lab) is True
    assert traces(lab) != before
    assert up(lab) is False, "a lab that stands needs nothing"
    assert down(lab) is True
    assert traces(lab) == before
    assert down(lab) is False


@pytest.mark.parametrize("moment", ["id_ed25519", "hosts/llm-01/root", "hosts/llm-01/console.log"])
def test_a_run_that_was_killed_is_no_stumbling_block(lab: Lab, moment: str) -> None:
    before = traces(lab)
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
    assert traces(lab) == before
