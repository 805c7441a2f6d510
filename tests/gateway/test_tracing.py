"""Spans of sampled requests: what a collector gets, and that nobody waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from citadel_gateway.config import ConfigError
from citadel_gateway.tracing import Trace
from tests.gateway.harness import Lab, running
from tests.gateway.simulator import until

pytestmark = pytest.mark.anyio

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    def __init__(self) -> None:
        self.port = 0
        self.status = b"200 OK"
        self.asked = 0
        self.spans: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"POST /v1/traces HTTP/1.1\r\n")
                found = re.search(rb"content-length: (\d+)", head)
                assert found is not None
                told = json.loads(await reader.readexactly(int(found[1])))
                self.asked += 1
                if self.status.startswith(b"200"):
                    for resource in told["resourceSpans"]:
                        for scope in resource["scopeSpans"]:
                            self.spans += scope["spans"]
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: 2\r\n\r\n{}" % self.status)
        writer.close()

    def named(self, name: str) -> dict[str, Any]:
        (found,) = (span for span in self.spans if span["name"] == name)
        return found


def said(span: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


@contextlib.asynccontextmanager
async def traced(**settings: Any) -> AsyncIterator[tuple[Lab, Collector]]:
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    collector.port = server.sockets[0].getsockname()[1]
    where = f"http://127.0.0.1:{collector.port}/v1/traces"
    async with server, running({"tracing": {"endpoint": where, **settings}}) as lab:
        yield lab, collector


async def test_a_stream_of_somebodys_trace_is_three_spans_of_it() -> None:
    async with traced(sample=0.0) as (lab, collector):
        await lab.stream({"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01", "tracestate": "a=b"})
        await until(lambda: len(collector.spans) >= 2, 10)
        request, call = collector.named("POST /v1/chat/completions"), next(s for s in collector.spans if s["kind"] == 3)
        assert {span["traceId"] for span in collector.spans} == {PARENT[0]}
        assert request["parentSpanId"] == PARENT[1]
        assert call["parentSpanId"] == request["spanId"]
        assert int(request["startTimeUnixNano"]) <= int(call["startTimeUnixNano"]) <= int(call["endTimeUnixNano"])
        assert [event["name"] for event in call["events"]] == ["first byte"]
        told = said(request)
        assert told["http.response.status_code"] == "200"
        assert int(told["gen_ai.usage.output_tokens"]) > 0
        # the model's own spans hang below the call
        heads = [seen.headers for simulator in lab.simulators.values() for seen in simulator.seen]
        assert heads[-1]["traceparent"] == f"00-{PARENT[0]}-{call['spanId']}-01"
        assert heads[-1]["tracestate"] == "a=b"


async def test_the_share_decides_where_nobody_else_has() -> None:
    async with traced(sample=1.0) as (lab, collector):
        await lab.chat()
        await lab.chat(headers={"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-00"})
        await lab.chat(headers={"traceparent": "00-not-one-01"})
        await until(lambda: sum(span["kind"] == 2 for span in collector.spans) == 2, 10)
        assert all(span["traceId"] != PARENT[0] for span in collector.spans)


async def test_a_refused_request_says_why() -> None:
    async with traced(sample=1.0) as (lab, collector):
        assert (await lab.chat(model="nobody")).status_code == 404
        await until(lambda: bool(collector.spans), 10)
        assert said(collector.spans[0])["error.type"] == "model_not_found"


async def test_a_client_cannot_have_everything_traced() -> None:
    async with traced(sample=0.0, traces_per_second=2) as (lab, collector):
        wanted = {"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01"}
        await asyncio.gather(*(lab.chat(headers=wanted) for _ in range(20)))
        # they may have met more than one second
        assert lab.metric("llm_traces_dropped_total", reason="rate") >= 10
        await until(lambda: bool(collector.spans), 10)


async def test_a_collector_that_is_away_costs_nobody_anything_and_gets_the_spans_later() -> None:
    async with traced(sample=1.0) as (lab, collector):
        collector.status = b"503 Away"
        assert (await lab.chat()).status_code == 200
        await until(lambda: collector.asked > 0, 10)
        assert not collector.spans
        collector.status = b"200 OK"
        await until(lambda: bool(collector.spans), 15)
        collector.status = b"400 Never"
        assert (await lab.chat()).status_code == 200
        await until(lambda: lab.metric("llm_traces_dropped_total", reason="refused") == 1, 15)


async def test_what_waits_is_sent_when_the_gateway_stops() -> None:
    async with traced(sample=1.0) as (lab, collector):
        await lab.chat()
        await until(lambda: not lab.gateway.walk.running)
        assert lab.gateway.tracer is not None
        await lab.gateway.tracer.close()
        assert collector.spans


async def test_without_tracing_a_clients_own_trace_goes_through() -> None:
    async with running() as lab:
        line = f"00-{PARENT[0]}-{PARENT[1]}-01"
        await lab.chat(headers={"traceparent": line})
        heads = [seen.headers for simulator in lab.simulators.values() for seen in simulator.seen]
        assert heads[-1]["traceparent"] == line


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01",
        b"00-" + b"1" * 32 + b"-" + b"0" * 16 + b"-01",
        b"ff-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01",
        b"00-" + b"A" * 32 + b"-" + b"1" * 16 + b"-01",
        b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01\r\nx: y",
    ],
)
def test_a_header_that_is_no_parent_begins_a_trace_of_its_own(line: bytes) -> None:
    trace = Trace(line, 0.0)
    assert trace.parent == ""
    assert not trace.sampled
    assert re.fullmatch(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n", trace.line())


@pytest.mark.parametrize("endpoint", ["10.0.0.1:4318", "https://10.0.0.1/v1/traces", "http://10.0.0.1:4318"])
async def test_an_endpoint_that_cannot_be_meant(endpoint: str) -> None:
    with pytest.raises(
        ConfigError, match="is not where a collector takes spans; write it as http://HOST:4318/v1/traces"
    ):
        async with running({"tracing": {"endpoint": endpoint}}):
            pass
