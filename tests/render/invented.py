"""Answers that nobody gave, for pictures without a lab: of the kinds, the names and about the size of real ones."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

from tools.dashboards.asking import panels
from tools.dashboards.drawing import Answers, Series

START, END, STEP = 1_767_225_600.0, 1_767_227_400.0, 15.0
MODELS = ["hermes-2", "mixtral-8x7b", "openchat-3.5", "phi-3-mini"]
NAMES = {
    **{"citadel_host": ["llm-01"], "model": MODELS, "replica": MODELS, "release": ["0007-1a2b3c4d"]},
    **{"code": ["200", "404", "429"], "endpoint": ["chat_completions", "embeddings"], "kind": ["timeout"]},
    **{"mode": ["iowait", "system", "user"], "device": ["/dev/vda", "/dev/vdb"], "reason": ["rate_limit"]},
    **{"finished_reason": ["length", "stop"], "severity": ["warning"], "instance": ["data-01:9187"]},
    **{"job": ["citadel-llm-gateway", "citadel-llm-models"]},
    "unit": ["citadel-gateway.service", *(f"citadel-llm@{name}.service" for name in MODELS)],
    "le": ["0.05", "0.1", "0.25", "0.5", "0.75", "1.0", "1.5", "2.0", "3.0", "5.0", "10.0", "+Inf"],
}
SIZES = {"percentunit": 0.6, "s": 0.8, "bytes": 6e9, "Bps": 4e5, "reqps": 3.0, "short": 40.0}


def answers(board: dict[str, Any]) -> Answers:
    found = {}
    for panel in panels(board):
        for place, target in enumerate(panel.get("targets", [])):
            of = labels(panel, target)
            size = SIZES.get(panel["fieldConfig"]["defaults"]["unit"], 30.0)
            found[panel["id"], target["refId"]] = [
                series(one, size, place + 3 * number, panel["type"]) for number, one in enumerate(of)
            ]
        if panel["type"] == "alertlist" and "Predictive" not in panel["title"]:
            alert = {
                "alertname": "MemoryNearLimit",
                "alertstate": "firing",
                "model": "phi-3-mini",
                "severity": "warning",
            }
            found[panel["id"], "A"] = [Series(alert, [(END, 1.0)])]
    return Answers(START, END, STEP, found, [(START + 700, "0007-1a2b3c4d")])


def labels(panel: dict[str, Any], target: dict[str, Any]) -> list[dict[str, str]]:
    if panel["type"] == "table":
        organize = panel["transformations"][1]["options"]["indexByName"]
        keys = [key for key in organize if key in NAMES]
    else:
        keys = re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))
    wanted = [NAMES[key] for key in keys]
    rows = [dict(zip(keys, values, strict=True)) for values in itertools.product(*wanted)]
    # a replica is of its own model, and only models have any
    return [row for row in rows if "replica" not in row or row["replica"] == row.get("model", row["replica"])]


def series(of: dict[str, str], size: float, number: int, kind: str) -> Series:
    moments = [START + STEP * step for step in range(int((END - START) / STEP) + 1)]
    if kind == "state-timeline":
        return Series(of, [(when, float(not (number == 3 and 300 < when - START < 480))) for when in moments])
    if kind == "table":
        return Series(of, [(END, 1.0 if number % 5 else 0.0)])
    if "le" in of:
        edge = NAMES["le"].index(of["le"])
        return Series(of, [(when, 20 / (1 + math.exp(4 - edge + math.sin(when / 260)))) for when in moments])
    wave = [
        (when, 0.5 + 0.3 * math.sin(when / (170 + 40 * number) + number) + 0.1 * math.sin(when / 31))
        for when in moments
    ]
    return Series(of, [(when, size * value / (1 + number * 0.25)) for when, value in wave])
