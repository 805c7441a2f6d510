"""Station 6: one call of one replica, its answer carried to the client as it comes.

A failure before the first byte is raised as `CallFailed`, and may be tried elsewhere; after it the client is told in
the stream. An answer that is not a stream is gathered first: the client sees all of it or a clean error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from citadel_gateway.endpoints import ENDPOINTS
from citadel_gateway.errors import Refusal, error_body, error_event, error_type
from citadel_gateway.exchange import header_lines
from citadel_gateway.reservation import limit_lines
from citadel_gateway.sse import ERROR_EVENT, EventStream, event_data, find_usage
from citadel_gateway.upstream import Connection, UpstreamError

if TYPE_CHECKING:
    from citadel_gateway.config import Server
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Model, Replica

_PATHS = {name: endpoint.path.encode() for name, endpoint in ENDPOINTS.items()}
_STREAM_LINES = header_lines(
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_TRACE = (b"traceparent", b"tracestate")
# vLLM's answer to whoever comes while it ends what it has
_STOPPING = "after shutdown"
# ... and to those whose engine has died under it, where it begins so: v1/engine/exceptions.py
_DEAD = "EngineCore encountered an issue."
DEATHS = ("reset", "engine_died")
_TOO_LONG = (
    "maximum context length",
    "context length",
    "longer than the maximum model length",
    "max_model_len",
)


class CallFailed(Exception):
    """No byte of an answer has gone to the client. Says whether another try is sensible and who is to blame."""

    def __init__(
        self, kind: str, refusal: Refusal, *, again: bool, blame: bool, counts: bool = True, doubt: int = 0
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.refusal = refusal
        self.again = again  # another try may help
        self.blame = blame  # the replica failed, not the client and not the gateway
        self.counts = counts  # against the number of attempts
        self.doubt = doubt  # the status of an answer that may be the replica's fault or the request's


def request_head(exchange: Exchange, replica: Replica) -> bytes:
    headers = exchange.headers
    trace = exchange.trace_lines
    if not trace:
        for name in _TRACE:
            if name in headers:
                trace += b"%b: %b\r\n" % (name, headers[name])
    return b"POST %b%bx-request-id: %b\r\ncontent-length: %d\r\n%b\r\n" % (
        _PATHS[exchange.endpoint],
        replica.call_head,
        exchange.id.encode(),
        len(exchange.body),
        trace,
    )


Lines = Callable[["Exchange"], bytes]  # what every answer carries


async def call(exchange: Exchange, replica: Replica, lines: Lines, server: Server) -> None:
    """Ask the replica and answer the client."""
    now = time.monotonic()
    exchange.upstream_started = now
    most = min(replica.model.settings.timeout, exchange.started + server.client_timeout - now)
    if exchange.client_deadline is not None and not exchange.stream:
        most = min(most, exchange.client_deadline - now)
    connection: Connection | None = None
    try:
        connection = await replica.pool.request(request_head(exchange, replica) + exchange.body, most)
        await _answer(exchange, replica, connection, lines, server)
    except UpstreamError as error:
        raise _failed(error, replica, most) from None
    finally:
        if connection is not None:
            connection.finish()


def _failed(error: UpstreamError, replica: Replica, most: float) -> CallFailed:
    model = replica.model
    match error.kind:
        case "refused":
            replica.refused()
            refusal = Refusal(503, "model_not_ready", f"{model.name} is not ready.", retry_after=model.back_in())
            return CallFailed("refused", refusal, again=True, blame=False, counts=False)
        case "timeout":
            refusal = Refusal(
                504, "upstream_timeout", f"{model.name} did not answer within {most:.0f} s.", retry_after=1.0
            )
            return CallFailed("timeout", refusal, again=False, blame=True)
        case "local":
            refusal = Refusal(503, "gateway_overloaded", f"The gateway has run out of {error.detail}.", retry_after=1.0)
            return CallFailed("local", refusal, again=False, blame=False)
        case "too_large":
            refusal = Refusal(503, "answer_too_large", f"{model.name}: {error.detail}.")
            return CallFailed("too_large", refusal, again=False, blame=False)
        case kind:
            refusal = Refusal(
                503,
                "upstream_failed",
                f"{model.name} broke off before it answered ({kind}).",
                retry_after=1.0,
            )
            died = kind == "reset"
            if died:
                refusal.retry_after = max(1.0, model.back_in())
            return CallFailed(kind, refusal, again=True, blame=not died)


async def _answer(exchange: Exchange, replica: Replica, connection: Connection, lines: Lines, server: Server) -> None:
    status = connection.status
    kind = connection.content_type
    if status == 200 and exchange.stream and kind.startswith(b"text/event-stream"):
        events = EventStream(exchange.strip_usage)
        data = await _first_event(connection, events)
        if not data.startswith(ERROR_EVENT):
            await _stream(exchange, connection, lines, events, data)
            if events.failed and _read_error(events.failure)[0].startswith(_DEAD):
                replica.dies()
                raise BrokenStream("engine_died")
            return
        # it was refused after all, and nothing has been promised to the client
        body = event_data(data)
        status = _status_of(body)
    else:
        body = await connection.read_all(server.max_response_bytes)
    exchange.first_byte = time.monotonic()
    if status >= 400:
        body = _translate(status, body, replica)
        kind = b"application/json"
    else:
        usage = find_usage(body)
        if usage is not None:
            exchange.prompt_tokens, exchange.completion_tokens = usage.prompt, usage.completion
            exchange.cached_tokens = usage.cached
            exchange.usage_exact = True
        if kind.startswith(b"application/json"):
            exchange.keep(body)
        else:
            exchange.kept = None  # whoever wants it takes it for JSON
        if exchange.sources and body.endswith(b"}"):
            body = b'%b,"sources":%b}' % (body[:-1], exchange.sources)
    head = b"%b%bcontent-type: %b\r\n" % (lines(exchange), limit_lines(exchange), kind)
    if status >= 400:
        head += b"x-should-retry: false\r\n"
        exchange.error_code = "upstream_client_error"
    exchange.status = status
    await exchange.answer(head, body)


async def _first_event(connection: Connection, events: EventStream) -> bytes:
    """Until it is here, nothing is promised to the client."""
    data = b""
    while not data:
        part = await connection.read()
        if not part:
            raise UpstreamError("reset", "the stream ended before its first event")
        data = events.feed(part)
    return data


async def _stream(exchange: Exchange, connection: Connection, lines: Lines, events: EventStream, data: bytes) -> None:
    """From the first event, `data`, to the last."""
    exchange.first_byte = time.monotonic()
    head = lines(exchange) + limit_lines(exchange) + _STREAM_LINES
    exchange.status = 200
    broken: UpstreamError | None = None
    try:
        await exchange.begin(head)
        exchange.keep(data)
        await exchange.pass_on(data)
        late: list[bytes] = []

        def take(part: bytes) -> bool:
            data = events.feed(part)
            exchange.keep(data)
            if not data or exchange.pass_at_once(data):
                return True
            late.append(data)
            return False

        while not await connection.pour(take):
            await exchange.pass_on(late.pop())
        _check_end(events)
        if events.failed:
            exchange.error_code = "upstream_error_event"
            exchange.outcome = 503
        await exchange.end()
    except UpstreamError as error:
        broken = error
    finally:
        _take_usage(exchange, events)
    if broken is not None:
        await _end_broken(exchange, broken)
        raise BrokenStream(broken.kind)


def _check_end(events: EventStream) -> None:
    if not events.done and not events.failed:
        raise UpstreamError("reset", "the stream ended without [DONE]")


class BrokenStream(Exception):
    """The replica failed in mid-stream; the client has been told. Never tried again: it would repeat output."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


async def _end_broken(exchange: Exchange, error: UpstreamError) -> None:
    timeout = error.kind == "timeout"
    exchange.error_code = "upstream_timeout" if timeout else "upstream_failed"
    exchange.outcome = 504 if timeout else 503
    event = error_event(
        exchange.outcome, exchange.error_code, f"The model server failed in mid-stream: {error.detail}."
    )
    await exchange.end(event)


def _take_usage(exchange: Exchange, events: EventStream) -> None:
    if events.usage is not None:
        exchange.prompt_tokens, exchange.completion_tokens = events.usage.prompt, events.usage.completion
        exchange.cached_tokens = events.usage.cached
        exchange.usage_exact = True
    else:
        # cut short: about one token for each event
        exchange.prompt_tokens = exchange.prompt_estimate
        exchange.completion_tokens = events.events


def _translate(status: int, body: bytes, replica: Replica) -> bytes:
    """An error of the model server in OpenAI's shape; what only the operator can mend becomes a `CallFailed`."""
    message, param, code = _read_error(body)
    name = replica.model.name
    if status == 429:
        refusal = Refusal(429, "upstream_saturated", message or f"{name} is saturated.", retry_after=1.0)
        raise CallFailed("saturated", refusal, again=True, blame=False)
    if status >= 500 and _STOPPING in message:
        replica.leaves()
        refusal = Refusal(503, "model_not_ready", f"{name} is restarting.", retry_after=replica.model.back_in())
        raise CallFailed("stopping", refusal, again=True, blame=False, counts=False)
    if status >= 500 and message.startswith(_DEAD):
        replica.dies()
        back = max(1.0, replica.model.back_in())
        refusal = Refusal(503, "upstream_failed", f"{name} broke off before it answered.", retry_after=back)
        raise CallFailed("engine_died", refusal, again=True, blame=False)
    if status >= 500:
        refusal = Refusal(503, "upstream_error", f"{name} failed with status {status}.", retry_after=1.0)
        raise CallFailed(f"status_{status // 100}xx", refusal, again=True, blame=False, doubt=status)
    if status in (401, 403, 405):
        refusal = Refusal(503, "upstream_misconfigured", f"{name} refuses the gateway with status {status}.")
        raise CallFailed("misconfigured", refusal, again=False, blame=False)
    if any(words in message for words in _TOO_LONG):
        code = "context_length_exceeded"
    return error_body(status, code or error_type(status), message or "The model server refused this.", param)


def unfit(model: Model, status: int) -> Refusal:
    """The model server fails on this request, and answers others."""
    if status == 503:
        return Refusal(503, "upstream_saturated", f"{model.name} has as many requests as it takes.", retry_after=1.0)
    return Refusal(
        422,
        "request_fails_on_model",
        f"{model.name} fails on this request (status {status}) and answers others. Leave out what is unusual in it: "
        "its schema, a parameter at the end of its range, a special token.",
    )


def _status_of(body: bytes) -> int:
    """The status that an error would have had, were it not an event of a stream."""
    try:
        code = orjson.loads(body)["error"]["code"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 500
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _read_error(body: bytes) -> tuple[str, str | None, str | None]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", None, None
    error = data.get("error", data) if isinstance(data, dict) else {}
    if not isinstance(error, dict):
        return str(error)[:1000], None, None
    message, param, code = error.get("message"), error.get("param"), error.get("code")
    return (
        message if isinstance(message, str) else "",
        param if isinstance(param, str) else None,
        code if isinstance(code, str) else None,
    )
