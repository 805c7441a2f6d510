"""Responses as they are asked for, made, told and kept, on both stores; the gateway is played."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from citadel_companion.app import application
from citadel_companion.config import Config
from citadel_companion.embedded import Embedded
from citadel_companion.responses import chain
from citadel_companion.store import Store, StoreError, Thing
from tests.companion.databases import Opened

pytestmark = pytest.mark.anyio
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WINDOW = 100  # tokens
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}}


def chat(content: str | None = "hi", finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"object": "chat.completion", "choices": [choice], "usage": USAGE}


def called(index: int | None, ident: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    place = {} if index is None else {"index": index}
    return {**place, "id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def streamed(*deltas: dict[str, Any], finish: str | None = "stop", done: bool = True) -> bytes:
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": one}]} for one in deltas]
    if finish is not None:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        events.append({"choices": [], "usage": USAGE})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return (text + ("data: [DONE]\n\n" if done else "")).encode()


def refusal(status: int, code: str, message: str = "No.", **headers: str) -> httpx.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return httpx.Response(status, json={"error": error}, headers=headers)


class Gateway:
    """Answers with what it was told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.answers: list[Any] = []
        self.long: Callable[[dict[str, Any]], str | None] = lambda _: None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            name = request.url.path.rpartition("/")[2]
            if name not in ("phi", "phi-3"):
                return refusal(404, "model_not_found", f"The model {name!r} does not exist.")
            return httpx.Response(200, json={"id": "phi", "max_model_len": WINDOW, "defaults": {"max_tokens": 20}})
        body = json.loads(request.content)
        self.asked.append(body)
        self.headers.append(request.headers)
        message = self.long(body)
        if message is not None:
            return refusal(400, "context_length_exceeded", message)
        answer = self.answers.pop(0) if self.answers else streamed({"content": "hi"}) if body.get("stream") else chat()
        if isinstance(answer, httpx.Response):
            return answer
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer, headers={"content-type": "text/event-stream"})
        return httpx.Response(200, json=answer, headers={"x-citadel-replica": "phi-1"})


class Client:
    def __init__(self, gateway: Gateway, store: Store, asked: httpx.AsyncClient) -> None:
        self.gateway, self.store, self.http = gateway, store, asked

    async def post(self, owner: str = "key:a", **body: Any) -> httpx.Response:
        told = {"model": "phi", "input": "hello", **body}
        headers = {"x-citadel-principal": owner, "x-citadel-address": "192.0.2.1"}
        return await self.http.post("/v1/responses", json=told, headers=headers)

    async def get(self, path: str, owner: str = "key:a", method: str = "GET") -> httpx.Response:
        return await self.http.request(method, f"/v1/responses/{path}", headers={"x-citadel-principal": owner})

    async def made(self, **body: Any) -> dict[str, Any]:
        answer = await self.post(**body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        Response.model_validate(found)
        return found

    async def events(self, **body: Any) -> list[dict[str, Any]]:
        answer = await self.post(stream=True, **body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = []
        for block in answer.text.strip().split("\n\n"):
            first, second = block.split("\n")
            event = json.loads(second.removeprefix("data: "))
            assert first == f"event: {event['type']}"
            EVENT.validate_python(event)
            found.append(event)
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        return found


@asynccontextmanager
async def served(another: Callable[[], Store], folder: Path) -> AsyncIterator[Client]:
    gateway = Gateway()
    config = Config(socket="", gateway="/gateway", state=str(folder), spool=str(folder))
    store = another()
    store.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "AsyncHTTPTransport", lambda uds: httpx.MockTransport(gateway))
        patch.setattr("citadel_companion.app.opened", lambda _: another())
        own = httpx.ASGITransport(application(config))
    async with httpx.AsyncClient(transport=own, base_url="http://companion") as asked:
        yield Client(gateway, store, asked)
    store.close()


@pytest.fixture
async def client(opened: Opened, tmp_path: Path) -> AsyncIterator[Client]:
    async with served(opened.another, tmp_path) as client:
        yield client


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Client]:
    """For what no store has a part in."""
    config = Config(socket="", state=str(tmp_path), spool=str(tmp_path))
    async with served(lambda: Embedded(config), tmp_path) as client:
        yield client


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# what is asked of the model


async def test_items_become_messages(plain: Client) -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look:"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "d:i"}]},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Well", "annotations": [], "logprobs": None}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}', "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "system", "content": "Now."},
        {"role": "user", "content": "So?"},
    ]
    await plain.made(input=items, instructions="Be brief.")
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    image = {"type": "image_url", "image_url": {"url": "d:i", "detail": "auto"}}
    assert plain.gateway.asked[0]["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Look:"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, image]},
        {"role": "assistant", "content": "Well", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "system", "content": "Now."},
        {"role": "user", "content": "So?"},
    ]


async def test_parameters_become_those_of_a_chat(plain: Client) -> None:
    parameters = {"type": "object", "properties": {}}
    asked: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 16,
        "parallel_tool_calls": False,
        "user": "u",
        "metadata": {"a": "b"},
        "tools": [{"type": "function", "name": "f", "parameters": parameters, "strict": True, "description": None}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": parameters, "strict": True}},
        "truncation": "disabled",
    }
    silent = {"background": False, "include": [], "reasoning": None, "service_tier": "auto", "conversation": None}
    told = await plain.made(**asked, **silent)
    assert plain.gateway.asked[0] == {
        "model": "phi",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 16,
        "parallel_tool_calls": False,
        "user": "u",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": parameters, "strict": True},
        },
    }
    asked["text"]["verbosity"] = "medium"
    assert {key: told[key] for key in asked} == asked


async def test_it_is_asked_in_the_clients_name(plain: Client) -> None:
    headers = {"x-citadel-principal": "key:a", "x-priority": "low", "x-request-id": "req-7", "x-request-timeout": "9"}
    told = {"model": "phi-3", "input": "hello"}
    answer = await plain.http.post("/v1/responses", json=told, headers=headers)
    asked = plain.gateway.headers[0]
    assert {name: asked[name] for name in headers} == headers
    assert answer.json()["model"] == "phi", "an alias is told by its name"
    assert answer.headers["x-citadel-replica"] == "phi-1"
    assert asked["x-session-id"] == answer.json()["id"]
    await plain.made(previous_response_id=answer.json()["id"])
    assert plain.gateway.headers[1]["x-session-id"] == answer.json()["id"], "a conversation stays on its replica"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"background": True}, "background", "is not offered here: a response is made while its client waits"),
        ({"conversation": "conv_1"}, "conversation", "go on from a response with previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "as instructions and input"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "reasoning is not offered here"),
        ({"include": ["message.output_text.logprobs"]}, "include", "include is not offered here"),
        ({"top_k": 5}, "top_k", "top_k is not offered here"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "no option is offered"),
        ({"model": None}, "model", "model is missing"),
        ({"input": None}, "input", "input is missing"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": 5}, "input", "a text or a list"),
        ({"input": [5]}, "input[0]", "must be an object"),
        ({"input": [{"role": "user", "content": "x"}] * 2001}, "input", "input has 2001 items; at most 2000"),
        ({"input": [{"role": "judge", "content": "x"}]}, "input[0].role", "one of user, system, developer, assistant"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content", "a text or a list of parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
            "of type input_text or input_image",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            "is not offered here",
        ),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type", "'reasoning'; message, function_call"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id", "must be a text"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]},
            "input",
            "No tool call found for function call output with call_id c",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
            "input",
            "No tool output found for function call c",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'; only functions"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "must be a text"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "or name a function"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "is not offered here"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema", "is not offered here"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "text, json_schema, json_object"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "needs a name"),
        ({"max_output_tokens": 0}, "max_output_tokens", "1 or more"),
        ({"metadata": {"a": 1}}, "metadata", "values are texts"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "at most 16"),
        ({"truncation": "some"}, "truncation", "auto, disabled"),
        ({"store": "yes"}, "store", "true or false"),
        ({"input": "x" * 600_000}, "store", "or store: false"),
    ],
)
async def test_what_is_not_offered_is_refused_by_name(
    plain: Client, body: dict[str, Any], param: str, words: str
) -> None:
    answer = await plain.post(**body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert not plain.gateway.asked


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"model": "\\ud800"}', b"[" * 5000])
async def test_a_body_that_is_no_request(plain: Client, content: bytes) -> None:
    answer = await plain.http.post("/v1/responses", content=content, headers={"x-citadel-principal": "key:a"})
    assert code_of(answer) == (400, "invalid_json")


async def test_a_body_of_millions_of_parts_is_not_read(plain: Client) -> None:
    assert code_of(await plain.post(input=[[]] * 400_000)) == (400, "out_of_range")


async def test_other_paths_are_told_in_the_same_shape(plain: Client) -> None:
    assert code_of(await plain.get("compact/x/y")) == (404, "unknown_path")
    assert code_of(await plain.get("input_tokens", method="PUT")) == (405, "unknown_path")


# what comes back


async def test_a_text(plain: Client) -> None:
    told = await plain.made()
    assert (told["object"], told["status"], told["error"]) == ("response", "completed", None)
    (item,) = told["output"]
    assert (item["type"], item["role"], item["content"][0]["text"]) == ("message", "assistant", "hi")
    assert told["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }
    assert told["completed_at"] >= told["created_at"]


async def test_calls_of_tools_and_their_outputs(client: Client) -> None:
    tools = [{"type": "function", "name": "f", "parameters": {}, "strict": False}]
    calls = [called(None, "c1", "f", '{"a": 1}'), called(None, "c2", "f", "{}")]
    client.gateway.answers = [chat("Let me see.", "tool_calls", tool_calls=calls)]
    told = await client.made(tools=tools)
    assert [item["type"] for item in told["output"]] == ["message", "function_call", "function_call"]
    assert [item.get("arguments") for item in told["output"]] == [None, '{"a": 1}', "{}"]
    refused = await client.post(previous_response_id=told["id"], input="And?")
    assert "No tool output found for function call c1" in refused.json()["error"]["message"]
    outputs = [{"type": "function_call_output", "call_id": ident, "output": ident.upper()} for ident in ("c1", "c2")]
    await client.made(previous_response_id=told["id"], input=outputs)
    roles = [(one["role"], len(one.get("tool_calls", ()))) for one in client.gateway.asked[-1]["messages"]]
    assert roles == [("user", 0), ("assistant", 2), ("tool", 0), ("tool", 0)]


async def test_a_stream_of_calls(client: Client) -> None:
    client.gateway.answers = [
        streamed(
            {"role": "assistant", "content": ""},
            {"content": "So: "},
            {"tool_calls": [called(0, "c1", "f", "")]},
            {"tool_calls": [called(0, None, None, '{"a"')]},
            {"tool_calls": [called(0, None, None, ": 1}")]},
            {"tool_calls": [called(1, "c2", "g", "{}")]},
            finish="tool_calls",
        )
    ]
    events = await client.events()
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    final = events[-1]["response"]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == final["output"]
    assert [(item.get("call_id"), item.get("arguments")) for item in final["output"]] == [
        (None, None),
        ("c1", '{"a": 1}'),
        ("c2", "{}"),
    ]
    assert events[0]["response"]["output"] == []
    kept = (await client.get(final["id"])).json()
    assert kept == final


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_cut_is_incomplete(plain: Client, finish: str, reason: str) -> None:
    plain.gateway.answers = [chat("half", finish), streamed({"content": "half"}, finish=finish)]
    told = await plain.made()
    last = (await plain.events())[-1]
    assert last["type"] == "response.incomplete"
    for one in (told, last["response"]):
        assert (one["status"], one["incomplete_details"]) == ("incomplete", {"reason": reason})
        assert one["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (streamed({"content": "ha"}, finish=None, done=False), "broke off"),
        (streamed({"content": "ha"}, finish=None, done=False) + b'data: {"error": {"message": "died"}}\n\n', "died"),
        (streamed({"content": "ha"}, finish=None, done=False) + b"data: {\n\n", "is not JSON"),
    ],
)
async def test_a_stream_that_breaks_is_a_failed_response(plain: Client, answer: bytes, words: str) -> None:
    plain.gateway.answers = [answer]
    events = await plain.events()
    failed = events[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert words in failed["response"]["error"]["message"]
    assert (await plain.get(failed["response"]["id"])).json()["status"] == "failed"
    on = await plain.post(previous_response_id=failed["response"]["id"])
    assert code_of(on) == (400, "previous_response_failed")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_gateway_refuses_is_told_as_it_is(plain: Client, stream: bool) -> None:
    plain.gateway.answers = [refusal(429, "rate_limit_exceeded", **{"retry-after": "7", "x-should-retry": "true"})]
    answer = await plain.post(stream=stream)
    assert code_of(answer) == (429, "rate_limit_exceeded")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("7", "true")
    assert code_of(await plain.post(model="nope")) == (404, "model_not_found")


# what is kept


async def test_only_its_owner_reads_it_and_only_until_it_is_gone(client: Client) -> None:
    told = await client.made()
    path = told["id"]
    assert (await client.get(path)).json() == told
    foreign = [
        await client.get(path, "key:b"),
        await client.get(path, "key:b", "DELETE"),
        await client.get(f"{path}/input_items", "key:b"),
        await client.get(f"{path}/cancel", "key:b", "POST"),
        await client.get("resp_" + "1" * 500),
        await client.get("%00"),
    ]
    assert {code_of(one) for one in foreign} == {(404, "response_not_found")}
    on = await client.post("key:b", previous_response_id=path)
    assert code_of(on) == (404, "previous_response_not_found")
    cancelled = await client.get(f"{path}/cancel", method="POST")
    assert cancelled.json()["error"]["message"] == "Cannot cancel a synchronous response."
    assert (await client.get(path, method="DELETE")).json() == {"id": path, "object": "response", "deleted": True}
    assert code_of(await client.get(path)) == (404, "response_not_found")
    unkept = await client.made(store=False)
    assert code_of(await client.get(unkept["id"])) == (404, "response_not_found")


async def test_a_chain_is_as_good_as_each_of_its_members(client: Client) -> None:
    first = await client.made(input="one")
    second = await client.made(input="two", previous_response_id=first["id"])
    third = await client.made(input="three", previous_response_id=second["id"])
    texts = [one["content"] for one in client.gateway.asked[-1]["messages"]]
    assert texts == ["one", "hi", "two", "hi", "three"]
    thing = client.store.get("response", first["id"], "key:a")
    assert thing is not None
    client.store.put(thing._replace(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    on = await client.post(previous_response_id=third["id"])
    assert code_of(on) == (404, "previous_response_not_found")
    assert first["id"] in on.json()["error"]["message"]


async def test_a_conversation_that_goes_on_keeps_its_turns(client: Client) -> None:
    first = await client.made()
    thing = client.store.get("response", first["id"], "key:a")
    assert thing is not None and thing.expires_at is not None
    assert abs(thing.expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=5)
    client.store.put(soon := thing._replace(expires_at=datetime.now(UTC) + timedelta(days=1)))
    second = await client.made(previous_response_id=first["id"])
    client.store.put(soon)
    await client.get(f"{second['id']}/input_items")
    assert client.store.get("response", first["id"], "key:a") == soon, "who only reads keeps nothing longer"
    await client.made(previous_response_id=second["id"])
    renewed = client.store.get("response", first["id"], "key:a")
    assert renewed is not None
    assert abs(renewed.expires_at - thing.expires_at) < timedelta(minutes=5)  # type: ignore[operator]


async def test_its_input_is_listed_page_by_page(client: Client) -> None:
    first = await client.made(input=[{"role": "user", "content": text} for text in "abc"])
    second = await client.made(input="d", previous_response_id=first["id"])
    seen: list[str] = []
    after = ""
    while True:
        page = (await client.get(f"{second['id']}/input_items?limit=2&order=asc{after}")).json()
        seen += [item["content"][0]["text"] for item in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert seen == ["a", "b", "c", "hi", "d"]
    newest = (await client.get(f"{second['id']}/input_items")).json()["data"][0]
    assert newest["content"][0]["text"] == "d", "the newest first, unless it is asked otherwise"
    path = f"{first['id']}/input_items"
    bad = [await client.get(f"{path}?{query}") for query in ("limit=0", "limit=101", "order=up", "after=x")]
    assert [one.status_code for one in bad] == [400, 400, 400, 404]


async def test_references_are_what_they_refer_to(client: Client) -> None:
    told = await client.made(input="one")
    item = told["output"][0]["id"]
    asked = [{"type": "item_reference", "id": item}, {"role": "user", "content": "again"}]
    await client.made(input=asked)
    assert client.gateway.asked[-1]["messages"][0] == {"role": "assistant", "content": "hi"}
    assert code_of(await client.post("key:b", input=asked)) == (404, "item_not_found")
    assert code_of(await client.post(input=[{"id": "msg_\0"}])) == (404, "item_not_found")
    assert code_of(await client.post(previous_response_id="\0")) == (404, "previous_response_not_found")


async def test_zeros_and_all_other_characters_come_back(client: Client) -> None:
    client.gateway.answers = [chat("\u00e9\U0001f600 a\\u0000")]
    told = await client.made(input="zero \0 and \\u0000 end")
    assert told["output"][0]["content"][0]["text"] == "\u00e9\U0001f600 a\\u0000"
    (item,) = (await client.get(f"{told['id']}/input_items")).json()["data"]
    assert item["content"][0]["text"] in ("zero \0 and \\u0000 end", "zero \ufffd and \\u0000 end")


async def test_a_dead_store_costs_no_model_its_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*_: Any) -> None:
        raise StoreError("away")

    kept = await client.made()
    for kind in (type(client.store),):
        monkeypatch.setattr(kind, "get", dead)
    for body in ({}, {"previous_response_id": kept["id"]}):
        answer = await client.post(**body)
        assert code_of(answer) == (503, "store_unavailable")
    assert len(client.gateway.asked) == 1
    assert (await client.post(store=False)).status_code == 200
    monkeypatch.undo()


async def test_a_store_that_dies_meanwhile_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*_: Any) -> None:
        raise StoreError("away")

    monkeypatch.setattr(type(client.store), "put", dead)
    assert code_of(await client.post()) == (503, "store_unavailable")
    last = (await client.events())[-1]
    assert last["type"] == "response.failed"
    assert "could not be kept" in last["response"]["error"]["message"]


async def test_a_client_has_only_so_many(store: Store) -> None:
    for number in range(10):
        moment = datetime.now(UTC) + timedelta(seconds=number)
        store.put(Thing("response", f"r{number}", "key:a", moment, None, {"text": "x" * 1000}))
    store.put(Thing("response", "theirs", "key:b", datetime.now(UTC), None, {}))
    assert store.thin("response", "key:a", 8, 10**9) == 2
    assert [one.id for one in store.listed("response", "key:a")] == [f"r{number}" for number in range(9, 1, -1)]
    left = 8 - store.thin("response", "key:a", 8, 3000)
    assert 1 <= left < 8
    assert store.thin("response", "key:b", 8, 3000) == 0


# the window


def texts(asked: dict[str, Any]) -> list[str]:
    return [one["content"] for one in asked["messages"]]


async def conversation(client: Client, count: int, **more: Any) -> str:
    previous = None
    for number in range(count):
        told = await client.made(input=f"{number}" + "x" * 60, previous_response_id=previous, **more)
        previous = told["id"]
    assert previous is not None
    return str(previous)


async def test_the_oldest_turns_are_dropped_before_it_is_asked(plain: Client) -> None:
    plain.gateway.answers = [chat("y" * 30)] * 6
    rules = {"input": [{"role": "system", "content": "rules"}, {"role": "user", "content": "0"}]}
    first = await plain.made(**rules)
    previous = first["id"]
    for number in range(1, 6):
        previous = (await plain.made(input=f"{number}" + "x" * 60, previous_response_id=previous))["id"]
    sent = plain.gateway.asked[-1]["messages"]
    assert (sent[0], sent[-1]["content"][0]) == ({"role": "system", "content": "rules"}, "5")
    assert 3 <= len(sent) < 12
    assert sent[1]["role"] == "user"


async def test_a_refusal_for_its_length_is_tried_again_with_less(plain: Client) -> None:
    previous = await conversation(plain, 3)
    del plain.gateway.asked[:]
    plain.gateway.long = lambda body: "It has 300 input tokens." if len(body["messages"]) > 3 else None
    await plain.made(input="last", previous_response_id=previous)
    assert 2 <= len(plain.gateway.asked) <= 5
    assert texts(plain.gateway.asked[-1])[-1] == "last"
    assert len(plain.gateway.asked[-1]["messages"]) <= 3


async def test_what_never_fits_is_told_after_a_few_tries(plain: Client) -> None:
    previous = await conversation(plain, 4)
    del plain.gateway.asked[:]
    plain.gateway.long = lambda _: "Too long."
    single = await plain.post(input="last")
    assert code_of(single) == (400, "context_length_exceeded")
    assert len(plain.gateway.asked) == 1, "there is nothing to leave out"
    del plain.gateway.asked[:]
    answer = await plain.post(input="last", previous_response_id=previous)
    assert code_of(answer) == (400, "context_length_exceeded")
    assert 2 <= len(plain.gateway.asked) <= 5
    assert texts(plain.gateway.asked[-1]) == ["last"]
    disabled = await plain.post(input="last", previous_response_id=previous, truncation="disabled")
    assert code_of(disabled) == (400, "context_length_exceeded")
    assert len(texts(plain.gateway.asked[-1])) > 1, "and nothing is dropped where it is not wanted"


async def test_items_without_a_text_fill_a_window_too(plain: Client) -> None:
    previous = None
    for _ in range(4):
        told = await plain.made(input=[{"role": "user", "content": ""}] * 110, previous_response_id=previous)
        previous = told["id"]
    found = chain.past(plain.store, "key:a", str(previous), 16 * WINDOW, Config.model_fields["responses"].default)
    assert (len(found.items), found.whole) == (111, False)


async def test_what_has_no_characters_is_read_only_so_far_too(plain: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "_HEAVIEST", 20_000)
    previous = None
    for _ in range(5):
        empty = [{"type": "input_text", "text": ""}] * 300
        told = await plain.made(input=[{"role": "user", "content": empty}], previous_response_id=previous)
        previous = told["id"]
    found = chain.past(plain.store, "key:a", str(previous), 16 * WINDOW, Config.model_fields["responses"].default)
    assert not found.whole
    assert len(found.items) < 10


async def test_a_long_conversation_is_read_as_far_as_it_can_matter(
    plain: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "DEEPEST", 3)
    rules = [{"role": "system", "content": "rules"}, {"role": "user", "content": "0"}]
    previous = (await plain.made(input=rules))["id"]
    for number in range(1, 6):
        previous = (await plain.made(input=str(number), previous_response_id=previous))["id"]
    sent = texts(plain.gateway.asked[-1])
    assert (sent[0], sent[-1]) == ("rules", "5")
    assert "0" not in sent
    answer = await plain.post(previous_response_id=previous, truncation="disabled")
    assert code_of(answer) == (400, "context_length_exceeded")
