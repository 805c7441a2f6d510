"""Writes every dashboard into the role that brings them to Grafana."""

from __future__ import annotations

from tools.dashboards import FOLDER
from tools.dashboards.board import rendered
from tools.dashboards.boards import boards

FOLDER.mkdir(parents=True, exist_ok=True)
for name, board in boards().items():
    (FOLDER / f"{name}.json").write_text(rendered(name, board), encoding="utf-8")
