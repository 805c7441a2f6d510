"""The deployed gateway, asked as clients ask it and looked at as an administrator would."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

QUESTION = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 16}
MODELS = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")


@pytest.fixture(scope="session")
def unit(llm: Host) -> str:
    """The gateway's unit carries the release that it was started from in its name."""
    listed = llm.check_output("systemctl list-units 'citadel-gateway@*' --plain --no-legend --state=running")
    names = [str(line).split()[0] for line in listed.splitlines()]
    assert len(names) == 1, f"one gateway serves, not {names}"
    return names[0]


def test_it_is_healthy_with_all_models(gateway: str, ask: Callable[..., Any]) -> None:
    health = ask(f"{gateway}/health")
    assert health["status"] == "healthy"
    assert set(MODELS) <= {name for name, model in health["models"].items() if model["ready"]}


def test_it_lists_all_models_with_their_capabilities(gateway: str, ask: Callable[..., Any]) -> None:
    listed = {model["id"]: model for model in ask(f"{gateway}/v1/models")["data"]}
    assert set(MODELS) <= set(listed)
    assert "tools" in listed["hermes-2"]["capabilities"]


def test_it_answers_without_model_and_key(gateway: str, ask: Callable[..., Any]) -> None:
    answer = ask(f"{gateway}/v1/chat/completions", QUESTION)
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["model"] in MODELS


@pytest.mark.parametrize("model", MODELS)
def test_every_model_streams_readable_words(gateway: str, model: str) -> None:
    body = json.dumps({**QUESTION, "model": model, "stream": True}).encode()
    call = urllib.request.Request(f"{gateway}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["x-citadel-model"] == model
        lines = [line.decode().removeprefix("data: ").strip() for line in answer if line.startswith(b"data: ")]
    assert lines[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"] for line in lines[:-1]]
    text = "".join(choice[0]["delta"].get("content") or "" for choice in deltas if choice)
    assert re.fullmatch(r"[A-Za-z0-9 .,\-]+", text), text


def test_its_path_is_compiled(llm: Host, unit: str) -> None:
    pid = llm.check_output("systemctl show --property=MainPID --value %s", unit)
    mapped = llm.check_output("grep --only-matching --extended-regexp '/opt/citadel/releases/.*' /proc/%s/maps", pid)
    release = unit.removeprefix("citadel-gateway@").removesuffix(".service")
    assert re.search(rf"releases/{release}/compiled/\w+__mypyc\.", mapped), mapped


def test_an_unknown_model_is_refused_in_openais_form(gateway: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        call = urllib.request.Request(
            f"{gateway}/v1/chat/completions",
            json.dumps({**QUESTION, "model": "gpt-9"}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(call, timeout=10)
    assert refused.value.code == 404
    assert json.loads(refused.value.read())["error"]["code"] == "model_not_found"


def test_health_has_a_port_of_its_own(address: dict[str, str], ask: Callable[..., Any]) -> None:
    assert ask(f"http://{address['llm-01']}:8080/health")["status"] == "healthy"


def test_management_is_closed_to_strangers(address: dict[str, str], ask: Callable[..., Any]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(f"http://{address['llm-01']}:8002/management/models")
    assert refused.value.code in {401, 403}


def test_the_models_are_reached_through_the_gateway_only(llm: Host) -> None:
    for port in range(11400, 11404):
        assert llm.socket(f"tcp://127.0.0.1:{port}").is_listening
        assert not llm.socket(f"tcp://0.0.0.0:{port}").is_listening
    listening = llm.check_output("ss -Hltnp | grep -E 'VLLM|python' || true").splitlines()
    outside = [line for line in listening if not re.search(r"127\.0\.0\.1:|\[::1\]:|:(8000|8002|8080|9090) ", line)]
    assert not outside, "a model listens where others reach it"


def test_it_runs_as_the_products_user_and_within_its_limits(llm: Host, unit: str) -> None:
    shown = llm.check_output("systemctl show %s --property=User,MemoryMax,CPUQuotaPerSecUSec", unit)
    assert dict(line.split("=") for line in shown.splitlines()) == {
        "User": "agent0",
        "MemoryMax": str(2 * 1024**3),
        "CPUQuotaPerSecUSec": "4s",
    }


def test_who_breaks_into_a_model_reaches_neither_keys_nor_logs_nor_the_administrators_socket(llm: Host) -> None:
    llm.run_test("id citadel-vllm")
    for forbidden in (
        "cat /opt/citadel/keys/gateway.json",
        "ls /var/log/citadel-llm",
        "curl -s --unix-socket /run/citadel-gateway/management.sock http://localhost/health",
    ):
        assert llm.run(f"runuser -u citadel-vllm -- {forbidden}").rc not in {0, 127}, forbidden


def test_its_exposure_is_low(llm: Host, unit: str) -> None:
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", llm.check_output("systemd-analyze security %s", unit))
    assert found, "systemd-analyze gave no score"
    assert float(found[1]) <= 2.0


def test_a_killed_gateway_is_back_and_no_connection_is_refused(
    llm: Host, unit: str, gateway: str, ask: Callable[..., Any]
) -> None:
    before = llm.check_output("systemctl show %s --property=MainPID --value", unit)
    llm.run_test("systemctl kill --signal=KILL --kill-whom=main %s", unit)
    # the socket is systemd's: a request that comes in between waits instead of being refused
    assert ask(f"{gateway}/v1/models")["data"]
    assert llm.check_output("systemctl show %s --property=MainPID --value", unit) not in {before, "0"}


def test_access_is_logged_as_json_and_without_prompts(
    llm: Host, gateway: str, ask: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    answer = ask(
        f"{gateway}/v1/chat/completions", {**QUESTION, "messages": [{"role": "user", "content": "xyzzy-secret"}]}
    )

    def logged() -> list[str]:
        return list(llm.check_output("tail -n 200 /var/log/citadel-llm/access.log").splitlines())

    def of_the_chat(lines: list[str]) -> list[dict[str, Any]]:
        return [entry for entry in map(json.loads, lines) if entry["path"] == "/v1/chat/completions"]

    # lines are written together, a moment later
    eventually(lambda: of_the_chat(logged())[-1:], lambda last: last and last[0]["model"] == answer["model"], 5)
    assert of_the_chat(logged())[-1]["status"] == 200
    assert not any("xyzzy-secret" in line for line in logged())
