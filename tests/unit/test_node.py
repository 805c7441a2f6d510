"""Whose node exporter listens on a host, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from citadel.node import NodeError, foreign
from tests.unit.test_declarations import put
from tests.unit.test_validation import Told

TEXTS = "/var/lib/prometheus/node-exporter"
LISTENING = """\
LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=80,fd=3))
LISTEN 0 4096 *:9100 *:* users:(("node_exporter",pid=95,fd=3))
"""


def host(root: Path, *words: str, unit: str = "docker-1a2b.scope") -> Told:
    put(root, "/proc/95/cgroup", f"0::/system.slice/{unit}\n")
    put(root, "/proc/95/cmdline", "".join(f"{word}\0" for word in words))
    return Told(root, ss=LISTENING)


def test_a_free_port_and_the_distributions_own_are_taken(tmp_path: Path) -> None:
    assert foreign(Told(tmp_path, ss=LISTENING), 9101) is None
    assert foreign(host(tmp_path, "prometheus-node-exporter", unit="prometheus-node-exporter.service"), 9100) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((f"--collector.textfile.directory={TEXTS}/",), f"stays as it is, and passes on the texts in {TEXTS}"),
        (("--collector.textfile.directory", "/srv/texts"), "reads its texts in /srv/texts: with citadel_texts = /srv/"),
        (("--web.listen-address=:9100",), f"reads no texts: with --collector.textfile.directory={TEXTS} Prometheus"),
    ],
)
def test_somebody_elses_stays(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    found = foreign(host(tmp_path, "/bin/node_exporter", *words), 9100)
    assert found is not None
    assert found.said(TEXTS).startswith("node_exporter (docker-1a2b.scope) on port 9100 stays as it is")
    assert said in found.said(TEXTS)


def test_any_other_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"^port 9100 is taken by node_exporter \(lpd.service\), which is no node exp"):
        foreign(host(tmp_path, "/usr/sbin/lpd", "9100", unit="lpd.service"), 9100)
