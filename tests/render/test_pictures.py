"""The drawing of dashboards, without anybody to ask."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from tests.render.invented import answers
from tools.dashboards import FOLDER
from tools.dashboards.drawing import WIDTH, Answers, Colors, Series, draw, named
from tools.dashboards.figures import shown, ticks

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_same_answers_give_the_same_picture_and_nothing_leaves_it(path: object) -> None:
    board = json.loads(path.read_text())  # type: ignore[attr-defined]
    picture = draw(board, answers(board), Colors())
    assert picture == draw(board, answers(board), Colors())
    root = ET.fromstring(picture)
    height = float(root.attrib["viewBox"].split()[3])
    for one in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(one.attrib["x"]) <= WIDTH and 0 <= float(one.attrib["y"]) <= height
    titles = {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert titles >= {panel["title"] for panel in board["panels"]}
    assert "nan" not in picture and "No data" not in titles


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_without_answers_every_panel_says_so(path: object) -> None:
    board = json.loads(path.read_text())  # type: ignore[attr-defined]
    picture = draw(board, replace(answers(board), found={}), Colors())
    ET.fromstring(picture)
    assert "No data" in picture


def test_a_line_breaks_where_nothing_was_known() -> None:
    board = json.loads((FOLDER / "llm_server_overview.json").read_text())
    [panel] = [panel for panel in board["panels"] if panel["title"] == "Throughput"]
    whole = [(15.0 * step, 1.0) for step in range(60)]
    gap = [one for one in whole if not 200 < one[0] < 500]

    def drawn(points: list[tuple[float, float]]) -> int:
        found = {(panel["id"], "A"): [Series({"model": "phi"}, points)]}
        return len(re.findall("<polygon", draw(board, Answers(0, 900, 15, found), Colors())))

    assert (drawn(whole), drawn(gap)) == (1, 2)


def test_a_model_has_one_colour_wherever_it_is() -> None:
    colors = Colors()
    assert colors.of("phi") == colors.of("phi objective") != colors.of("mixtral") != colors.of("other")


def test_a_legend_is_filled_from_labels() -> None:
    assert named("{{host}} {{gone}} x", {"host": "a"}) == "a x"
    assert named("__auto", {"__name__": "up", "job": "a", "b": "c"}) == "a, c"


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.1234, "percentunit", "12.3%"),
        (0, "percentunit", "0%"),
        (0.00042, "s", "420 µs"),
        (0.25, "s", "250 ms"),
        (59, "s", "59 s"),
        (5400, "s", "1.5 h"),
        (6 * 1024**3, "bytes", "6 GiB"),
        (1500, "Bps", "1.5 kB/s"),
        (1234567, "short", "1.23 Mil"),
        (2.5, "reqps", "2.5 req/s"),
        (12, "suffix: tok/s", "12 tok/s"),
        (float("nan"), "short", "-"),
    ],
)
def test_figures_are_written_with_their_units(value: float, unit: str, words: str) -> None:
    assert shown(value, unit) == words


def test_axes_have_round_numbers() -> None:
    assert ticks(0.83, "percentunit") == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert ticks(7 * 1024**3, "bytes") == [number * 2 * 1024**3 for number in range(5)]
    assert ticks(0, "short") == [0, 1]
