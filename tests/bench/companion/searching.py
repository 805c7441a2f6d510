"""What the way through gateway and companion adds to a search in Qdrant, in milliseconds: medians of single searches.

The engine behind it is the stand-in's, so what it takes itself is not Qdrant's figure.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.bench.gateway.contenders import LOAD_CORE, PORT, ROOT

POINTS, SIZE, SEARCHES = 5000, 384, 300
QDRANT = 19020


def engine(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "lab.qdrant", "--folder", str(folder), "--port", str(QDRANT)]
    return subprocess.Popen(["taskset", "-c", str(LOAD_CORE), *words], cwd=ROOT)


def median(ask: Callable[[list[float]], Any]) -> float:
    made = random.Random(1)
    times = []
    for _ in range(SEARCHES):
        vector = [made.gauss(0, 1) for _ in range(SIZE)]
        began = time.perf_counter()
        ask(vector)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def measure(headers: dict[str, str]) -> dict[str, float]:
    made = random.Random(0)
    points = [{"text": f"text {n}", "vector": [made.gauss(0, 1) for _ in range(SIZE)]} for n in range(POINTS)]
    filtered: dict[str, Any] = {"must": []}

    def checked(answer: httpx.Response) -> httpx.Response:
        assert answer.status_code == 200, answer.text
        return answer

    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=60) as ours:
        for first in range(0, POINTS, 500):
            checked(ours.post("/v1/vectors/phi", json={"points": points[first : first + 500]}))
        through = median(
            lambda vector: checked(
                ours.post("/v1/vectors/phi/search", json={"vector": vector, "threshold": -1.0, "limit": 10})
            )
        )
    with httpx.Client(base_url=f"http://127.0.0.1:{QDRANT}", timeout=60) as direct:
        path = "/collections/phi_embeddings/points/search"
        told = {"limit": 10, "with_payload": True, "with_vector": False, "score_threshold": -1.0, "filter": filtered}
        alone = median(lambda vector: checked(direct.post(path, json={"vector": vector, **told})))
    return {"through": through, "alone": alone}
