"""The results as a section of docs/benchmarks.md and as a picture."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from tests.bench.gateway.leaving import Found

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "benchmarks" / "gateway.svg"
OURS = "citadel-gateway"


def machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def section(results: dict[str, Any], settings: dict[str, Any]) -> str:
    lines: list[str] = []
    lines.append(
        f"{today()}, {machine()}. One core for each gateway, the other one for the backend and the load; load average "
        f"before: {settings['load']}. Everything is of one run (`make bench-gateway`), each figure the best of three "
        f"tries of {settings['seconds'] / 3:.0f} s, so the ratios within it say more than the figures. citadel-gateway "
        "ran with keys, limits, metrics, access and audit log on; the others with their makers' settings, "
        "but for HAProxy, which was also told `http-no-delay` and `http-reuse always`."
    )
    lines += ["", "![Requests per second at 16 connections](benchmarks/gateway.svg)", ""]
    points = settings["points"]
    lines += ["### Whole answers: requests/s (p50 / p99 in ms)", ""]
    head = ["", *(f"{body} at {connections}" for body, connections in points)]
    rows = []
    for name, result in results.items():
        row = [f"{name} {result['version']}"]
        for point in points:
            found = result["whole"].get(point)
            row.append(f"{found['rate']:,.0f} ({found['p50']:.1f} / {found['p99']:.1f})" if found else "-")
        rows.append(row)
    lines += table(head, rows)
    lines += ["", *_ratios(results)]
    lines += ["", f"### Streams of {settings['chunks']} chunks, one every 20 ms", ""]
    lines.append(
        "Added time to the first chunk (p50 / p99 in ms, against no gateway), delay of a chunk on its way "
        "(p50 / p99), chunks lost:"
    )
    lines.append("")
    rows = []
    for name, result in results.items():
        row = [name]
        for count in settings["streams"]:
            found = result["streams"].get(count)
            if not found:
                row.append("-")
                continue
            first = f"{found['added_p50']:+.2f} / {found['added_p99']:+.2f}" if name != "none" else "-"
            row.append(f"{first}; {found['transit_p50']:.2f} / {found['transit_p99']:.2f}; {found['lost']} lost")
        rows.append(row)
    lines += table(["", *(f"{count} at once" for count in settings["streams"])], rows)
    lines += ["", "### Memory and start", ""]
    rows = [
        [name, f"{result['cold']:.2f} s", f"{result['rest']:.0f} MB", f"{result['after']:.0f} MB"]
        for name, result in results.items()
        if name != "none"
    ]
    lines += table(["", "cold start to the first 200", "resident at rest", "after the load"], rows)
    for name, reason in settings["missing"].items():
        lines += ["", f"Not measured: {name} ({reason})."]
    return "\n".join(lines)


def churn(samples: list[float], seconds: float) -> str:
    """The first fifth is left out: caches fill."""
    early, late = samples[len(samples) // 5], samples[-1]
    return (
        f"{today()}, {machine()}. Churn of citadel-gateway, {seconds:.0f} s of requests and streams "
        f"(`python -m tests.bench.gateway --only --churn {seconds:.0f}`): {early:.1f} MB resident after the first "
        f"fifth, {late:.1f} MB at the end, {max(samples):.1f} MB at most."
    )


def encrypted(results: dict[str, dict[str, dict[str, float]]]) -> str:
    rows = []
    for name, found in results.items():
        plain, tls = found["http"], found["https"]
        rates = [f"{one[kind]:,.0f}" for kind in ("kept", "each") for one in (plain, tls)]
        rows.append([name, *rates[:2], f"{tls['kept'] / plain['kept']:.2f}", *rates[2:]])
    head = ["", "kept, in the clear", "kept, TLS", "ratio", "one for each, in the clear", "one for each, TLS"]
    return "\n".join(
        [
            f"{today()}, {machine()}. Requests/s of 1 kB at 16 connections, TLS 1.3 with a P-256 certificate, no "
            "session resumed; with a connection for each request, its rate is that of handshakes.",
            "",
            *table(head, rows),
        ]
    )


def left(found: Found) -> str:
    early, late = found.memory[len(found.memory) // 5], found.memory[-1]
    return (
        f"{today()}, {machine()}. {found.requests:,} requests, of which {found.left:,} clients left: half of them "
        "before the first byte, half in the middle of a stream. "
        f"Answered otherwise than with 200: {found.refused}. Afterwards, of connections and requests in flight: "
        f"{', '.join(f'{name} {value:.0f}' for name, value in found.counters.items())}. Resident: {early:.1f} MB after "
        f"the first fifth, {late:.1f} MB at the end, {max(found.memory):.1f} MB at most."
    )


def _ratios(results: dict[str, Any]) -> list[str]:
    ours = results.get(OURS, {}).get("whole", {}).get(("1 kB", 16))
    if not ours:
        return []
    words = []
    for name in ("vllm-router", "HAProxy", "LiteLLM", "nginx"):
        other = results.get(name, {}).get("whole", {}).get(("1 kB", 16))
        if other and other["rate"]:
            words.append(f"{ours['rate'] / other['rate']:.2f} x {name}")
    return [f"At 16 connections and 1 kB citadel-gateway does {', '.join(words)}."] if words else []


def picture(results: dict[str, Any]) -> str:
    rates = {
        name: result["whole"][("1 kB", 16)]["rate"]
        for name, result in results.items()
        if result["whole"].get(("1 kB", 16))
    }
    bars = sorted(((rate, name) for name, rate in rates.items() if name != "none"), reverse=True)
    most = max((rate for rate, _ in bars), default=1.0)
    height = 40 + 34 * len(bars)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" '
        'font-family="sans-serif" font-size="14">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="22" font-weight="bold">Requests/s on one core, 16 connections, 1 kB</text>',
    ]
    for index, (rate, name) in enumerate(bars):
        y = 40 + 34 * index
        width = max(2, round(420 * rate / most))
        colour = "#1f77b4" if name == OURS else "#b8c4ce"
        lines.append(f'<text x="150" y="{y + 17}" text-anchor="end">{name}</text>')
        lines.append(f'<rect x="160" y="{y}" width="{width}" height="24" fill="{colour}"/>')
        lines.append(f'<text x="{170 + width}" y="{y + 17}">{rate:,.0f}</text>')
    return "\n".join([*lines, "</svg>", ""])


def draw(results: dict[str, Any]) -> None:
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(results))


def write(mark: str, section: str) -> None:
    """Between the page's marks of this name."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    text = PAGE.read_text() if PAGE.exists() else "# Benchmarks\n"
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{section}\n{end}{after}")
