"""A dashboard as a picture: its JSON and the answers to its questions, in the look of Grafana's dark theme.

Nothing here asks anybody: the same board and answers give the same SVG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tools.dashboards.figures import shown, ticks
from tools.dashboards.svg import (
    CARD,
    COLORS,
    DIM,
    GRID,
    LINE,
    PAGE,
    PALETTE,
    TEXT,
    TRACK,
    Box,
    area,
    fitted,
    path,
    rect,
    text,
    wide,
)

WIDTH, MARGIN, GAP, CELL, HEADER = 1440, 16, 8, 38, 56
HEAT = ("#23201f", "#4a2a17", "#7f3d0e", "#b85a0b", "#e6811a", "#ffab4a", "#ffd9a8")


@dataclass(frozen=True)
class Series:
    """An answer: what it is called by, and its values in time."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Answers:
    start: float
    end: float
    step: float
    found: Mapping[tuple[int, str], Sequence[Series]]  # by a panel's id and a question's letter
    releases: Sequence[tuple[float, str]] = ()

    def of(self, panel: Mapping[str, Any]) -> list[tuple[str, Series]]:
        """Every series of a panel, with the name that its legend gives."""
        return [
            (named(target.get("legendFormat", ""), one.labels), one)
            for target in panel.get("targets", [])
            for one in self.found.get((panel["id"], target["refId"]), ())
        ]


@dataclass
class Colors:
    """A name keeps its colour over all pictures, and what has a suffix (`x objective`) has the colour of `x`."""

    known: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        base = re.sub(r" (objective|plan|total|processors)$", "", name)
        return self.known.setdefault(base, PALETTE[len(self.known) % len(PALETTE)])


def named(legend: str, labels: Mapping[str, str]) -> str:
    if legend in {"", "__auto"}:
        return ", ".join(value for key, value in labels.items() if key != "__name__")
    filled = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found.group(1), ""), legend)
    return " ".join(filled.split())


def hexed(name: str) -> str:
    return COLORS.get(name, name)


def stepped(thresholds: Mapping[str, Any] | None, value: float) -> str:
    found = [one["color"] for one in (thresholds or {}).get("steps", []) if (one.get("value") or -math.inf) <= value]
    return hexed(found[-1]) if found else TEXT


def worded(config: Mapping[str, Any], value: float) -> tuple[str, str] | None:
    """The word and the colour that a value has instead of a figure."""
    for mapping in config.get("mappings") or []:
        found = mapping["options"].get(f"{value:g}")
        if found:
            return found["text"], hexed(found.get("color", "text"))
    return None


def overrides(panel: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in panel["fieldConfig"]["overrides"]:
        pattern = one["matcher"]["options"]
        regular = one["matcher"]["id"] == "byRegexp"
        if re.search(pattern.strip("/"), name) if regular else pattern == name:
            found |= {each["id"]: each["value"] for each in one["properties"]}
    return found


def said(config: Mapping[str, Any], value: float) -> tuple[str, str]:
    """What is written of a value, and in which colour."""
    decimals = config.get("decimals")
    figure = shown(value, config.get("unit", ""), None if decimals is None else int(decimals))
    return worded(config, value) or (figure, stepped(config.get("thresholds"), value))


def draw_stat(panel: Mapping[str, Any], box: Box, answers: Answers, _: Colors) -> list[str]:
    config, found = panel["fieldConfig"]["defaults"], answers.of(panel)
    if not found:
        return nothing(box, config.get("noValue", "No data"))
    out, width = [], box.w / len(found)
    names = panel["options"].get("textMode") == "value_and_name"
    for place, (name, series) in enumerate(found):
        cell = Box(box.x + place * width, box.y, width, box.h)
        figure, color = said(config, series.last)
        if panel["options"].get("graphMode") == "area" and len(series.points) > 1:
            out += spark(cell.inner(4, cell.h * (0.7 if names else 0.62), 4, 0), series, color, answers)
        size = min(30, cell.h * 0.42, cell.w / max(1, len(figure)) * 1.5)
        middle = cell.y + cell.h * (0.48 if names else 0.4) + size * 0.2
        out.append(text(cell.x + cell.w / 2, middle, figure, size, color, anchor="middle", weight=600))
        if names:
            out.append(text(cell.x + cell.w / 2, cell.y + 16, fitted(name, 13, cell.w - 8), 13, TEXT, anchor="middle"))
    return out


def spark(box: Box, series: Series, color: str, answers: Answers) -> list[str]:
    values = [value for _, value in series.points]
    low, high = min(0.0, *values), max(values)
    height = (high - low) or 1
    points = [
        (along(box, when, answers), box.y + box.h - (value - low) / height * box.h * 0.9)
        for when, value in series.points
    ]
    floor = [(x, box.y + box.h) for x, _ in points]
    return [area(points, floor, color, 0.18), path(points, color, 1)]


def along(box: Box, when: float, answers: Answers) -> float:
    return box.x + (when - answers.start) / (answers.end - answers.start) * box.w


def draw_lines(panel: Mapping[str, Any], box: Box, answers: Answers, colors: Colors) -> list[str]:
    config, found = panel["fieldConfig"]["defaults"], answers.of(panel)
    custom, unit = config["custom"], config["unit"]
    listed = [entry for entry in found if not overrides(panel, entry[0]).get("custom.hideFrom", {}).get("legend")]
    shown_names = listed[:6]
    chart = box.inner(0, 4, 6, 26 + 17 * (len(shown_names) + bool(shown_names)))
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    layers: dict[float, float] = {}
    drawn: list[tuple[str, str, list[tuple[float, float, float]], dict[str, Any]]] = []
    for name, series in found:
        own = overrides(panel, name)
        color = hexed(own["color"]["fixedColor"]) if "color" in own else colors.of(name)
        lifted = stacked and "custom.stacking" not in own
        points = []
        for when, value in series.points:
            under = layers.get(when, 0.0) if lifted else 0.0
            points.append((when, under, under + value))
            if lifted:
                layers[when] = under + value
        drawn.append((name, color, points, own))
    levels = [one for one in config.get("thresholds", {}).get("steps", []) if one.get("value")]
    most = max((top for _, _, points, _ in drawn for *_, top in points), default=0)
    marks = ticks(most if "max" not in config or most == 0 else max(most, min(config["max"], most * 1.6)), unit)
    out, chart = axes(chart, marks, unit, answers)
    high = marks[-1]

    def up(value: float) -> float:
        return chart.y + chart.h - value / high * chart.h

    for one in levels if drawn else ():
        if one["value"] <= high:
            out.append(
                path(
                    [(chart.x, up(one["value"])), (chart.x + chart.w, up(one["value"]))], hexed(one["color"]), 1, "6 5"
                )
            )
    bars = custom.get("drawStyle") == "bars"
    for _, color, points, own in drawn:
        if bars:
            thick = max(1.5, chart.w * answers.step / (answers.end - answers.start) * 0.8)
            out += [
                rect(
                    Box(along(chart, when, answers) - thick / 2, up(top), thick, up(below) - up(top)),
                    color,
                    0,
                    "",
                    0.75,
                )
                for when, below, top in points
                if top > below
            ]
            continue
        for piece in pieces(points, answers.step):
            tops = [(along(chart, when, answers), up(top)) for when, _, top in piece]
            if not (opacity := own.get("custom.fillOpacity", custom.get("fillOpacity", 0))):
                out.append(path(tops, color, 1.2, "6 5"))
                continue
            out.append(
                area(tops, [(along(chart, when, answers), up(below)) for when, below, _ in piece], color, opacity / 100)
            )
            out.append(path(tops, color, 1.6))
    for when, _ in answers.releases:
        if answers.start <= when <= answers.end:
            x = along(chart, when, answers)
            out.append(path([(x, chart.y), (x, chart.y + chart.h)], COLORS["purple"], 1, "4 4"))
    if not drawn:
        return [*out, *nothing(chart, config.get("noValue", "No data"))]
    colored = {name: color for name, color, *_ in drawn}
    return [*out, *legend(box, [(name, colored[name], one) for name, one in listed], unit)]


def pieces(points: Sequence[tuple[float, float, float]], step: float) -> list[list[tuple[float, float, float]]]:
    """A line breaks where nothing was known for longer than two minutes, or three steps."""
    cut = max(120.0, 3 * step)
    out: list[list[tuple[float, float, float]]] = []
    for point in points:
        if out and point[0] - out[-1][-1][0] <= cut:
            out[-1].append(point)
        else:
            out.append([point])
    return out


def axes(box: Box, marks: Sequence[float], unit: str, answers: Answers) -> tuple[list[str], Box]:
    words = [shown(mark, unit) for mark in marks]
    left = max(wide(word, 11) for word in words) + 12
    chart = box.inner(left)
    out = []
    for mark, word in zip(marks, words, strict=True):
        y = chart.y + chart.h - mark / marks[-1] * chart.h
        out.append(path([(chart.x, y), (chart.x + chart.w, y)], GRID, 1))
        out.append(text(chart.x - 6, y + 4, word, 11, DIM, anchor="end"))
    return [*out, *hours(chart, answers)], chart


def hours(chart: Box, answers: Answers) -> list[str]:
    span = answers.end - answers.start
    step = next(one for one in (60, 120, 300, 600, 1800, 3600, 7200, 14400, 86400) if span / one <= chart.w / 62)
    out = []
    for number in range(math.ceil(answers.start / step), int(answers.end // step) + 1):
        x = along(chart, number * step, answers)
        if chart.x + 14 <= x <= chart.x + chart.w - 14:
            moment = datetime.fromtimestamp(number * step, UTC)
            out.append(path([(x, chart.y), (x, chart.y + chart.h)], GRID, 1))
            out.append(text(x, chart.y + chart.h + 16, f"{moment:%H:%M}", 11, DIM, anchor="middle"))
    return out


def legend(box: Box, entries: Sequence[tuple[str, str, Series]], unit: str) -> list[str]:
    rows = entries[:6]
    top = box.y + box.h - 17 * len(rows) - 4
    right = box.x + box.w - 6
    out = [
        text(right - 78, top - 3, "Mean", 11, COLORS["blue"], anchor="end"),
        text(right, top - 3, "Last", 11, COLORS["blue"], anchor="end"),
    ]
    for place, (name, color, series) in enumerate(rows):
        y = top + 17 * place + 11
        if place == 5 and len(entries) > 6:
            out.append(text(box.x + 20, y, f"and {len(entries) - 5} more", 12, DIM))
            break
        mean = sum(value for _, value in series.points) / len(series.points)
        out.append(rect(Box(box.x + 2, y - 6, 13, 4), color, 2))
        out.append(text(box.x + 20, y, fitted(name, 12, box.w - 176), 12))
        out.append(text(right - 78, y, shown(mean, unit), 12, TEXT, anchor="end"))
        out.append(text(right, y, shown(series.last, unit), 12, TEXT, anchor="end"))
    return out


def draw_bars(panel: Mapping[str, Any], box: Box, answers: Answers, colors: Colors) -> list[str]:
    config, found = panel["fieldConfig"]["defaults"], answers.of(panel)
    if not found:
        return nothing(box)
    by_name = config["color"]["mode"] == "palette-classic-by-name"
    most = config.get("max") or max(series.last for _, series in found) or 1
    height = min(34.0, box.h / len(found))
    names = min(box.w * 0.45, max(wide(name, 12) for name, _ in found) + 10)
    out = []
    for place, (name, series) in enumerate(found[: max(1, int(box.h // 18))]):
        figure, color = said(config, series.last)
        color = colors.of(name) if by_name else color
        y = box.y + place * height
        track = Box(box.x + names, y + height * 0.18, box.w - names - 82, height * 0.64)
        out.append(text(box.x, y + height / 2 + 4, fitted(name, 12, names - 8), 12))
        out.append(rect(track, TRACK, 2))
        out.append(rect(Box(track.x, track.y, track.w * min(1.0, series.last / most), track.h), color, 2, "", 0.85))
        out.append(text(box.x + box.w, y + height / 2 + 5, figure, 14, color, anchor="end", weight=600))
    return out


def draw_table(panel: Mapping[str, Any], box: Box, answers: Answers, _: Colors) -> list[str]:
    organize = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    order = sorted(organize["indexByName"], key=organize["indexByName"].get)
    labels = [one for one in order if not one.startswith("Value")]
    values = [one for one in order if one.startswith("Value")]
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for target, value in zip(panel["targets"], values, strict=True):
        for one in answers.found.get((panel["id"], target["refId"]), ()):
            found.setdefault(tuple(one.labels.get(label, "") for label in labels), {})[value] = one.last
    if not found:
        return nothing(box)
    heads = [organize["renameByName"].get(one, one) for one in order]
    configs = [panel["fieldConfig"]["defaults"] | overrides(panel, head) for head in heads]
    lines: list[list[tuple[str, str]]] = []
    for row in sorted(found):
        cells = [(word, TEXT) for word in row]
        for config, value in zip(configs[len(labels) :], values, strict=True):
            if value not in found[row]:
                cells.append(("", TEXT))
                continue
            word, color = said(config, found[row][value])
            cells.append((word, color if "custom.cellOptions" in config else TEXT))
        lines.append(cells)
    room = [max(wide(word, 12.5) for word in (heads[n], *(row[n][0] for row in lines))) + 22 for n in range(len(order))]
    spare = (box.w - sum(room)) / len(order)
    out, height = [], 27.0
    lefts = [box.x + sum(room[:n]) + spare * n for n in range(len(order) + 1)]
    for n, head in enumerate(heads):
        right = n >= len(labels)
        where = lefts[n + 1] - 10 if right else lefts[n] + 6
        out.append(text(where, box.y + 14, head, 12, COLORS["blue"], anchor="end" if right else "start", weight=500))
    for place, cells in enumerate(lines[: int((box.h - 24) // height)]):
        y = box.y + 24 + place * height
        out.append(path([(box.x, y), (box.x + box.w, y)], LINE, 1))
        for n, (word, color) in enumerate(cells):
            right = n >= len(labels)
            where = lefts[n + 1] - 10 if right else lefts[n] + 6
            out.append(text(where, y + 18, word, 12.5, color, anchor="end" if right else "start"))
    return out


def draw_states(panel: Mapping[str, Any], box: Box, answers: Answers, _: Colors) -> list[str]:
    config, found = panel["fieldConfig"]["defaults"], answers.of(panel)
    if not found:
        return nothing(box)
    names = min(box.w * 0.45, max(wide(name, 12) for name, _ in found) + 12)
    chart = Box(box.x + names, box.y + 2, box.w - names - 6, box.h - 44)
    height = min(40.0, chart.h / len(found))
    chart = Box(chart.x, chart.y, chart.w, height * len(found))
    out = hours(chart, answers)
    for place, (name, series) in enumerate(found):
        y = chart.y + place * height
        out.append(text(chart.x - 8, y + height / 2 + 4, fitted(name, 12, names - 10), 12, TEXT, anchor="end"))
        ends = [*(when for when, _ in series.points[1:]), series.points[-1][0]]
        begun, state = series.points[0]
        for (when, value), end, after in zip(series.points, ends, [*series.points[1:], (0, math.nan)], strict=True):
            if value != after[1] or end - when > 3 * answers.step:
                left = along(chart, begun, answers)
                color = (worded(config, state) or ("", DIM))[1]
                out.append(
                    rect(
                        Box(left, y + height * 0.12, along(chart, end, answers) - left, height * 0.76),
                        color,
                        1,
                        "",
                        0.8,
                    )
                )
                begun, state = after
    x = box.x + 2.0
    for one in config["mappings"][0]["options"].values():
        out.append(rect(Box(x, box.y + box.h - 12, 13, 4), hexed(one["color"]), 2))
        out.append(text(x + 18, box.y + box.h - 6, one["text"], 12))
        x += 30 + wide(one["text"], 12)
    return out


def draw_heat(panel: Mapping[str, Any], box: Box, answers: Answers, _: Colors) -> list[str]:
    found = answers.of(panel)
    edges = sorted((series for _, series in found if "le" in series.labels), key=lambda one: float(one.labels["le"]))
    counts: dict[tuple[int, float], float] = {}
    below: dict[float, float] = {}
    for row, series in enumerate(edges):
        for when, value in series.points:
            counts[row, when] = max(0.0, value - below.get(when, 0.0))
            below[when] = max(value, below.get(when, 0.0))
    filled = sorted({row for (row, _), value in counts.items() if value > 0})
    if not filled:
        return nothing(box)
    rows = range(max(0, filled[0] - 1), min(len(edges), filled[-1] + 2))
    unit = panel["fieldConfig"]["defaults"]["unit"]
    words = [
        shown(float(edges[row].labels["le"]), unit) if edges[row].labels["le"] != "+Inf" else "more" for row in rows
    ]
    left = max(wide(word, 11) for word in words) + 12
    chart = box.inner(left, 2, 6, 44)
    height, thick = chart.h / len(rows), max(2.0, chart.w * answers.step / (answers.end - answers.start))
    most = max(counts.values())
    out = hours(chart, answers)
    for place, word in enumerate(words):
        y = chart.y + chart.h - (place + 1) * height
        if len(words) <= 12 or place % 2 == 0:
            out.append(text(chart.x - 6, y + 4 if place + 1 < len(words) else y + 9, word, 11, DIM, anchor="end"))
    for (row, when), value in sorted(counts.items()):
        if value > 0 and row in rows:
            shade = HEAT[min(len(HEAT) - 1, 1 + int((value / most) ** 0.5 * (len(HEAT) - 1.001)))]
            x = along(chart, when, answers)
            y = chart.y + chart.h - (row - rows[0] + 1) * height
            out.append(rect(Box(max(chart.x, x - thick), y + 0.5, thick - 0.5, height - 1), shade))
    for place, shade in enumerate(HEAT[1:]):
        out.append(rect(Box(chart.x + place * 26, box.y + box.h - 14, 26, 7), shade))
    out.append(text(chart.x - 6, box.y + box.h - 7, "few", 11, DIM, anchor="end"))
    return [*out, text(chart.x + 26 * (len(HEAT) - 1) + 6, box.y + box.h - 7, "many", 11, DIM)]


def draw_alerts(panel: Mapping[str, Any], box: Box, answers: Answers, _: Colors) -> list[str]:
    found = answers.found.get((panel["id"], "A"), ())
    if not found:
        return nothing(box, "No alerts matching filters")
    out = []
    for place, one in enumerate(found[: max(1, int(box.h // 24))]):
        y = box.y + place * 24 + 15
        color = COLORS["red"] if one.labels.get("alertstate") == "firing" else COLORS["orange"]
        about = " ".join(one.labels[key] for key in ("citadel_host", "model", "severity") if one.labels.get(key))
        out.append(rect(Box(box.x + 2, y - 9, 9, 9), color, 4.5))
        out.append(text(box.x + 20, y, fitted(one.labels["alertname"], 12.5, box.w * 0.55), 12.5))
        out.append(text(box.x + box.w - 4, y, fitted(about, 11.5, box.w * 0.4), 11.5, DIM, anchor="end"))
    return out


def nothing(box: Box, words: str = "No data") -> list[str]:
    return [text(box.x + box.w / 2, box.y + box.h / 2 + 5, words, 14, DIM, anchor="middle")]


KINDS: dict[str, Callable[[Mapping[str, Any], Box, Answers, Colors], list[str]]] = {
    "stat": draw_stat,
    "timeseries": draw_lines,
    "bargauge": draw_bars,
    "table": draw_table,
    "state-timeline": draw_states,
    "heatmap": draw_heat,
    "alertlist": draw_alerts,
}


def draw(board: Mapping[str, Any], answers: Answers, colors: Colors) -> str:
    column = (WIDTH - 2 * MARGIN + GAP) / 24
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    height = HEADER + bottom * CELL + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="Inter, Helvetica, Arial, sans-serif">',
        rect(Box(0, 0, WIDTH, height), PAGE),
        text(MARGIN, 35, "AI Infrastructure", 15, DIM),
        text(MARGIN + 130, 35, "/", 15, DIM),
        text(MARGIN + 144, 35, str(board["title"]), 17, TEXT, weight=600),
        text(WIDTH - MARGIN, 35, since(answers), 13, DIM, anchor="end"),
    ]
    for panel in board["panels"]:
        place = panel["gridPos"]
        card = Box(
            MARGIN + place["x"] * column,
            HEADER + place["y"] * CELL,
            place["w"] * column - GAP,
            place["h"] * CELL - GAP,
        )
        if panel["type"] == "row":
            out.append(text(card.x, card.y + 21, panel["title"], 14, TEXT, weight=600))
            continue
        out.append(rect(card, CARD, 3, LINE))
        out.append(text(card.x + 12, card.y + 21, fitted(panel["title"], 13.5, card.w - 20), 13.5, TEXT, weight=500))
        out += KINDS[panel["type"]](panel, card.inner(12, 32, 10, 8), answers, colors)
    return "\n".join([*out, "</svg>"]) + "\n"


def since(answers: Answers) -> str:
    begun, ended = (datetime.fromtimestamp(when, UTC) for when in (answers.start, answers.end))
    return f"{begun:%Y-%m-%d %H:%M} to {ended:%H:%M} UTC"
