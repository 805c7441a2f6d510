"""The few shapes that a picture is made of, and the colours of Grafana's dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

PAGE, CARD, LINE, TEXT, DIM = "#111217", "#181b1f", "#2c3036", "#d8d9dd", "#8e9099"
GRID, TRACK = "#26292f", "#22252b"
COLORS = {
    **{"green": "#73bf69", "yellow": "#fade2a", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2"},
    **{"purple": "#b877d9", "text": "#9fa7b3", "transparent": "none"},
}
PALETTE = (
    *("#73bf69", "#5794f2", "#ff9830", "#b877d9", "#fade2a", "#37c8ab", "#f2495c", "#8ab8ff", "#ffb357", "#ca95e5"),
    *("#c8f2c2", "#1f60c4", "#fa6400", "#8f3bb8", "#e0b400", "#00a8a8", "#c4162a", "#a9d0ff"),
)


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    w: float
    h: float

    def inner(self, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0) -> Box:
        return Box(self.x + left, self.y + top, self.w - left - right, self.h - top - bottom)


def text(
    x: float, y: float, words: str, size: float = 12, color: str = TEXT, *, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}"'
        f' font-weight="{weight}">{escape(words)}</text>'
    )


def rect(box: Box, color: str, radius: float = 0, stroke: str = "", opacity: float = 1) -> str:
    more = f' stroke="{stroke}"' if stroke else ""
    more += f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{max(box.w, 0):.1f}" height="{max(box.h, 0):.1f}"'
    return f'<rect {place} rx="{radius:g}" fill="{color}"{more}/>'


def path(points: Sequence[tuple[float, float]], color: str, width: float = 1.5, dash: str = "") -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashed}/>'


def area(above: Sequence[tuple[float, float]], below: Sequence[tuple[float, float]], color: str, opacity: float) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*above, *reversed(below)])
    return f'<polygon points="{places}" fill="{color}" fill-opacity="{opacity:g}"/>'


def wide(words: str, size: float) -> float:
    """About how wide a text is: no font is asked."""
    narrow = sum(letter in "ilj.,:;'|! frt()" for letter in words)
    return size * (0.6 * (len(words) - narrow) + 0.34 * narrow)


def fitted(words: str, size: float, room: float) -> str:
    if wide(words, size) <= room:
        return words
    while words and wide(words + "…", size) > room:
        words = words[:-1]
    return words.rstrip() + "…"
