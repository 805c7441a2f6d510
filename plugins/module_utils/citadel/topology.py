"""The host as the capacity plan sees it: memory, nodes, cores, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .catalogue import parse_cpus
from .variants import Processor

GIB = 2**30
HUGEPAGE = 2**21  # its size where nobody has chosen another one


@dataclass(frozen=True)
class Node:
    """One NUMA node; `cpus` has one thread of each core, since two on one core share its memory pipes."""

    number: int
    cpus: tuple[int, ...]
    memory: int


@dataclass(frozen=True)
class Host:
    name: str
    memory: int
    nodes: tuple[Node, ...]
    processor: Processor
    hugepages: int = 0  # bytes of them
    hugepage: int = HUGEPAGE
    tmpfs: int = 0
    disk_free: int = 0
    installed: Mapping[str, int] = field(default_factory=dict)  # bytes of <model>/<revision> that are there already

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for node in self.nodes for cpu in node.cpus))

    @classmethod
    def sketched(
        cls, cores: int, memory: int, *, nodes: int = 1, isa: str = "avx512", disk: int = 4000 * GIB, hugepages: int = 0
    ) -> Host:
        """A host that is only thought of, its cores and memory spread evenly."""
        if cores < nodes or nodes < 1:
            raise ValueError(f"cores={cores}, nodes={nodes}: a node needs a core at least")
        share, rest = divmod(cores, nodes)
        start, made = 0, []
        for number in range(nodes):
            count = share + (1 if number < rest else 0)
            made.append(Node(number, tuple(range(start, start + count)), memory // nodes))
            start += count
        return cls(
            name=f"{cores} cores, {memory / GIB:.0f} GiB",
            memory=memory,
            nodes=tuple(made),
            processor=Processor.named(isa),
            hugepages=hugepages,
            disk_free=disk,
        )

    @classmethod
    def here(cls, models_root: Path, tmpfs: int = 0, hugepages: int | None = None, zentorch: bool = False) -> Host:
        """This machine, read from /proc and /sys; `hugepages` are pages that will be reserved."""
        meminfo = read_meminfo(Path("/proc/meminfo").read_text(encoding="ascii"))
        page = meminfo.get("Hugepagesize", HUGEPAGE)
        pages = meminfo.get("HugePages_Total", 0) if hugepages is None else hugepages
        return cls(
            name=os.uname().nodename,
            memory=meminfo["MemTotal"],
            nodes=read_nodes(Path("/sys/devices/system"), meminfo["MemTotal"], os.sched_getaffinity(0)),
            processor=Processor.of_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"), zentorch),
            hugepages=pages * page,
            hugepage=page,
            tmpfs=tmpfs,
            disk_free=shutil.disk_usage(nearest_existing(models_root)).free,
            installed=installed_revisions(models_root),
        )


def read_meminfo(text: str) -> dict[str, int]:
    """Bytes where the kernel says kB, plain counts elsewhere."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            found[key] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def read_nodes(system: Path, memory: int, allowed: set[int]) -> tuple[Node, ...]:
    first_threads = {cpu for cpu in allowed if cpu == first_thread(system, cpu, allowed)}
    nodes = []
    for folder in sorted((system / "node").glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        cpus = tuple(sorted(first_threads & set(parse_cpus((folder / "cpulist").read_text(encoding="ascii").strip()))))
        text = (folder / "meminfo").read_text(encoding="ascii")
        lines = "\n".join(line.split(maxsplit=2)[2] for line in text.splitlines() if line)
        if cpus:
            nodes.append(Node(int(folder.name[4:]), cpus, read_meminfo(lines)["MemTotal"]))
    if len(nodes) > 1:
        return tuple(nodes)
    # The only node has all there is. Its own figure may say less: memory that a virtual machine got while it ran.
    return (Node(nodes[0].number if nodes else 0, tuple(sorted(first_threads)), memory),)


def first_thread(system: Path, cpu: int, allowed: set[int]) -> int:
    siblings = system / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    if not siblings.exists():
        return cpu
    return min(set(parse_cpus(siblings.read_text(encoding="ascii").strip())) & allowed, default=cpu)


def nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def installed_revisions(models_root: Path) -> dict[str, int]:
    return {
        f"{manifest.parent.parent.name}/{manifest.parent.name}": sum(
            file.stat().st_size for file in manifest.parent.rglob("*") if file.is_file()
        )
        for manifest in models_root.glob("*/*/citadel-manifest.json")
    }
