"""What clients get of the companion, as the gateway asks it: over its socket, in the name of somebody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from citadel_companion.config import ConfigError, load
from tests.companion.test_shipping import segment, told, until


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[httpx.Client]:
    """A companion as a process, with its embedded database."""
    config = {name: str(tmp_path / name) for name in ("socket", "state", "spool")}
    file = tmp_path / "companion.yml"
    file.write_text(yaml.safe_dump(config))
    (tmp_path / "spool").mkdir()
    process = begun(file)
    try:
        until(Path(config["socket"]).exists)
        way = httpx.HTTPTransport(uds=config["socket"], retries=5)
        with httpx.Client(transport=way, base_url="http://companion") as client:
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        process.wait()


def begun(file: Path) -> subprocess.Popen[bytes]:
    # it finds what this process has found
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-m", "citadel_companion", "--config", file], env=paths)


def as_(user: str) -> dict[str, str]:
    return {"x-citadel-principal": user}


def kept(client: httpx.Client, count: int) -> None:
    until(lambda: client.get("/health").json()["shipped"] == count)


def test_usage_and_feedback_of_ones_own_requests(asked: httpx.Client, tmp_path: Path) -> None:
    segment(tmp_path / "spool", [told(number, user="key:a") for number in range(4)])
    kept(asked, 4)
    found = asked.get("/v1/usage", headers=as_("key:a")).json()
    assert [(one["model"], one["requests"]) for one in found["data"]] == [("mixtral-8x7b", 2), ("phi-3-mini", 2)]
    assert asked.get("/v1/usage", headers=as_("key:b")).json()["data"] == []
    given = {"request_id": "req-0", "satisfaction_score": 8, "use_case": "chat_support"}
    answer = asked.post("/v1/feedback", json=given, headers=as_("key:a"))
    assert (answer.status_code, answer.json()["model"]) == (200, "phi-3-mini")
    changed = asked.post("/v1/feedback", json={**given, "satisfaction_score": 2}, headers=as_("key:a"))
    assert changed.json()["satisfaction_score"] == 2
    # somebody else's request is one that is not there
    assert asked.post("/v1/feedback", json=given, headers=as_("key:b")).status_code == 404


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"satisfaction_score": 8}, "request_id: Field required"),
        ({"request_id": "req-0"}, "Give satisfaction_score"),
        (
            {"request_id": "req-0", "satisfaction_score": 11},
            "satisfaction_score: Input should be less than or equal to 10",
        ),
        (
            {"request_id": "req-0", "accuracy_feedback": -0.1},
            "accuracy_feedback: Input should be greater than or equal",
        ),
        ({"request_id": "req-0", "stars": 5}, "stars: Extra inputs are not permitted"),
        ({"request_id": "req-0", "satisfaction_score": 8}, "You have no request 'req-0' that is known yet"),
    ],
)
def test_feedback_that_cannot_be_meant(asked: httpx.Client, given: dict[str, Any], said: str) -> None:
    answer = asked.post("/v1/feedback", json=given, headers=as_("key:a"))
    assert answer.status_code in {400, 404}
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/batches"])
def test_a_body_of_very_many_keys_is_not_read(asked: httpx.Client, path: str) -> None:
    answer = asked.post(path, json={f"k{number}": 0 for number in range(20_000)}, headers=as_("key:a"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_nobody_is_served_whom_the_gateway_has_not_named(asked: httpx.Client) -> None:
    assert asked.get("/v1/usage").status_code == 401


def test_figures_are_there_for_prometheus(asked: httpx.Client, tmp_path: Path) -> None:
    segment(tmp_path / "spool", [told(0)])
    kept(asked, 1)
    text = asked.get("/metrics").text
    assert "citadel_companion_shipped_total 1.0" in text
    assert "citadel_companion_store_up 1.0" in text


def test_only_its_group_reaches_the_socket(asked: httpx.Client, tmp_path: Path) -> None:
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660


def test_killed_at_any_moment_it_keeps_each_record_once(tmp_path: Path) -> None:
    import sqlite3

    config = {name: str(tmp_path / name) for name in ("socket", "state", "spool")}
    file = tmp_path / "companion.yml"
    file.write_text(yaml.safe_dump(config))
    (tmp_path / "spool").mkdir()
    for number in range(6):
        records = [told(1000 * number + one) for one in range(1000)]
        segment(tmp_path / "spool", records)
    for number in range(5):
        process = begun(file)
        until(Path(config["socket"]).exists)
        time.sleep(0.05 * number)
        process.kill()
        process.wait()
        Path(config["socket"]).unlink(missing_ok=True)
    process = begun(file)
    try:
        until(lambda: not list((tmp_path / "spool").iterdir()))
    finally:
        process.terminate()
        process.wait()
    with sqlite3.connect(tmp_path / "state" / "usage.sqlite") as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT request_id) FROM llm_model_requests").fetchone() == (
            6000,
            6000,
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not YAML"),
        ("socket: /a\nstate: /b\n", "spool: field required"),
        ("socket: /a\nstate: /b\nspool: /c\nschemas: {phi: 'a-b'}\n", "schemas.phi"),
        ("socket: /a\nstate: /b\nspool: /c\nretention: {requests: 0}\n", "retention.requests"),
        ("socket: /a\nstate: /b\nspool: /c\nresponses: {truncation: none}\n", "responses.truncation"),
        ("socket: /a\nstate: /b\nspool: /c\npool: 5\n", "pool: extra inputs"),
    ],
)
def test_a_configuration_that_cannot_be_meant(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "companion.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(file)
    assert list(tmp_path.iterdir()) == [file]
