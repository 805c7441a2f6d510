"""Station 2: the outside of a request: its size, the few fields that matter on the way, what its model may be asked.

The body is parsed once and goes on as it came. Only keys that it lacks are put in front of its own; it is written
anew only where a value of its own must change (another name for the model, usage in a stream).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson

from citadel_gateway.bounds import check_count, check_parameters, depth_of, sequences
from citadel_gateway.config import PRIORITIES
from citadel_gateway.endpoints import ENDPOINTS
from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from citadel_gateway.config import Config, Endpoint
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Model

_CHARS_PER_TOKEN = 4  # a usual mean, for estimates that are settled later
_MOST_CHARS_PER_TOKEN = 16  # no tokenizer packs more over a whole text: beyond it, it is certainly too long
_INPUTS = {name: endpoint.given for name, endpoint in ENDPOINTS.items()}
# how long an answer may be: the first that is there counts
_LENGTHS = {
    "chat": ("max_completion_tokens", "max_tokens", "max_output_tokens"),
    "completions": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "embeddings": (),
}
_READ = {"chat": ("max_completion_tokens", "max_tokens"), "completions": ("max_tokens",)}  # by the model server
_UNSAID = 16  # its own default for completions
_TIMEOUT_HEADERS = (b"x-request-timeout", b"x-stainless-read-timeout", b"x-stainless-timeout")
_LONGEST = 86400.0
_DEEPEST = 128


async def read_body(exchange: Exchange) -> None:
    encoding = exchange.headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise Refusal(400, "unsupported_encoding", "Send the body without Content-Encoding.")
    exchange.body = await exchange.client.body()


class Envelope:
    """What a body says that the stations need; it goes when the model has been fitted."""

    __slots__ = ("asked", "asked_by", "data", "exact", "longest", "prompts")

    def __init__(self, data: dict[str, Any], endpoint: Endpoint) -> None:
        self.data = data
        _check_input(data, _INPUTS[endpoint])
        self.asked, self.asked_by = _asked(data, endpoint)
        sizes = _prompt_sizes(data[_INPUTS[endpoint]], endpoint)
        self.prompts, self.longest, self.exact = sizes


def open_envelope(exchange: Exchange, config: Config) -> Envelope:
    """What can be told before a model is chosen."""
    endpoint: Endpoint = exchange.endpoint
    envelope = Envelope(_parse(exchange.body), endpoint)
    exchange.stream = _flag(envelope.data, "stream")
    if exchange.stream and endpoint == "embeddings":
        raise Refusal(400, "invalid_value", "Embeddings cannot be streamed.", param="stream")
    _from_headers(exchange, config)
    return envelope


def fit(exchange: Exchange, envelope: Envelope, model: Model) -> None:
    """The body as this model gets it, or why it does not."""
    data = envelope.data
    settings = model.settings
    endpoint: Endpoint = exchange.endpoint
    if data.get("tools") and data.get("tool_choice") != "none" and "tools" not in settings.capabilities:
        raise Refusal(400, "tools_not_supported", f"{model.name} cannot call tools; leave them out.", param="tools")
    count = len(envelope.prompts)
    if endpoint == "embeddings":
        check_count("input", count, settings.bounds.inputs, model)
    elif endpoint == "completions":
        check_count("prompt", count, settings.bounds.prompts, model)
    check_parameters(data, model, endpoint)
    _check_lengths(envelope, model, endpoint)
    exchange.prompt_estimate = sum(envelope.prompts)
    exchange.strip_usage = False
    most = 0
    added: dict[str, Any] = {}
    if endpoint != "embeddings":
        most = _most_tokens(envelope, exchange, model, added) * count * sequences(data)
    exchange.max_tokens = most
    exchange.body = _rewritten(data, model, exchange, added)


def refit(exchange: Exchange, model: Model) -> bool:
    """The same request for another model, for a fallback; False where that model could not serve it."""
    before = exchange.body, exchange.max_tokens, exchange.prompt_estimate
    endpoint: Endpoint = exchange.endpoint
    envelope = Envelope(orjson.loads(exchange.original), endpoint)
    settings = model.settings
    if endpoint not in settings.endpoints or max(envelope.prompts) + (envelope.asked or 0) > settings.context:
        return False
    exchange.body = exchange.original
    try:
        fit(exchange, envelope, model)
    except Refusal:
        exchange.body, exchange.max_tokens, exchange.prompt_estimate = before
        return False
    return True


def _parse(body: bytes) -> dict[str, Any]:
    if not body:
        raise Refusal(400, "empty_body", "The body is empty; send a JSON object.")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_json", f"The body is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise Refusal(400, "invalid_json", "The body must be a JSON object.")
    # few bodies have so many brackets at all
    if body.count(b"[") + body.count(b"{") > _DEEPEST:
        for key, value in data.items():
            if depth_of(value, _DEEPEST + 1) > _DEEPEST:
                raise Refusal(400, "invalid_json", f"{key[:100]} is nested more than {_DEEPEST} deep.", param=key[:100])
    return data


def _check_input(data: dict[str, Any], key: str) -> None:
    value = data.get(key)
    if value is None:
        raise Refusal(400, "missing_required_parameter", f"{key} is missing.", param=key)
    if key == "messages":
        if not isinstance(value, list):
            raise Refusal(400, "invalid_type", "messages must be a list.", param=key)
        if not value:
            raise Refusal(400, "empty_array", "messages must not be empty.", param=key)
        for message in value:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                where = f"messages[{value.index(message)}]"
                raise Refusal(400, "invalid_type", f"{where} must be an object with a role.", param=where)
    elif not isinstance(value, str | list):
        raise Refusal(400, "invalid_type", f"{key} must be a string or a list.", param=key)
    elif not value and key == "input":
        raise Refusal(400, "empty_array", "input must not be empty.", param=key)


def _flag(data: dict[str, Any], key: str) -> bool:
    value = data.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise Refusal(400, "invalid_type", f"{key} must be true or false.", param=key)


def _integer(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal(400, "invalid_type", f"{key} must be a whole number.", param=key)
    if value < 0:
        raise Refusal(422, "out_of_range", f"{key} must not be negative.", param=key)
    return value


def _asked(data: dict[str, Any], endpoint: Endpoint) -> tuple[int | None, str]:
    """How long the answer may be by the field that counts; fields that the model server does not read become it."""
    found: int | None = None
    name = "max_tokens"
    for key in _LENGTHS[endpoint]:
        value = _integer(data, key)
        if found is None and value is not None:
            found, name = value, key
    return found, name


def _prompt_sizes(value: Any, endpoint: Endpoint) -> tuple[list[int], int, bool]:
    """Tokens of each prompt, characters of the longest, and whether that is exact: where the client sends tokens."""
    if endpoint != "chat" and isinstance(value, list) and value:
        first = value[0]
        if isinstance(first, int):
            return [len(value)], 0, True
        if isinstance(first, list):
            return [len(item) if isinstance(item, list) else 1 for item in value], 0, True
        if isinstance(first, str):
            lengths = [_longest_text(item) for item in value]
            return [length // _CHARS_PER_TOKEN + 1 for length in lengths], max(lengths), False
    longest = _longest_text(value)
    return [longest // _CHARS_PER_TOKEN + 1], longest, False


def _check_lengths(envelope: Envelope, model: Model, endpoint: Endpoint) -> None:
    """Only what is certainly too long: the model server knows the tokens, and refuses the rest at once itself."""
    context = model.settings.context
    asked = envelope.asked if endpoint != "embeddings" else None
    key = _INPUTS[endpoint]
    if asked is not None:
        most = model.settings.bounds.max_tokens
        if most is not None and asked > most:
            raise Refusal(
                422,
                "out_of_range",
                f"{envelope.asked_by} is {asked}; {model.name} takes at most {most}.",
                param=envelope.asked_by,
            )
        if asked > context:
            raise _too_long(context, f"{envelope.asked_by} asks for {asked}", envelope.asked_by)
    if envelope.exact:
        given = max(envelope.prompts)
        if given + (asked or 0) > context:
            raise _too_long(context, f"{given} tokens are given and {asked or 0} are asked for", key)
    elif envelope.longest > _MOST_CHARS_PER_TOKEN * context:
        raise _too_long(context, f"{envelope.longest} characters are given", key)


def _most_tokens(envelope: Envelope, exchange: Exchange, model: Model, added: dict[str, Any]) -> int:
    """The longest answer to one prompt; what is not said is filled in."""
    asked = envelope.asked
    data = envelope.data
    if asked is not None:
        if all(data.get(key) is None for key in _READ[exchange.endpoint]):
            added["max_tokens"] = asked
        return asked
    default = model.settings.defaults.max_tokens
    context = model.settings.context
    # a default must not make a long prompt impossible, so it is left out where it might
    if default is not None and len(exchange.body) + default <= context:
        added["max_tokens"] = default
        return default
    if exchange.endpoint == "completions":
        return _UNSAID
    return max(1, context - max(envelope.prompts))


def _longest_text(value: Any) -> int:
    """Characters of text: of all messages together, or of the longest of several prompts."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            total = 0
            for item in value:
                total += _longest_text(item)
            return total
        return max([len(item) for item in value if isinstance(item, str)], default=0)
    if isinstance(value, dict):
        content = value.get("content", value.get("text"))
        return _longest_text(content) if isinstance(content, str | list) else 0
    return 0


def _from_headers(exchange: Exchange, config: Config) -> None:
    headers = exchange.headers
    wanted = headers.get(b"x-priority")
    if wanted is None:
        exchange.priority = min(exchange.priority, exchange.principal.priority)
    else:
        name = wanted.decode("latin-1").lower()
        if name not in PRIORITIES:
            raise Refusal(400, "invalid_value", f"x-priority must be one of {', '.join(PRIORITIES)}.")
        exchange.priority = min(PRIORITIES.index(name), exchange.principal.priority)
    session = headers.get(b"x-session-id")
    if session is not None:
        exchange.session = session[:256].decode("latin-1")
    exchange.deadline = exchange.started + config.server.client_timeout
    for header in _TIMEOUT_HEADERS:
        value = headers.get(header)
        if value is not None:
            seconds = _seconds(value)
            if seconds is not None:
                exchange.client_deadline = exchange.started + seconds
                exchange.deadline = min(exchange.deadline, exchange.client_deadline)
                break
    if exchange.deadline <= time.monotonic():
        raise Refusal(504, "deadline_passed", "The time that the client gave was over before it could start.")


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds <= _LONGEST else None


def _rewritten(data: dict[str, Any], model: Model, exchange: Exchange, added: dict[str, Any]) -> bytes:
    body = exchange.body
    changed: dict[str, Any] = {}
    if data.get("model") != model.served_name:
        (changed if "model" in data else added)["model"] = model.served_name
    if exchange.endpoint != "embeddings":
        defaults = model.settings.defaults
        if defaults.temperature is not None and data.get("temperature") is None:
            added["temperature"] = defaults.temperature
        if defaults.top_p is not None and data.get("top_p") is None:
            added["top_p"] = defaults.top_p
    if exchange.stream:
        options = data.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise Refusal(400, "invalid_type", "stream_options must be an object.", param="stream_options")
        if not (options and options.get("include_usage")):
            exchange.strip_usage = True
            (changed if "stream_options" in data else added)["stream_options"] = {
                **(options or {}),
                "include_usage": True,
            }
    if not added and not changed:
        return body
    # a key that is there with null would win over one put before it
    if changed or any(key in data for key in added):
        return orjson.dumps({**data, **added, **changed})
    start = body.index(b"{") + 1
    return b"".join((orjson.dumps(added)[:-1], b",", memoryview(body)[start:]))


def _too_long(context: int, what: str, param: str) -> Refusal:
    return Refusal(
        400,
        "context_length_exceeded",
        f"This model's maximum context length is {context} tokens; {what}.",
        param=param,
    )
