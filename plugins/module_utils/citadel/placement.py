"""Where each instance runs: a NUMA node, cores of its own, and the limits that follow.

sum(need) + reserve + hugepages + tmpfs <= memory, on the host and on each node
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .catalogue import CatalogueError, Model, format_cpus
from .needs import Need
from .settings import Settings
from .topology import GIB, Host

GB = 10**9
MEMORY_MAX_FACTOR = 1.1
CORE_BYTES_PER_SECOND = 12e9  # what one core pulls from memory
WITHOUT_AVX512 = 2  # 16 bits are turned into 32 for each use, so they save nothing
LOAD_BYTES_PER_SECOND = 150e6  # a slow disk, nothing cached
# Imports and compilation on a busy machine, and slack upon a measured load. A crash is told at once, so patience costs
# nothing; and a figure that a slow day does not exceed leaves the units as they are.
START_SECONDS, START_FACTOR = 600, 3
# Few steps, so that a start that took a second more than the last one changes nothing.
START_STEPS = (180, 300, 600, 1200, 2400, 4800, 9600)


@dataclass(frozen=True)
class Placed:
    """An instance with its limits."""

    need: Need
    node: int
    cpus: tuple[int, ...]
    start_seconds: int

    @property
    def memory_max(self) -> int:
        if self.need.model.memory_gb:
            return round(self.need.model.memory_gb * GB)
        return round(self.need.total * MEMORY_MAX_FACTOR)


def tokens_per_second(need: Need, cores: int, host: Host) -> float:
    """The most for one sequence: each token reads all active weights once. Without AMX four bits save memory and no
    time, since unpacking them takes what reading them would have."""
    variant = "bf16" if need.variant == "int4" and not host.processor.amx else need.variant
    active = need.architecture.active_bytes(variant) or need.weights
    if variant == "bf16" and not host.processor.avx512:
        active *= WITHOUT_AVX512
    return cores * CORE_BYTES_PER_SECOND / active


def gib(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB"


def place(needs: Sequence[Need], host: Host, settings: Settings) -> tuple[list[str], list[Placed]]:
    """The rules that failed, and if none did, a place for each instance."""
    problems = limit_problems(needs)
    rules = (memory_problem, disk_problem, core_problem)
    problems += filter(None, (rule(needs, host, settings) for rule in rules))
    if problems:
        return problems, []
    free = Free(host, settings)
    placed: dict[str, Placed] = {}
    # Those that name their cores come first, then the large ones, for which it is hardest to find a place.
    for need in sorted(needs, key=lambda need: (not need.model.cpus, -need.total, need.instance)):
        found = free.take(need)
        if found is None:
            problems.append(
                f"nodes: {need.instance} needs {gib(need.total)} and {need.model.cores} cores on one NUMA node; "
                f"what is left on them is {free}"
            )
            continue
        node, cpus = found
        placed[need.instance] = Placed(need, node, cpus, start_seconds(need))
    return problems, [placed[need.instance] for need in needs if need.instance in placed]


def start_seconds(need: Need) -> int:
    """Generous: it only bounds how long a model that hangs is waited for; one that dies is known at once.
    A measured start makes it longer, never shorter, so that measuring alone does not make a new release."""
    estimate = START_SECONDS + need.weights / LOAD_BYTES_PER_SECOND
    wanted = max(estimate, need.measured.load_seconds * START_FACTOR)
    return next((step for step in START_STEPS if step >= wanted), START_STEPS[-1])


def excess(needs: Sequence[Need], host: Host, settings: Settings) -> int:
    return sum(need.total for need in needs) + settings.fixed_on(host) - host.memory


def limit_problems(needs: Sequence[Need]) -> list[str]:
    """A limit below the need does not save memory, it has the service killed at start."""
    return [
        f"limit: {need.instance} needs {gib(need.total)} and memory_gb gives it {need.model.memory_gb:g} GB, "
        f"which is {gib(need.model.memory_gb * GB)}"
        for need in needs
        if need.model.memory_gb and need.model.memory_gb * GB < need.total
    ]


def memory_problem(needs: Sequence[Need], host: Host, settings: Settings) -> str:
    over = excess(needs, host, settings)
    if over <= 0:
        return ""
    return (
        f"memory: the models need {gib(sum(need.total for need in needs))}, the reserve is "
        f"{gib(settings.reserve_of(host.memory))}, hugepages {gib(host.hugepages)}, tmpfs {gib(host.tmpfs)}; "
        f"together {gib(over)} more than {gib(host.memory)}"
    )


def disk_problem(needs: Sequence[Need], host: Host, settings: Settings) -> str:
    """This revision and those kept for a rollback; what is in the store already is paid for."""
    wanted = 0
    for need in {need.model.name: need for need in needs}.values():
        name, weights = need.model.name, need.model.weights[need.variant]
        revision = weights.revision
        stored = {key: size for key, size in host.installed.items() if key.startswith(f"{name}/")}
        there = stored.pop(f"{name}/{revision}", 0)
        missing = max(0, settings.revisions_kept - 1 - len(stored))
        wanted += max(0, need.files - there) + need.files * missing
        if weights.made_from and not there:
            base = host.installed.get(f"{name}/{weights.made_from}", 0)
            wanted += max(0, need.architecture.weight_bytes("bf16") - base)
    if wanted <= host.disk_free:
        return ""
    return (
        f"disk: {settings.revisions_kept} revisions of each model need {gib(wanted)} more, {gib(host.disk_free)} are "
        f"free; free {gib(wanted - host.disk_free)}, or keep fewer revisions"
    )


def core_problem(needs: Sequence[Need], host: Host, settings: Settings) -> str:
    wanted, there = sum(need.model.cores for need in needs), len(host.cpus)
    if wanted <= there or settings.share_cores:
        return ""
    return (
        f"cores: the models take {wanted} at least, half of what they ask for, and there are {there}; "
        f"lower `cores` by {2 * (wanted - there)} in all"
    )


class Free:
    """What is left of each node while instances are placed."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.host = host
        self.share = settings.share_cores
        self.cpus = {node.number: list(node.cpus) for node in host.nodes}
        fixed = settings.fixed_on(host)
        self.memory = {node.number: node.memory - round(fixed * node.memory / host.memory) for node in host.nodes}
        self.taken = 0

    def __str__(self) -> str:
        return ", ".join(
            f"{gib(max(0, self.memory[number]))} and {len(cpus)} cores" for number, cpus in self.cpus.items()
        )

    def take(self, need: Need) -> tuple[int, tuple[int, ...]] | None:
        found = self.named(need.model) if need.model.cpus else self.fitting(need)
        if found is None or self.memory[found[0]] < need.total:
            return None
        node, cpus = found
        self.memory[node] -= need.total
        self.taken += 1
        if not self.share:
            for number in self.cpus:
                self.cpus[number] = [cpu for cpu in self.cpus[number] if cpu not in cpus]
        return node, cpus

    def named(self, model: Model) -> tuple[int, tuple[int, ...]]:
        """The cores that the stanza names; that someone else has them too is the stanza's fault, not the host's."""
        left = {cpu for cpus in self.cpus.values() for cpu in cpus}
        for cpu in model.cpus:
            if cpu not in self.host.cpus:
                problem = f"{self.host.name} has no core {cpu}; it has {format_cpus(self.host.cpus)}"
            elif cpu not in left:
                problem = f"core {cpu} belongs to another instance too; give disjoint sets, or leave cpus empty"
            else:
                continue
            raise CatalogueError(model.name, "cpus", format_cpus(model.cpus), problem)
        return next(node.number for node in self.host.nodes if model.cpus[0] in node.cpus), model.cpus

    def fitting(self, need: Need) -> tuple[int, tuple[int, ...]] | None:
        if self.share:
            return self.shared(need)
        count = need.model.cores
        fitting = [node for node, cpus in self.cpus.items() if len(cpus) >= count and self.memory[node] >= need.total]
        if not fitting:
            return None
        # The fullest node that still fits keeps the emptier ones whole for others.
        node = min(fitting, key=lambda number: (len(self.cpus[number]), number))
        return node, tuple(self.cpus[node][:count])

    def shared(self, need: Need) -> tuple[int, tuple[int, ...]]:
        """Each instance begins one further on, so that no core is everybody's first."""
        node = max(self.memory, key=lambda number: self.memory[number])
        cpus, count = self.cpus[node], need.model.cores
        chosen = {cpus[(self.taken * count + offset) % len(cpus)] for offset in range(min(count, len(cpus)))}
        return node, tuple(sorted(chosen))
