"""Usage on a host: kept a moment after the answer, and once, whatever becomes of the companion."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from testinfra.host import Host

from lab.settings import Lab

UNIT = "citadel-companion.service"


class Caller:
    def __init__(self, gateway: str, key: str) -> None:
        self.gateway, self.key = gateway, key

    def __call__(self, path: str, body: dict[str, Any] | None = None, ident: str = "") -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        if ident:
            headers["x-request-id"] = ident
        call = urllib.request.Request(self.gateway + path, json.dumps(body).encode() if body else None, headers)
        try:
            with urllib.request.urlopen(call, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ask(self) -> str:
        """A request that was answered, by its id."""
        ident = f"usage-{uuid.uuid4().hex}"
        question = {"model": "phi-3-mini", "max_tokens": 2, "messages": [{"role": "user", "content": "Who are you?"}]}
        status, _ = self("/v1/chat/completions", question, ident)
        assert status == 200
        return ident


@pytest.fixture(scope="module")
def call(gateway: str, key: str, client: object) -> Caller:
    assert client, "which has waited until the key is known"
    return Caller(gateway, key)


@pytest.fixture
def kept(data: Host, lab: Lab) -> Callable[[list[str]], int]:
    """In how many rows of PostgreSQL these requests are."""
    password = (lab.directory / "secrets/citadel_admin").read_text().strip()

    def count(ids: list[str]) -> int:
        wanted = ", ".join(f"'{ident}'" for ident in ids)
        question = f"SELECT count(*) FROM phi3.llm_model_requests WHERE visible_id IN ({wanted})"
        told = data.check_output(
            "PGPASSWORD=%s psql --host=127.0.0.1 --port=5432 --username=citadel_admin citadel_ai -tA --command=%s",
            password,
            question,
        )
        return int(told)

    return count


@pytest.fixture
def started(llm: Host) -> Iterator[None]:
    yield
    llm.run(f"systemctl kill -s CONT {UNIT}")
    llm.check_output(f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")


def test_it_runs_as_nobody_else_does(llm: Host) -> None:
    assert llm.service(UNIT).is_running
    process = int(llm.check_output(f"systemctl show -P MainPID {UNIT}"))
    assert llm.check_output(f"ps -o user:32= -p {process}") == "citadel-companion"
    assert llm.run(f"systemd-analyze security --no-pager --threshold=20 {UNIT}").rc == 0
    folder = llm.file("/var/lib/citadel-usage")
    assert (folder.user, folder.group, folder.mode) == ("agent0", "citadel-companion", 0o2770)
    socket = llm.file("/run/citadel-companion/companion.sock")
    assert (socket.group, socket.mode) == ("citadel-companion", 0o660)


def test_usage_is_there_a_moment_after_the_answer(
    call: Caller, kept: Callable[[list[str]], int], eventually: Callable[..., None]
) -> None:
    ident = call.ask()
    eventually(lambda: kept([ident]), lambda rows: rows == 1, 10)
    status, told = call("/v1/usage?days=1")
    assert status == 200
    (phi,) = (one for one in told["data"] if one["model"] == "phi-3-mini")
    assert phi["requests"] >= 1
    assert phi["completion_tokens"] >= 2
    status, told = call("/v1/feedback", {"request_id": ident, "satisfaction_score": 9})
    assert (status, told["model"]) == (200, "phi-3-mini")
    assert call("/v1/feedback", {"request_id": "not-mine", "satisfaction_score": 9})[0] == 404


def test_one_that_hangs_or_is_killed_keeps_each_request_once(
    llm: Host, call: Caller, kept: Callable[[list[str]], int], eventually: Callable[..., None], started: None
) -> None:
    ids = [call.ask()]
    llm.check_output(f"systemctl kill -s STOP {UNIT}")
    ids += [call.ask() for _ in range(3)]
    llm.check_output(f"systemctl kill -s CONT {UNIT}")
    eventually(lambda: kept(ids), lambda rows: rows == len(ids), 20)
    for _ in range(3):
        ids.append(call.ask())
        llm.check_output(f"systemctl kill -s KILL {UNIT}")
        ids.append(call.ask())
        eventually(lambda: llm.service(UNIT).is_running, bool, 20)
    eventually(lambda: kept(ids), lambda rows: rows == len(ids), 30)


@pytest.mark.parametrize("unit", ["pgpool2", "postgresql@17-main"])
def test_a_database_that_is_away_costs_nobody_anything(
    data: Host, call: Caller, kept: Callable[[list[str]], int], eventually: Callable[..., None], unit: str
) -> None:
    ids = [call.ask()]
    data.check_output(f"systemctl stop {unit}")
    try:
        ids += [call.ask() for _ in range(3)]
    finally:
        data.check_output(f"systemctl start {unit}")
    ids.append(call.ask())
    eventually(lambda: kept(ids), lambda rows: rows == len(ids), 90)


def test_a_database_that_hangs_costs_nobody_anything(
    data: Host, call: Caller, kept: Callable[[list[str]], int], eventually: Callable[..., None]
) -> None:
    ids = [call.ask()]
    data.check_output("systemctl kill -s STOP pgpool2")
    try:
        ids += [call.ask() for _ in range(3)]
    finally:
        data.check_output("systemctl kill -s CONT pgpool2")
    eventually(lambda: kept(ids), lambda rows: rows == len(ids), 90)


def test_one_that_is_stopped_costs_its_own_paths_alone(
    llm: Host, call: Caller, kept: Callable[[list[str]], int], eventually: Callable[..., None], started: None
) -> None:
    llm.check_output(f"systemctl stop {UNIT}")
    ident = call.ask()
    status, told = call("/v1/usage")
    assert (status, told["error"]["code"]) == (503, "companion_unavailable")
    assert call("/health/detailed")[1]["dependencies"]["companion"] == {"status": "unavailable"}
    llm.check_output(f"systemctl start {UNIT}")
    eventually(lambda: kept([ident]), lambda rows: rows == 1, 20)


def test_a_conversation_goes_on_after_the_companion_was_killed(
    llm: Host, call: Caller, eventually: Callable[..., None], started: None
) -> None:
    asked = {"model": "phi-3-mini", "max_output_tokens": 2, "input": "My name is Ada."}
    status, first = call("/v1/responses", asked)
    assert status == 200
    llm.check_output(f"systemctl kill -s KILL {UNIT}")
    eventually(lambda: call(f"/v1/responses/{first['id']}")[0], lambda status: status == 200, 20)
    more = {"input": "Who am I?", "previous_response_id": first["id"]}
    status, second = call("/v1/responses", asked | more)
    assert status == 200
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"], "the model has heard what was said before"
    assert call(f"/v1/responses/resp_{'0' * 32}")[0] == 404


def test_a_batch_goes_on_after_the_companion_was_killed(
    llm: Host, call: Caller, eventually: Callable[..., None], started: None
) -> None:
    ids = [f"line-{one}" for one in range(8)]
    body = {"model": "phi-3-mini", "max_tokens": 2, "messages": [{"role": "user", "content": "Who are you?"}]}
    url = "/v1/chat/completions"
    lines = [json.dumps({"custom_id": ident, "method": "POST", "url": url, "body": body}) for ident in ids]
    with openai.OpenAI(base_url=f"{call.gateway}/v1", api_key=call.key) as client:
        file = client.files.create(file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        llm.check_output(f"systemctl kill -s KILL {UNIT}")
        eventually(lambda: call(f"/v1/batches/{batch.id}")[0], lambda status: status == 200, 20)
        eventually(lambda: client.batches.retrieve(batch.id).status, lambda status: status == "completed", 240)
        ended = client.batches.retrieve(batch.id)
        assert ended.output_file_id is not None
        results = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    assert sorted(one["custom_id"] for one in results) == ids
    assert {one["response"]["status_code"] for one in results} == {200}


def test_the_hosts_root_has_all_of_somebody_deleted(llm: Host) -> None:
    asked = '{"user": "address:203.0.113.9"}'
    told = llm.check_output(
        "curl --silent --unix-socket /run/citadel-companion/companion.sock -H 'content-type: application/json' -d %s "
        "http://companion/forget",
        asked,
    )
    assert json.loads(told)["deleted"]
