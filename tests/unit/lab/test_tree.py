"""Which package sources a host's tree is made from."""

from __future__ import annotations

from lab.settings import BOOKWORM, TRIXIE
from lab.tree import for_suite

OWN = """Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
SECURITY = OWN.replace("bookworm bookworm-updates", "bookworm-security").replace("/debian", "/debian-security", 1)
VENDOR = "Types: deb\nURIs: https://vendor.example\nSuites: bookworm\nSigned-By: /usr/share/keyrings/vendor.gpg\n"
LIST = OWN.replace("http://mirror.example/debian", "mirror+file:/etc/apt/mirrors")


def test_the_machines_own_sources_serve_its_own_suite() -> None:
    assert for_suite([OWN, SECURITY], BOOKWORM, BOOKWORM) == f"{OWN}\n{SECURITY}"


def test_another_suite_comes_from_the_same_mirror() -> None:
    sources = for_suite([OWN, SECURITY], BOOKWORM, TRIXIE)
    assert "Suites: trixie trixie-updates\n" in sources
    assert "Suites: trixie-security\n" in sources
    assert "http://mirror.example/debian\n" in sources
    assert BOOKWORM not in sources


def test_what_is_not_there_inside_a_tree_is_left_out() -> None:
    assert for_suite([VENDOR, LIST], BOOKWORM, TRIXIE) == ""
