"""A dashboard: its rows, what can be chosen above them, and how all of that becomes Grafana's JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from tools.dashboards.panels import GREEN, PURPLE, RED, SOURCE, YELLOW, Panel

TAG = "citadel-llm"
# the SDK speaks of a Grafana that is a little newer than the estate's 12.0, and says more
SCHEMA = 41
LATER = {"auto", "auto_count", "auto_min", "placement"}
# Everybody is whoever has the label: other machines on the same Prometheus have none.
EVERYBODY = ".+"
# whose figures: the hosts that were chosen, their models, their replicas
AT = 'citadel_host=~"$host"'
OF = f'{AT}, model=~"$model"'
ONE = f'{OF}, replica=~"$replica"'
RATE = "[$__rate_interval]"

VARIABLES = {
    "host": "label_values(citadel_host)",
    "model": f"label_values(llm_model_health{{{AT}}}, model)",
    "replica": f"label_values(llm_replica_state{{{OF}}}, replica)",
}

YES, NO = ("yes", GREEN), ("no", RED)
UP_AND_DOWN = {"1": ("up", GREEN), "0": ("down", RED)}
BREAKERS = {"0": ("closed", GREEN), "1": ("half open", YELLOW), "2": ("open", RED)}

Linked = TypeVar("Linked", bound=Panel)


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[str] = ("host", "model")
    since: str = "now-1h"
    refresh: str = "30s"


def p(quantile: float, of: str, by: str, matcher: str, window: str = RATE) -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({labels}) (rate({of}_bucket{{{matcher}}}{window})))"


def mean(of: str, by: str, matcher: str, window: str = RATE) -> str:
    summed = f"sum by ({by}) " if by else "sum"
    total, count = (f"{summed}(rate({of}_{part}{{{matcher}}}{window}))" for part in ("sum", "count"))
    return f"{total}\n/ {count}"


def uid(name: str) -> str:
    return f"citadel-{name.replace('_', '-')}"


def leads(panel: Linked, title: str, to: str, label: str = "") -> Linked:
    """A click on a series leads to another dashboard, at the same time and hosts; with the name of a label, to the
    model that this label of the series names."""
    only = f"var-model=${{__field.labels.{label}}}" if label else "${model:queryparam}"
    url = f"/d/{uid(to)}?${{__url_time_range}}&${{host:queryparam}}&{only}"
    panel.data_links([dashboard.DashboardLink(title).type(model.DashboardLinkType.LINK).url(url)])
    return panel


def variable(name: str) -> dashboard.QueryVariable:
    text = VARIABLES[name]
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query({"query": text, "refId": f"variable-{name}"})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(EVERYBODY)
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def releases() -> dashboard.AnnotationQuery:
    """A line at each moment at which a release went live: the value of the metric is that moment."""
    return (
        dashboard.AnnotationQuery()
        .name("releases")
        .datasource(SOURCE)
        .enable(True)
        .icon_color(PURPLE)
        .expr(
            f"1000 * citadel_release_activated_timestamp_seconds{{{AT}}}"
            f" * on (citadel_host) group_left (release, version) citadel_release_info{{{AT}}}"
        )
        .step("60s")
        .use_value_for_time(True)
        .title_format("release {{release}}")
        .text_format("{{version}} on {{citadel_host}}")
    )


def built(name: str, board: Board) -> model.Dashboard:
    others = (
        dashboard.DashboardLink("LLM dashboards")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )
    made = (
        dashboard.Dashboard(board.title)
        .uid(uid(name))
        .description(board.description)
        .tags([TAG])
        .timezone("browser")
        .readonly()
        .refresh(board.refresh)
        .time(board.since, "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(others)
        .annotation(releases())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for each in board.variables:
        made.with_variable(variable(each))
    ids = iter(range(1, 1000))
    for row in board.rows:
        made.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            made.with_panel(panel.id(next(ids)))
    return made.build()


def rendered(name: str, board: Board) -> str:
    """Always the same text for the same board, so that a file that differs was edited by hand."""
    made = json.loads(json.dumps(built(name, board), cls=JSONEncoder)) | {"schemaVersion": SCHEMA}
    for part in (made["templating"]["list"], made["annotations"]["list"], made["links"]):
        part[:] = [{key: value for key, value in one.items() if key not in LATER} for one in part]
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
