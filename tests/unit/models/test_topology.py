"""What a host says of itself, read from the files that Linux writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from citadel.topology import GIB, Node, read_nodes


@pytest.fixture
def system(tmp_path: Path) -> Path:
    (tmp_path / "node").mkdir()
    return tmp_path


def add_node(system: Path, number: int, cpus: str, gib: int) -> None:
    folder = system / "node" / f"node{number}"
    folder.mkdir()
    (folder / "cpulist").write_text(f"{cpus}\n")
    (folder / "meminfo").write_text(f"Node {number} MemTotal:       {gib * 2**20} kB\n")


def test_the_memory_of_the_only_node_is_all_there_is(system: Path) -> None:
    """A virtual machine that got memory while it ran shows less of it on its node than it has."""
    add_node(system, 0, "0-1", 12)
    assert read_nodes(system, 24 * GIB, {0, 1}) == (Node(0, (0, 1), 24 * GIB),)


def test_each_of_two_nodes_has_its_own(system: Path) -> None:
    add_node(system, 0, "0-1", 12)
    add_node(system, 1, "2-3", 10)
    assert read_nodes(system, 24 * GIB, {0, 1, 2, 3}) == (Node(0, (0, 1), 12 * GIB), Node(1, (2, 3), 10 * GIB))


def test_a_host_without_nodes_is_one(system: Path) -> None:
    assert read_nodes(system, 8 * GIB, {0, 1}) == (Node(0, (0, 1), 8 * GIB),)
