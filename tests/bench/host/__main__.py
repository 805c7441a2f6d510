"""What each group of a host's settings is worth to a model that serves: with it and without, in turns, in one run.

    python -m tests.bench.host --vllm ENVIRONMENT [--parameters 0.5e9] [--rounds 2] [--write]

Settings are set as the role `tuning` sets them, read back, and put back as they were. A group that this machine does
not have is said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from citadel import topology, tuning
from citadel.declarations import item_of
from citadel.kinds import KINDS, Host, Item, NotHereError
from tests.bench.serving import report
from tests.bench.serving.load import Seen, measure
from tests.bench.serving.made import Made
from tests.bench.serving.servers import Server, running

CLIENTS = 4
VARIANT = "bf16"  # which every processor computes with its fastest kernels
PAGES = 256


class MissingError(Exception):
    """What this machine has not."""


@contextmanager
def setting(kind: str, name: str, desired: str, **options: object) -> Iterator[Item]:
    """As the role would set it, and as it was afterwards."""
    item, host = item_of({"kind": kind, "name": name, "desired": desired, **options}), Host()
    try:
        before = KINDS[kind].keep(host, item)
        if said := KINDS[kind].untouchable(host, item):
            raise MissingError(said)
    except NotHereError as error:
        raise MissingError(str(error)) from None
    try:
        KINDS[kind].set(host, item)
        if (found := KINDS[kind].read(host, item)) != desired:
            raise MissingError(f"{item} was set to {desired} and is {found}")
        yield item
    finally:
        KINDS[kind].restore(host, item, before)


@dataclass
class Way:
    """One way to have a setting, and what was seen with it."""

    name: str
    seen: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seen)


@dataclass(frozen=True)
class Group:
    title: str
    unit: str
    ways: tuple[str, ...]
    trial: Callable[[str], float]
    better: Callable[[float, float], float]  # the first way's gain over another


def more(ours: float, theirs: float) -> float:
    return ours / theirs


def less(ours: float, theirs: float) -> float:
    return theirs / ours


class Bench:
    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.made = Made(options.parameters, options.vllm, options.port, work)
        self.server = self.made.tuned("tuned", VARIANT)
        self.trials = 0

    def groups(self) -> list[Group]:
        """The first way of each is what the role sets, or the unit has."""
        tokens = f"tokens/s at {CLIENTS} clients"
        return [
            Group("transparent hugepages", tokens, ("madvise", "always", "never"), self.transparent, more),
            Group("governor", tokens, ("performance", "powersave"), self.governor, more),
            Group("cores of one NUMA node", tokens, ("one node", "all nodes"), self.numa, more),
            Group("cores of its own, two models at once", tokens, ("own", "shared"), self.affinity, more),
            Group("read-ahead, start from a cold disk", "s", ("4096 KiB", "128 KiB"), self.read_ahead, less),
            Group("reserved hugepages", "of them in use", (f"{PAGES} pages",), self.hugepages, more),
        ]

    def rate(self, server: Server) -> float:
        return self.together(server)[0]

    def together(self, *servers: Server) -> list[float]:
        """Tokens/s of each, all at once."""
        with ExitStack() as stack:
            for server in servers:
                stack.enter_context(running(server, self.log()))
            for server in servers:
                measure(server.port, server.model, 2, 1, 8)
            seen: dict[int, Seen] = {}

            def ask(number: int, server: Server) -> None:
                seen[number] = measure(server.port, server.model, CLIENTS, self.options.turns, self.options.tokens)

            threads = [threading.Thread(target=ask, args=one) for one in enumerate(servers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return [seen[number].per_second for number in range(len(servers))]

    def log(self) -> Path:
        self.trials += 1
        return self.work / f"trial-{self.trials}.log"

    def transparent(self, way: str) -> float:
        with setting("sysfs", tuning.TRANSPARENT, way):
            return self.rate(self.server)

    def governor(self, way: str) -> float:
        with setting("sysfs", tuning.GOVERNOR, way):
            return self.rate(self.server)

    def numa(self, way: str) -> float:
        nodes = topology.Host.here(self.work).nodes
        if len(nodes) < 2:
            raise MissingError("this machine has one node")
        cpus = nodes[0].cpus
        taken = cpus if way == "one node" else spread([node.cpus for node in nodes], len(cpus))
        return self.rate(on(self.server, taken))

    def affinity(self, way: str) -> float:
        cpus = sorted(os.sched_getaffinity(0))
        half = len(cpus) // 2
        if not half:
            raise MissingError("this machine has one core")
        shares = (cpus[:half], cpus[half:]) if way == "own" else (cpus, cpus)
        beside = moved(self.made.tuned("beside", VARIANT), self.options.port + 1)
        return sum(self.together(on(self.server, shares[0]), on(beside, shares[1])))

    def read_ahead(self, way: str) -> float:
        """Of the disk alone: what the page cache has of the weights is dropped."""
        with setting("disk", "read_ahead_kb", way.partition(" ")[0], disks=[]):
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
            with running(self.server, self.log()) as run:
                return run.seconds

    def hugepages(self, way: str) -> float:
        with setting("sysctl", "vm.nr_hugepages", way.partition(" ")[0]), running(self.server, self.log()):
            measure(self.server.port, self.server.model, CLIENTS, 1, 8)
            return PAGES - meminfo("HugePages_Free")


def on(server: Server, cpus: Sequence[int]) -> Server:
    """On these cores, with a thread for each."""
    assert server.command[:2] == ("taskset", "-c")
    command = ("taskset", "-c", ",".join(map(str, cpus)), *server.command[3:])
    return replace(server, command=command, environment={**server.environment, "OMP_NUM_THREADS": str(len(cpus))})


def moved(server: Server, port: int) -> Server:
    """On another port: what an option says later counts."""
    return replace(server, command=(*server.command, "--port", str(port)), port=port)


def spread(nodes: Sequence[Sequence[int]], count: int) -> list[int]:
    """As many cores, of all nodes alike."""
    return [cpu for turn in zip(*nodes, strict=False) for cpu in turn][:count]


def meminfo(name: str) -> int:
    return int(Path("/proc/meminfo").read_text().partition(f"{name}:")[2].split()[0])


def measured(group: Group, rounds: int) -> list[Way]:
    """In turns, forwards and backwards, so that what drifts with time falls on all of them."""
    ways = [Way(name) for name in group.ways]
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            way.seen.append(group.trial(way.name))
            print(f"{group.title}: {way.name}: {way.seen[-1]:.2f} {group.unit}", flush=True)
    return ways


def row(group: Group, ways: Sequence[Way]) -> str:
    figures = ", ".join(f"{way.name} {way.median:.1f} ({min(way.seen):.1f}-{max(way.seen):.1f})" for way in ways)
    gains = ", ".join(f"{group.better(ways[0].median, way.median):.2f} x {way.name}" for way in ways[1:])
    return f"| {group.title} | {figures} {group.unit} | {gains} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-host", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="environment with vLLM")
    parser.add_argument("--parameters", type=float, default=0.5e9)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--port", type=int, default=21490)
    parser.add_argument("--only", default="", help="groups whose titles contain this, and no table")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    # not in /tmp, which may lie in memory, where no disk reads ahead
    work = Path(tempfile.mkdtemp(prefix="bench-host-", dir="/var/tmp"))
    lines = [f"{report.here()}; medians of {options.rounds} rounds.", "", "| setting | seen | gain |", "|---|---|---|"]
    try:
        bench = Bench(options, work)
        for group in bench.groups():
            if options.only not in group.title:
                continue
            try:
                lines.append(row(group, measured(group, options.rounds)))
            except MissingError as error:
                lines.append(f"| {group.title} | not here: {error} | |")
            print(lines[-1], flush=True)
    finally:
        shutil.rmtree(work)
    if options.write and not options.only:
        report.write("host", "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
