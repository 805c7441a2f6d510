"""Figures as Grafana writes them: its units, and axes with round numbers."""

from __future__ import annotations

import math

SECONDS = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"))


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit, in three digits unless the panel says how many."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{digits(value * 100, decimals)}%"
    if unit == "s":
        factor, name = next((one for one in reversed(SECONDS) if abs(value) >= one[0]), SECONDS[2])
        return f"{digits(value / factor, decimals)} {name}"
    if unit == "bytes":
        return scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), decimals)
    if unit == "Bps":
        return scaled(value, 1000, ("B/s", "kB/s", "MB/s", "GB/s"), decimals)
    short = scaled(value, 1000, ("", "K", "Mil", "Bil"), decimals)
    after = "req/s" if unit == "reqps" else unit.removeprefix("suffix:").strip() if unit.startswith("suffix:") else ""
    return f"{short} {after}".strip()


def scaled(value: float, base: int, names: tuple[str, ...], decimals: int | None) -> str:
    power = min(len(names) - 1, int(math.log(abs(value), base) + 1e-9)) if abs(value) >= 1 else 0
    return f"{digits(value / base**power, decimals)} {names[power]}".strip()


def digits(value: float, decimals: int | None) -> str:
    if decimals is None:
        decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:.{min(decimals, 4)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{decimals}f}"


def ticks(most: float, unit: str, wanted: int = 4) -> list[float]:
    """Round numbers from zero to just beyond the largest value: powers of two where bytes are counted so."""
    if most <= 0:
        return [0.0, 1.0]
    base = 1024.0 ** int(math.log(most, 1024)) if unit == "bytes" and most >= 1024 else 1.0
    rough = most / base / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= rough * 0.999) * base
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]
