"""Draws the dashboards from what the lab's own Prometheus answers, into docs/dashboards."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from lab.settings import Lab
from tools.dashboards import FOLDER, PICTURES
from tools.dashboards.asking import panels, plain, query_range
from tools.dashboards.drawing import Answers, Colors, Series, draw
from tools.phases import Failure, say

SPAN, STEP = 1800.0, 15.0


def answered(base: str, board: dict[str, Any], end: float) -> Answers:
    start = end - SPAN

    def ask(expression: str, every: str = "", at_the_end: bool = False) -> list[Series]:
        text = plain(expression, every, f"{SPAN:.0f}s")
        found = query_range(base, text, end if at_the_end else start, end, STEP)
        series = (Series(one["metric"], known(one["values"])) for one in found)
        return sorted((one for one in series if one.points), key=lambda one: sorted(one.labels.items()))

    asked = {
        (panel["id"], target["refId"]): ask(target["expr"], target.get("interval", ""), bool(target.get("instant")))
        for panel in panels(board)
        for target in panel.get("targets", [])
    }
    for panel in panels(board):
        if panel["type"] == "alertlist":
            alerts = f"ALERTS{panel['options']['alertInstanceLabelFilter']}"
            asked[panel["id"], "A"] = ask(alerts, at_the_end=True)
    moments = [one for query in board["annotations"]["list"] for one in ask(query["expr"])]
    releases = {(one.last / 1000, one.labels.get("release", "")) for one in moments}
    return Answers(start, end, STEP, asked, sorted(releases))


def known(values: list[tuple[float, str]]) -> list[tuple[float, float]]:
    """Without what is no number: nobody asked anything in that time."""
    return [(when, float(value)) for when, value in values if math.isfinite(float(value))]


def main() -> None:
    lab = Lab.from_environment()
    address = next(lab.address(host) for host in lab.hosts if host.group == "metrics_servers")
    end = time.time() // STEP * STEP
    colors = Colors()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        found = answered(f"http://{address}:9090", board, end)
        (PICTURES / f"{path.stem}.svg").write_text(draw(board, found, colors), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        say(str(failure))
        raise SystemExit(1) from None
