"""Rules and dashboards name what the pinned programs really export: a wrong name is silent, so it is looked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from citadel.alerts import FIRST_TOKEN_EDGES, LATENCY_EDGES
from tests.expositions import AWAITED, everything, read, wrong
from tests.unit.rules.promtool import all_rules

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = sorted((ROOT / "roles/monitoring/files/dashboards").glob("*.json"))
ROW = re.compile(r"^\| (`.+?) \| (.+) \|$", re.MULTILINE)
# the names of the documents, each with its place: 004 monitoring 1; 001 B.1.1, C.3, E; 002 B.5, C.4
OF_DOCUMENTS = """
http_requests_total http_request_duration_seconds http_requests_in_flight ollama_requests_total cache_hits_total
database_queries_total models_usage_by_type response_tokens_generated error_rate_by_endpoint user_sessions_active
python_memory_usage python_gc_collections uvicorn_workers_active redis_connections_active inference_duration_seconds
tokens_per_second memory_usage_bytes active_requests_count error_rate_percentage cpu_utilization_percentage
memory_usage_percentage request_queue_length response_time_percentiles vllm_request_duration_seconds
vllm_requests_total vllm_gpu_memory_usage_bytes llm_user_satisfaction_score llm_model_accuracy_score
llm_business_value_score llm_cost_per_request_dollars llm_predicted_load_30m llm_anomaly_score
llm_capacity_threshold llm_business_value_threshold node_cpu_usage node_memory_usage_percent
"""


def known() -> dict[str, dict[str, set[str]]]:
    """What is exported, and what the rules record of it."""
    found = everything()
    for rule in all_rules():
        if "record" in rule:
            grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
            labels = {label.strip() for group in grouped for label in group.split(",")} | set(rule.get("labels", {}))
            found.setdefault(rule["record"], {}).update({label: set() for label in labels or {"citadel_host", "model"}})
    return found


def queries(panel: Any) -> Iterator[str]:
    if isinstance(panel, dict):
        for key, value in panel.items():
            if key == "expr" and isinstance(value, str):
                yield value
            else:
                yield from queries(value)
    elif isinstance(panel, list):
        for one in panel:
            yield from queries(one)


def test_every_name_in_the_rules_is_exported() -> None:
    there = known()
    found = {rule.get("alert") or rule["record"]: list(wrong(rule["expr"], there)) for rule in all_rules()}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_name_in_a_dashboard_is_exported(path: Path) -> None:
    there = known()
    found = {query: list(wrong(query, there)) for query in queries(json.loads(path.read_text()))}
    assert found, "a dashboard without a query"
    assert {query: what for query, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("rate(llm_request_total[5m])", ["nothing exports llm_request_total"]),
        ('llm_requests_total{state="error"}', ["llm_requests_total has no label state"]),
        ('llm_requests_total{status="500"}', ["status of llm_requests_total is never '500'"]),
        ("sum by (models) (llm_queue_depth)", ["nothing in it has the label models"]),
        ('sum by (model) (llm_queue_depth{model="$model"}) > 3 and on (model) up', []),
    ],
)
def test_a_wrong_name_is_found(expression: str, said: list[str]) -> None:
    assert list(wrong(expression, everything())) == said


def test_objectives_are_rounded_to_edges_that_exist() -> None:
    exported = read("gateway")
    assert exported.edges("llm_request_duration_seconds") == {*LATENCY_EDGES, float("inf")}
    assert exported.edges("llm_time_to_first_token_seconds") == {*FIRST_TOKEN_EDGES, float("inf")}


def test_what_is_awaited_is_not_there_yet() -> None:
    assert set(everything()) & AWAITED == set()


def test_every_name_of_the_documents_has_its_row_and_the_row_names_what_exists() -> None:
    text = (ROOT / "docs/monitoring.md").read_text().partition("## Names of the documents")[2].partition("\n## ")[0]
    rows = ROW.findall(text)
    named = {name for theirs, _ in rows for name in re.findall(r"`(\w+)", theirs)}
    assert set(OF_DOCUMENTS.split()) - named == set()
    there = known()
    for _, ours in rows:
        for expression in re.findall(r"`([a-z][\w:]*_[\w:]*|[a-z]\w*:[\w:]+|[a-z]\w*\{[^`]+\})`", ours):
            if expression not in ("predict_linear", "first_token_ms"):
                assert list(wrong(histogram(expression, there), there)) == [], expression


def histogram(name: str, there: dict[str, Any]) -> str:
    return f"{name}_count" if f"{name}_count" in there else name
