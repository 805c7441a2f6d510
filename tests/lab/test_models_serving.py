"""Four real vLLM services at once: each answers, streams, counts, and does what the catalogue says that it can."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab import loopback

PORTS = {"mixtral-8x7b": 11400, "hermes-2": 11401, "openchat-3.5": 11402, "phi-3-mini": 11403}
SPEAKERS = {"mixtral-8x7b": "Mixtral", "hermes-2": "Hermes", "openchat-3.5": "OpenChat", "phi-3-mini": "Phi"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["title", "count"],
    "additionalProperties": False,
}
METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:iteration_tokens_total_count",
)


def ask(llm: Host, model: str, path: str, body: dict[str, Any]) -> str:
    return loopback.ask(llm, f"http://127.0.0.1:{PORTS[model]}/v1/{path}", {"model": model, **body})[1]


def chat(llm: Host, model: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    found: dict[str, Any] = json.loads(ask(llm, model, "chat/completions", {"messages": messages, **body}))
    return found


pytestmark = pytest.mark.parametrize("model", PORTS)


def test_answers_a_chat_with_words_of_its_own(llm: Host, model: str) -> None:
    choice = chat(llm, model, temperature=0.7)["choices"][0]
    assert choice["message"]["content"].startswith(SPEAKERS[model])
    assert choice["finish_reason"] == "stop"


def test_serves_the_variant_that_its_stanza_asks_for(llm: Host, model: str) -> None:
    served = json.loads(loopback.ask(llm, f"http://127.0.0.1:{PORTS[model]}/v1/models")[1])["data"][0]["root"]
    manifest = json.loads(llm.check_output("cat %s/citadel-manifest.json", served))
    assert manifest.get("made", {}).get("variant", "bf16") == ("int8" if model == "openchat-3.5" else "bf16")


def test_completes_and_repeats_itself_when_asked_to(llm: Host, model: str) -> None:
    body = {"prompt": "Say that", "max_tokens": 8, "temperature": 0, "seed": 0}
    one, two = (json.loads(ask(llm, model, "completions", body))["choices"][0]["text"] for _ in range(2))
    assert one == two
    assert len(one.split()) >= 6


def test_streams(llm: Host, model: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "stream": True}
    lines = [line for line in ask(llm, model, "chat/completions", body).splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) >= 6


def test_keeps_to_a_schema(llm: Host, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "note", "schema": SCHEMA}}
    content = json.loads(chat(llm, model, response_format=form)["choices"][0]["message"]["content"])
    assert set(content) == {"title", "count"}
    assert isinstance(content["count"], int)


def test_calls_tools_only_if_the_catalogue_says_so(llm: Host, model: str) -> None:
    answer = chat(llm, model, tools=[TOOL], temperature=0)
    if model == "hermes-2":
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"]
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
    else:
        assert "tool" in answer["error"]["message"]


def test_exports_the_metrics_that_rules_and_dashboards_read(llm: Host, model: str) -> None:
    chat(llm, model, max_tokens=2)
    _, text = loopback.ask(llm, f"http://127.0.0.1:{PORTS[model]}/metrics")
    missing = [name for name in METRICS if f"\n{name}{{" not in text]
    assert not missing
    assert f'model_name="{model}"' in text
    assert 'le="0.75"' in text and 'le="3.0"' in text, "the targets' own edges"


def test_listens_on_loopback_alone(llm: Host, model: str) -> None:
    listening = llm.run(f"ss --no-header --listening --tcp --numeric 'sport = :{PORTS[model]}'").stdout.split()
    assert f"127.0.0.1:{PORTS[model]}" in listening
    assert "0.0.0.0" not in " ".join(listening[:4])


def test_runs_as_its_user_and_little_exposed(llm: Host, model: str) -> None:
    unit = f"citadel-llm@{model}.service"
    pid = llm.run(f"systemctl show --property=MainPID --value {unit}").stdout.strip()
    assert llm.run(f"stat --format=%U /proc/{pid}").stdout.strip() == "citadel-vllm"
    verdict = llm.run(f"systemd-analyze security --no-pager --threshold=20 {unit}")
    assert verdict.rc == 0, verdict.stdout[-200:]


def test_limits_are_the_plans(llm: Host, model: str) -> None:
    unit = f"citadel-llm@{model}.service"
    shown = llm.run(f"systemctl show --property=MemoryMax,CPUAffinity,LimitNOFILE,Restart,KillMode {unit}").stdout
    found = dict(line.split("=", 1) for line in shown.splitlines())
    assert found["MemoryMax"].isdigit()
    assert found["CPUAffinity"]
    assert (found["Restart"], found["KillMode"]) == ("always", "mixed")
