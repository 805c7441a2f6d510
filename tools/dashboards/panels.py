"""The vocabulary that dashboards are written in: a panel is a title, what it shows, and how it is to be read.

What all panels of a kind have in common is decided here, by the Grafana Foundation SDK, whose types know Grafana's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import prometheus as promql
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue as Set

SOURCE = shapes.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "text"
# the host is asked half as often as what serves, and a rate needs more than two answers
SLOW = "30s"
# what every model has beside its figures: a line for each, which would fill the legend
OF_EACH = ("objective", "plan")

Panel = (
    stat.Panel | timeseries.Panel | table.Panel | bargauge.Panel | heatmap.Panel | statetimeline.Panel | dashboard.Panel
)
Steps = Sequence[tuple[float, str]]  # the colour from a value on; what is below the first is green


@dataclass(frozen=True)
class Ask:
    """A question to Prometheus, and what its answer is called."""

    expr: str
    legend: str = ""
    every: str = ""  # the least time between two answers, where the figures are rarer than usual


def asks(questions: Sequence[Ask], instant: bool = False, table: bool = False) -> list[prometheus.Dataquery]:
    """The questions of a panel, named A, B, C as Grafana names them. What is asked of a whole range still shows series
    that have ended in it."""
    built = []
    for place, question in enumerate(questions):
        one = prometheus.Dataquery().expr(question.expr).ref_id(chr(ord("A") + place)).datasource(SOURCE)
        one = one.instant() if instant else one.range()
        one = one.format(promql.PromQueryFormat.TABLE) if table else one
        one = one.legend_format(question.legend or "__auto")
        built.append(one.interval(question.every) if question.every else one)
    return built


def steps(levels: Steps, below: str = GREEN) -> dashboard.ThresholdsConfig:
    found = [model.Threshold(None, below), *(model.Threshold(value, color) for value, color in levels)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found)


def coloured(mode: model.FieldColorModeId, fixed: str = "") -> dashboard.FieldColor:
    color = dashboard.FieldColor().mode(mode)
    return color.fixed_color(fixed) if fixed else color


def last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def words(names: Mapping[str, tuple[str, str]]) -> list[model.ValueMapping]:
    """Words and colours for values that are numbers only to Prometheus."""
    return [
        model.ValueMap(
            {
                value: model.ValueMappingResult(text=text, color=color, index=place)
                for place, (value, (text, color)) in enumerate(names.items())
            }
        )
    ]


def number(
    title: str,
    description: str,
    unit: str,
    *questions: Ask,
    size: tuple[int, int] = (4, 4),
    levels: Steps = (),
    below: str = GREEN,
    graph: bool = True,
    names: bool = False,
    empty: str = "",
    decimals: int | None = None,
    mapped: Mapping[str, tuple[str, str]] | None = None,
) -> stat.Panel:
    """The last value, large; `names` puts the name of each beside it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(size[0])
        .height(size[1])
        .unit(unit)
        .targets([*asks(questions, instant=not graph)])
        .thresholds(steps(levels, below))
        .color_scheme(coloured(model.FieldColorModeId.THRESHOLDS))
        .color_mode(shapes.BigValueColorMode.VALUE)
        .graph_mode(shapes.BigValueGraphMode.AREA if graph else shapes.BigValueGraphMode.NONE)
        .text_mode(shapes.BigValueTextMode.VALUE_AND_NAME if names else shapes.BigValueTextMode.AUTO)
        .reduce_options(last())
    )
    if empty:
        panel.no_value(empty)
    if decimals is not None:
        panel.decimals(decimals)
    return panel.mappings(words(mapped)) if mapped else panel


def lines(
    title: str,
    description: str,
    unit: str,
    *questions: Ask,
    size: tuple[int, int] = (8, 8),
    stacked: bool = False,
    levels: Steps = (),
    colors: Mapping[str, str] | None = None,
    dashed: str = "",
    bars: bool = False,
    most: float | None = None,
    calcs: Sequence[str] = ("mean", "lastNotNull"),
) -> timeseries.Panel:
    """Something over time. A series has the colour of its name, so that a model has one colour wherever it is shown;
    what matches `dashed` is an objective or a limit and no measurement."""
    legend = common.VizLegendOptions().display_mode(shapes.LegendDisplayMode.TABLE).show_legend(True)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(size[0])
        .height(size[1])
        .unit(unit)
        .min(0)
        .targets([*asks(questions)])
        .color_scheme(coloured(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .draw_style(shapes.GraphDrawStyle.BARS if bars else shapes.GraphDrawStyle.LINE)
        .line_width(1 if stacked else 2)
        .fill_opacity(60 if bars else 25 if stacked else 8)
        .show_points(shapes.VisibilityMode.NEVER)
        .span_nulls(120_000)  # a scrape or two that failed are no gap
        .legend(legend.placement(shapes.LegendPlacement.BOTTOM).calcs([*calcs]))
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if levels:
        style = common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(steps(levels, "transparent")).thresholds_style(style)
    for name, color in (colors or {}).items():
        panel.override_by_name(name, [Set("color", {"mode": "fixed", "fixedColor": color})])
    if dashed:
        style_of_limits = [
            Set("custom.lineStyle", {"fill": "dash", "dash": [8, 8]}),
            Set("custom.lineWidth", 1),
            Set("custom.fillOpacity", 0),
            Set("custom.stacking", {"mode": "none", "group": "limits"}),
        ]
        if dashed in OF_EACH:
            style_of_limits.append(Set("custom.hideFrom", {"legend": True, "tooltip": False, "viz": False}))
        panel.override_by_regexp(f"/{dashed}/", style_of_limits)
    return panel


def shares(
    title: str,
    description: str,
    unit: str,
    *questions: Ask,
    size: tuple[int, int] = (8, 8),
    levels: Steps = (),
    most: float | None = None,
    by_name: bool = False,
) -> bargauge.Panel:
    """A bar for each, to compare them now; `by_name` colours them by who they are and not by how full."""
    scheme = model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME if by_name else model.FieldColorModeId.THRESHOLDS
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(size[0])
        .height(size[1])
        .unit(unit)
        .min(0)
        .targets([*asks(questions)])
        .thresholds(steps(levels))
        .color_scheme(coloured(scheme))
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .name_placement(shapes.BarGaugeNamePlacement.LEFT)
        .show_unfilled(True)
        .reduce_options(last())
    )
    return panel if most is None else panel.max(most)


@dataclass(frozen=True)
class Column:
    """One question's answer as a column of a table."""

    name: str
    unit: str
    ask: Ask
    levels: Steps = ()
    mapped: Mapping[str, tuple[str, str]] | None = None


def rows(
    title: str,
    description: str,
    by: Sequence[str],
    *columns: Column,
    size: tuple[int, int] = (12, 8),
    sort: str = "",
) -> table.Panel:
    """A row for each combination of the labels in `by`, a column for each question."""
    asked = asks([column.ask for column in columns], instant=True, table=True)
    refs = [f"Value #{chr(ord('A') + place)}" for place in range(len(columns))] if len(columns) > 1 else ["Value"]
    shown = {label: place for place, label in enumerate([*by, *refs])}
    names = {ref: column.name for ref, column in zip(refs, columns, strict=True)}
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(size[0])
        .height(size[1])
        .unit("short")
        .targets([*asked])
        .thresholds(steps(()))
        .cell_height(shapes.TableCellHeight.SM)
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            model.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": shown,
                    "renameByName": {**{label: LABELS.get(label, label) for label in by}, **names},
                },
            )
        )
    )
    if sort:
        panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
    for column in columns:
        panel.override_by_name(column.name, list(_column(column)))
    return panel


LABELS = {"citadel_host": "host"}


def _column(column: Column) -> list[Set]:
    found = [Set("unit", column.unit)]
    if column.mapped:
        found.append(Set("mappings", words(column.mapped)))
    if column.levels:
        found.append(Set("thresholds", steps(column.levels).build()))
    if column.levels or column.mapped:
        found.append(Set("custom.cellOptions", {"type": "color-text"}))
    return found


def states(
    title: str,
    description: str,
    question: Ask,
    mapped: Mapping[str, tuple[str, str]],
    size: tuple[int, int] = (12, 8),
) -> statetimeline.Panel:
    """Which state each was in, and when."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(size[0])
        .height(size[1])
        .unit("short")
        .targets([*asks([question])])
        .mappings(words(mapped))
        .color_scheme(coloured(model.FieldColorModeId.THRESHOLDS))
        .thresholds(steps(()))
        .fill_opacity(80)
        .line_width(0)
        .row_height(0.8)
        .merge_values(True)
        .show_value(shapes.VisibilityMode.NEVER)
        .legend(common.VizLegendOptions().show_legend(True).placement(shapes.LegendPlacement.BOTTOM))
    )


def spread(title: str, description: str, unit: str, question: Ask, size: tuple[int, int] = (12, 8)) -> heatmap.Panel:
    """How a histogram's values are spread, over time: the brighter, the more of them."""
    bucketed = asks([question])
    bucketed[0].format(promql.PromQueryFormat.HEATMAP)
    scheme = heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(size[0])
        .height(size[1])
        .unit(unit)
        .targets([*bucketed])
        .calculate(False)
        .color(scheme.scale(heat.HeatmapColorScale.EXPONENTIAL).exponent(0.5).fill("dark-orange").reverse(False))
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(shapes.AxisPlacement.LEFT))
        .cell_gap(1)
        .show_legend()
    )


def alerts(title: str, description: str, matcher: str, size: tuple[int, int] = (8, 8)) -> dashboard.Panel:
    """The alerts that a matcher finds. The SDK has no builder for them: its own words are Grafana's plugin's."""
    options = {
        "viewMode": "list",
        "groupMode": "default",
        "groupBy": [],
        "maxItems": 20,
        "sortOrder": 1,
        "dashboardAlerts": False,
        "alertName": "",
        "alertInstanceLabelFilter": f"{{{matcher}}}",
        "datasource": "$datasource",
        "showInactiveAlerts": False,
        "stateFilter": {"firing": True, "pending": True, "noData": False, "normal": False, "error": True},
    }
    panel = dashboard.Panel().type("alertlist").title(title).description(description).options(options)
    return panel.span(size[0]).height(size[1]).unit("short")
