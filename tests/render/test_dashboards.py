"""The dashboards as files: what the code gives, what Prometheus can parse, and what Grafana's own types accept."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from grafana_foundation_sdk.models import units

from tools.dashboards import FOLDER
from tools.dashboards.asking import expressions, panels, plain
from tools.dashboards.board import rendered
from tools.dashboards.boards import boards
from tools.phases import ROOT

FILES = sorted(FOLDER.glob("*.json"))
READ: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in FILES}
GRAFANA = Path(__file__).with_name("grafana")
# which of Grafana's schemas says what a panel's options are
KINDS = {
    **{kind: kind for kind in ("stat", "timeseries", "table", "bargauge", "heatmap")},
    "state-timeline": "statetimeline",
    "alertlist": "alertlist",
}
# what the data source Prometheus reads of an annotation
MOMENT = ("expr", "step", "textFormat", "titleFormat", "useValueForTime")
# what no schema has: Grafana's own words beside the enumerations
PRESENTED = {f"suffix: {word}" for word in ("tok/s", "/s")}

every_file = pytest.mark.parametrize("name", READ)


def test_the_files_are_what_the_code_gives() -> None:
    made = {name: rendered(name, board) for name, board in boards().items()}
    assert {path.stem: path.read_text() for path in FILES} == made, "make dashboards"


def test_they_are_told_apart() -> None:
    assert len({one["uid"] for one in READ.values()}) == len(READ)
    assert [one["title"] for one in READ.values()] == [
        "Business Metrics",
        "Integration Health",
        "LLM Server Overview",
        "Model Performance",
        "Resource Utilization",
    ]
    for name, one in READ.items():
        assert one["uid"] == f"citadel-{name.replace('_', '-')}"
        assert "citadel-llm" in one["tags"]


def test_what_was_promised_by_name_is_there() -> None:
    titles = {name: {panel["title"] for panel in panels(one)} for name, one in READ.items()}
    assert titles["llm_server_overview"] >= {
        *("Request Latency", "Throughput", "Memory Usage", "Model Performance Overview"),
        *("Business Value Metrics", "Cost Efficiency Analysis", "Predictive Alerts Status"),
    }
    assert titles["business_metrics"] >= {"ROI Analysis", "User Adoption Trends", "Quality Metrics"}
    assert {READ[name]["refresh"] for name in READ if name != "business_metrics"} == {"30s"}
    assert READ["business_metrics"]["refresh"] == "5m"


@every_file
def test_every_panel_says_what_it_shows(name: str) -> None:
    known = {value for key, value in vars(units).items() if isinstance(value, str)} | PRESENTED
    shown = panels(READ[name])
    assert len({panel["id"] for panel in READ[name]["panels"]}) == len(READ[name]["panels"])
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in known, panel["title"]
        for override in panel["fieldConfig"]["overrides"]:
            for one in override["properties"]:
                assert one["id"] != "unit" or one["value"] in known, panel["title"]


@every_file
def test_no_panel_lies_on_another_and_no_row_has_a_hole(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in READ[name]["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    assert {x for x, _ in taken} == set(range(24))
    assert len(taken) == 24 * height


@every_file
def test_variables_that_are_used_are_there_and_the_other_way_round(name: str) -> None:
    board = READ[name]
    defined = [one["name"] for one in board["templating"]["list"]]
    text = json.dumps([board["panels"], board["annotations"]])
    used = set(re.findall(r"\$\{?([a-z]\w*)", text)) - {"__url_time_range"}
    assert used == set(defined)
    for place, one in enumerate(board["templating"]["list"]):
        for other in re.findall(r"\$(\w+)", json.dumps(one.get("query", ""))):
            assert other in defined[:place], "it is asked for before it is known"


@every_file
def test_a_link_leads_to_a_dashboard_of_ours(name: str) -> None:
    known = {f"/d/{one['uid']}": one for one in READ.values()}
    for panel in panels(READ[name]):
        for link in panel["fieldConfig"]["defaults"].get("links", []):
            where = urlsplit(link["url"])
            assert where.path in known, panel["title"]
            there = {f"var-{one['name']}" for one in known[where.path]["templating"]["list"]}
            assert {key for key, _ in parse_qsl(where.query)} <= there


def test_prometheus_can_parse_every_question(tmp_path: Path) -> None:
    rules = [
        {"record": f"{name}:question:{number}", "expr": plain(text)}
        for name, board in READ.items()
        for number, text in enumerate(expressions(board))
    ]
    assert len(rules) > 100
    assert said_of(rules, tmp_path).returncode == 0
    assert "parse error" in said_of([{"record": "a", "expr": "sum(up{"}], tmp_path).stderr


def said_of(rules: list[dict[str, str]], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "questions.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "questions", "rules": rules}]}))
    return subprocess.run(["promtool", "check", "rules", file], check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def schema() -> Path:
    """Grafana's types of the estate's version, and the compiler; where npm finds them is the machine's affair."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(GRAFANA.glob("package*.json")))).hexdigest()
    folder = ROOT / ".cache" / f"node-grafana-{digest[:12]}"
    if not (folder / "node_modules/typescript/bin/tsc").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for path in GRAFANA.glob("package*.json"):
            shutil.copy(path, folder)
        subprocess.run(
            ["npm", "ci", "--silent", "--no-audit", "--no-fund", "--prefix", folder], check=True, timeout=120
        )
    shutil.copy(GRAFANA / "types.ts", folder)
    return folder


def typed(name: str, board: dict[str, Any]) -> str:
    """The dashboard as TypeScript: as a whole, then what Grafana's plugins say of their parts of it."""
    moments = [{key: one[key] for key in MOMENT if key in one} for one in board["annotations"]["list"]]
    plainer = [{key: one[key] for key in one if key not in MOMENT} for one in board["annotations"]["list"]]
    whole = board | {"annotations": {"list": plainer}}
    lines = ['import type * as it from "./types";', f"export const board: it.DashboardJson = {json.dumps(whole)};"]
    lines += [f"({json.dumps(moment)}) satisfies it.Moment;" for moment in moments]
    for panel in panels(board):
        kind = KINDS[panel["type"]]
        lines.append(f"({json.dumps(panel['options'])}) satisfies it.Options_{kind}; // {name}: {panel['title']}")
        if custom := panel["fieldConfig"]["defaults"].get("custom"):
            lines.append(f"({json.dumps(custom)}) satisfies it.Fields_{kind};")
        lines += [f"({json.dumps(target)}) satisfies it.Question;" for target in panel.get("targets", [])]
    return "\n".join(lines) + "\n"


def compiled(folder: Path, texts: dict[str, str]) -> list[str]:
    for path in folder.glob("board_*.ts"):
        path.unlink()
    for name, text in texts.items():
        (folder / f"board_{name}.ts").write_text(text)
    files = [f"board_{name}.ts" for name in texts]
    options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext"]
    tsc = ["node", "node_modules/typescript/bin/tsc", *options, "--moduleResolution", "bundler", *files]
    done = subprocess.run(tsc, check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    return (done.stdout + done.stderr).splitlines()


def test_grafanas_own_types_accept_them(schema: Path) -> None:
    assert compiled(schema, {name: typed(name, board) for name, board in READ.items()}) == []


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("dashboard", "graphTooltip", 7),
        ("dashboard", "refrsh", "30s"),
        ("variable", "type", "quarry"),
        ("defaults", "unti", "s"),
        ("options", "graphMode", "aera"),
        ("options", "colour", "value"),
        ("target", "exprs", "up"),
        ("gridPos", "w", "4"),
    ],
)
def test_what_grafana_would_not_understand_is_found(schema: Path, part: str, key: str, value: object) -> None:
    board = json.loads(json.dumps(READ["llm_server_overview"]))
    panel = panels(board)[0]
    parts = {
        "dashboard": board,
        "variable": board["templating"]["list"][1],
        "defaults": panel["fieldConfig"]["defaults"],
    }
    parts |= {"options": panel["options"], "target": panel["targets"][0], "gridPos": panel["gridPos"]}
    parts[part][key] = value
    assert any(key in line or str(value) in line for line in compiled(schema, {"wrong": typed("wrong", board)}))
