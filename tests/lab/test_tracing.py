"""One request as a collector sees it: the gateway's spans and, below them, vLLM's own."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import rotel  # type: ignore[import-untyped]

from lab.settings import Lab

PORT = 14318  # as inventory/lab has it
PROGRAM = Path(rotel.__file__).with_name("rotel-agent")


@dataclass(frozen=True)
class Span:
    service: str
    trace: str
    parent: str
    id: str
    name: str


def spans(text: str) -> list[Span]:
    """Of what the collector prints of each that it takes."""
    found, service = [], ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "-> service.name":
            service = re.sub(r"Str\((.*)\)", r"\1", value)
        elif key in {"Trace ID", "Parent ID", "ID"}:
            fields[key] = value
        elif key == "Name" and "ID" in fields:
            found.append(Span(service, fields["Trace ID"], fields["Parent ID"], fields["ID"], value))
            fields = {}
    return found


@pytest.fixture
def collected(lab: Lab, tmp_path: Path, eventually: Callable[..., None]) -> Iterator[Callable[[], list[Span]]]:
    log = tmp_path / "collector.log"
    where = ["--otlp-http-endpoint", f"{lab.gateway}:{PORT}", "--otlp-grpc-endpoint", "127.0.0.1:0"]
    how = ["--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed"]
    with log.open("w") as out, subprocess.Popen([PROGRAM, "start", *where, *how], stdout=out, stderr=out) as collector:
        try:
            eventually(log.read_text, lambda text: "Starting Rotel" in text)
            yield lambda: spans(log.read_text())
        finally:
            collector.terminate()


def asked(gateway: str, trace: str, sampled: str, parent: str = "00f067aa0ba902b7") -> str:
    question = {"model": "phi-3-mini", "max_tokens": 4, "messages": [{"role": "user", "content": "Who are you?"}]}
    headers = {"Content-Type": "application/json", "traceparent": f"00-{trace}-{parent}-{sampled}"}
    call = urllib.request.Request(f"{gateway}/v1/chat/completions", json.dumps(question).encode(), headers)
    with urllib.request.urlopen(call, timeout=120) as answer:
        assert answer.status == 200
    return trace


def test_one_trace_goes_through_gateway_and_model(
    collected: Callable[[], list[Span]], gateway: str, eventually: Callable[..., None]
) -> None:
    trace, ours = secrets.token_hex(16), secrets.token_hex(8)
    asked(gateway, trace, "01", ours)

    # each of them sends when it has gathered for a moment
    def of_it() -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {}
        for span in collected():
            if span.trace == trace:
                found.setdefault(span.service, []).append(span)
        return found

    eventually(of_it, lambda found: {"citadel-gateway", "vllm-phi-3-mini"} <= set(found), 60)
    told = of_it()
    (request,) = (span for span in told["citadel-gateway"] if span.parent == ours)
    (called,) = (span for span in told["citadel-gateway"] if span.name.startswith("call "))
    assert request.name == "POST /v1/chat/completions"
    assert called.parent == request.id
    assert called.id in {span.parent for span in told["vllm-phi-3-mini"]}, "vLLM's spans hang below the call"


def test_a_request_that_nobody_samples_makes_no_span(
    collected: Callable[[], list[Span]], gateway: str, eventually: Callable[..., None]
) -> None:
    quiet, told = (asked(gateway, secrets.token_hex(16), sampled) for sampled in ("00", "01"))
    # the sampled one came after it, by the same ways
    eventually(lambda: {span.service for span in collected() if span.trace == told}, lambda found: len(found) == 2, 60)
    assert quiet not in {span.trace for span in collected()}
