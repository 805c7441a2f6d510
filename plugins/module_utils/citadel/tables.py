"""The capacity plan as text: the sum with a bar for each model, the limits, the failed rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .catalogue import format_cpus
from .needs import Need
from .placement import Placed, excess, gib, tokens_per_second
from .settings import Settings
from .topology import GIB, Host

BAR = 24


def of_plan(host: Host, settings: Settings, placed: Sequence[Placed], notes: Sequence[str]) -> str:
    return "\n".join(
        [
            f"The catalogue fits {host.name} ({host.processor}).",
            "",
            *sums([one.need for one in placed], host, settings),
            "",
            *limits(placed, host),
            "",
            "tokens/s: the most that the cores can read of the weights, for one sequence",
            *(f"note: {note}" for note in notes),
        ]
    )


def of_refusal(
    refusal: tuple[Sequence[str], Sequence[Need]],
    host: Host,
    settings: Settings,
    notes: Sequence[str],
    ways: Sequence[str],
) -> str:
    problems, needs = refusal
    return "\n".join(
        [
            f"The catalogue does not fit {host.name} ({host.processor}).",
            *(f"  rule {problem}" for problem in problems),
            "",
            *sums(needs, host, settings),
            *(f"note: {note}" for note in notes),
            "",
            "Smallest changes that make it fit:",
            *(f"  - {way}" for way in ways or ["none found; take a larger host or fewer models"]),
        ]
    )


def sums(needs: Sequence[Need], host: Host, settings: Settings) -> Iterator[str]:
    yield row("model", "variant", ["weights", "cache", "repack", "other", "need"], f"of {gib(host.memory)}")
    for need in needs:
        cells = [need.weights, need.cache, need.repack, need.overhead, need.total]
        yield row(need.instance, need.variant, [f"{cell / GIB:.1f}" for cell in cells], bar(need.total, host.memory))
    fixed = {"reserve": settings.reserve_of(host.memory), "hugepages": host.hugepages, "tmpfs": host.tmpfs}
    for name, amount in fixed.items():
        if amount:
            yield row(name, "", ["", "", "", "", f"{amount / GIB:.1f}"], bar(amount, host.memory))
    over = excess(needs, host, settings)
    verdict = f"{gib(over)} too much" if over > 0 else f"{gib(-over)} free"
    yield row("sum", "", ["", "", "", "", f"{(host.memory + over) / GIB:.1f}"], verdict)


def row(name: str, variant: str, cells: Sequence[str], end: str) -> str:
    return f"{name:<16} {variant:<7} " + " ".join(f"{cell:>7}" for cell in cells) + f"  {end}"


def bar(amount: float, whole: float) -> str:
    filled = min(BAR, max(1, round(BAR * amount / max(whole, 1))))
    return "█" * filled + "·" * (BAR - filled)


def limits(placed: Sequence[Placed], host: Host) -> Iterator[str]:
    titles = ("model", "node", "cores", "MemoryMax", "cache", "start", "tokens/s")
    yield "{:<16} {:>4} {:<10} {:>10} {:>9} {:>6} {:>9}".format(*titles)
    for one in placed:
        yield (
            f"{one.need.instance:<16} {one.node:>4} {format_cpus(one.cpus):<10} "
            f"{gib(one.memory_max):>10} {gib(one.need.cache):>9} {one.start_seconds:>5}s {speed(one, host):>9}"
        )


def speed(one: Placed, host: Host) -> str:
    """A text is read at once, not word by word, where no words are answered."""
    return "-" if one.need.architecture.encoder else f"{ceiling(one, host):.1f}"


def ceiling(one: Placed, host: Host) -> float:
    return tokens_per_second(one.need, len(one.cpus), host)
