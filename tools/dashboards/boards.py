"""The dashboards that there are, each by the name of its file."""

from __future__ import annotations

from tools.dashboards.board import Board
from tools.dashboards.business import business
from tools.dashboards.integration import integration
from tools.dashboards.overview import overview
from tools.dashboards.performance import performance
from tools.dashboards.resources import resources


def boards() -> dict[str, Board]:
    return {
        "llm_server_overview": overview(),
        "model_performance": performance(),
        "resource_utilization": resources(),
        "integration_health": integration(),
        "business_metrics": business(),
    }
