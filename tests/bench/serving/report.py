"""What was seen, as a table and a picture of docs/benchmarks.md."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.serving.load import Seen

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
PICTURE = DOCUMENT.parent / "benchmarks" / "serving.svg"
CLIENTS = (1, 4, 16)
COLOURS = {1: "#b8c4ce", 4: "#6fa8d6", 16: "#1f77b4"}
BF16, INT8, INT4 = "tuned bf16", "tuned int8", "tuned int4"
UNTUNED, Q8, Q4 = "untuned bf16", "llama.cpp Q8_0", "llama.cpp Q4_0"
# whose tokens/s, against whose, with so many clients, how many times at least
AIMS = (
    (BF16, UNTUNED, 4, 1.3),
    (INT8, BF16, 1, 1.8),
    (INT8, BF16, 4, 1.8),
    (INT8, Q8, 1, 1.0),
    (INT8, Q8, 16, 3.0),
    (INT4, INT8, 1, 1.0),
)


@dataclass
class Result:
    weights: int  # bytes that one token reads
    starts: list[float] = field(default_factory=list)
    seen: dict[int, Seen] = field(default_factory=dict)
    memory: int = 0
    missing: str = ""  # why it was not measured


def here() -> str:
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    return f"{datetime.now(UTC).date()}, one run on {model}, {os.cpu_count()} cores"


def table(results: Mapping[str, Result], ceiling: float) -> list[str]:
    counts = [f"{n} client{'s' * (n > 1)}" for n in CLIENTS]
    titles = ["tokens/s", "weights", *counts, "first token", "of the ceiling", "ready", "in use"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for name, one in results.items():
        if one.missing:
            lines.append(f"| {name} | {one.missing} |" + " |" * (len(titles) - 2))
            continue
        firsts = " / ".join(f"{one.seen[n].first_token:.2f}" for n in CLIENTS)
        cells = [f"{one.weights / 1e9:.2f} GB", *(f"{one.seen[n].per_second:.1f}" for n in CLIENTS), f"{firsts} s"]
        cells += [f"{one.seen[1].per_second * one.weights / ceiling:.0%}"]
        cells += [" then ".join(f"{seconds:.0f} s" for seconds in one.starts), f"{one.memory / 2**30:.2f} GiB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def aims(results: Mapping[str, Result]) -> list[str]:
    lines = ["| aim | clients | at least | seen |", "|---|---|---|---|"]
    for ours, theirs, clients, least in AIMS:
        missing = next((f"{name}: {results[name].missing}" for name in (ours, theirs) if results[name].missing), "")
        ratio = 0.0 if missing else results[ours].seen[clients].per_second / results[theirs].seen[clients].per_second
        said = missing or f"{ratio:.2f} x, {'met' if ratio >= least else '**missed**'}"
        lines.append(f"| {ours} / {theirs} | {clients} | {least:.1f} x | {said} |")
    return lines


def picture(results: Mapping[str, Result]) -> str:
    """Three bars for each server, one for each number of clients."""
    shown = {name: one.seen for name, one in results.items() if one.seen}
    most = max(seen.per_second for one in shown.values() for seen in one.values())
    height = 50 + 70 * len(shown)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" font-family="sans-serif" '
        'font-size="14">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="22" font-weight="bold">Tokens/s with 1, 4 and 16 clients, the same weights</text>',
    ]
    for row, (name, one) in enumerate(shown.items()):
        top = 40 + 70 * row
        lines.append(f'<text x="150" y="{top + 33}" text-anchor="end">{name}</text>')
        for index, clients in enumerate(CLIENTS):
            y, rate = top + 20 * index, one[clients].per_second
            width = max(2, round(480 * rate / most))
            lines.append(f'<rect x="160" y="{y}" width="{width}" height="18" fill="{COLOURS[clients]}"/>')
            lines.append(f'<text x="{166 + width}" y="{y + 14}" font-size="12">{rate:.0f}</text>')
    return "\n".join([*lines, "</svg>", ""])


def written(results: Mapping[str, Result], ceiling: float, told: Sequence[str]) -> str:
    plot = "![Tokens/s by format and clients](benchmarks/serving.svg)"
    return "\n".join([*told, "", plot, "", *table(results, ceiling), "", *aims(results)])


def draw(results: Mapping[str, Result]) -> None:
    PICTURE.write_text(picture(results), encoding="utf-8")


def write(mark: str, text: str) -> None:
    """Between the page's marks of this name."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    content = DOCUMENT.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise RuntimeError(f"{DOCUMENT} has lost its marks {begin} and {end}: put them back")
    before, _, rest = content.partition(begin)
    DOCUMENT.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
