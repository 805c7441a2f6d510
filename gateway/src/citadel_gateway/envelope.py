"""Station 2: the outside of a request: its size, its model, the few fields that matter on the way.

The body is parsed once and goes on as it came. Only keys that it lacks are put in front of its own; it is written
anew only where a value of its own must change (another name for the model, usage in a stream).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson

from citadel_gateway.config import PRIORITIES
from citadel_gateway.endpoints import ENDPOINTS
from citadel_gateway.errors import Refusal
from citadel_gateway.route import Wish, choose_model, named_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from citadel_gateway.config import Config, Endpoint
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Fleet, Model

_CHARS_PER_TOKEN = 4  # a usual mean, for estimates that are settled later
_MOST_CHARS_PER_TOKEN = 16  # no tokenizer packs more over a whole text: beyond it, it is certainly too long
_INPUTS = {name: endpoint.given for name, endpoint in ENDPOINTS.items()}
_TIMEOUT_HEADERS = (b"x-request-timeout", b"x-stainless-read-timeout", b"x-stainless-timeout")
_LONGEST = 86400.0


async def read_body(exchange: Exchange) -> None:
    encoding = exchange.headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise Refusal(400, "unsupported_encoding", "Send the body without Content-Encoding.")
    exchange.body = await exchange.client.body()


def open_envelope(exchange: Exchange, config: Config, fleet: Fleet, load: Callable[[Model], float]) -> Model:
    """Fill in the exchange from the body and the headers, or refuse."""
    data = _parse(exchange.body)
    endpoint: Endpoint = exchange.endpoint
    _check_input(data, _INPUTS[endpoint])
    exchange.stream = _flag(data, "stream")
    if exchange.stream and endpoint == "embeddings":
        raise Refusal(400, "invalid_value", "Embeddings cannot be streamed.", param="stream")
    asked = _integer(data, "max_completion_tokens", "max_tokens", "max_output_tokens")
    prompt, exact = _prompt_size(data, endpoint)
    exchange.prompt_estimate = prompt

    name = data.get("model")
    if name is not None and not isinstance(name, str):
        raise Refusal(400, "invalid_type", "model must be a string.", param="model")
    exchange.given_model = name
    allowed = exchange.principal.models
    if name in (None, "", "auto"):
        candidates = [model for model in fleet.models.values() if not allowed or model.name in allowed]
        guess = 0 if endpoint == "embeddings" else asked if asked is not None else 256
        model = choose_model(candidates, Wish(data, endpoint, prompt, guess), config.routing.default_model, load)
        if model is None:
            raise Refusal(404, "no_suitable_model", "No model here can serve this request; name one.", param="model")
        exchange.fallback_allowed = config.routing.fallback != "never"
    else:
        model = named_model(fleet, str(name), endpoint)
        exchange.fallback_allowed = config.routing.fallback == "always" or (
            config.routing.fallback == "on_request"
            and exchange.headers.get(b"x-allow-fallback", b"").lower() in (b"true", b"1", b"yes")
        )
    if allowed and model.name not in allowed:
        raise Refusal(403, "model_not_allowed", f"This key may not use {model.name}.", param="model")
    exchange.model = model

    settings = model.settings
    if endpoint != "embeddings":
        _check_bounds(data, model, asked)
    exchange.max_tokens = 0 if endpoint == "embeddings" else asked or settings.defaults.max_tokens or 256
    _check_context(data, exchange, model, asked, prompt if exact else None)
    if data.get("tools") and data.get("tool_choice") != "none" and "tools" not in settings.capabilities:
        raise Refusal(400, "tools_not_supported", f"{model.name} cannot call tools; leave them out.", param="tools")
    _from_headers(exchange, config)
    exchange.body = _rewritten(data, model, exchange, asked)
    return model


def outbound_body(body: bytes, model: Model) -> bytes:
    """The same request for another model, for a fallback."""
    data = orjson.loads(body)
    data["model"] = model.served_name
    return orjson.dumps(data)


def _parse(body: bytes) -> dict[str, Any]:
    if not body:
        raise Refusal(400, "empty_body", "The body is empty; send a JSON object.")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_json", f"The body is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise Refusal(400, "invalid_json", "The body must be a JSON object.")
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


def _integer(data: dict[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = data.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refusal(400, "invalid_type", f"{key} must be a whole number.", param=key)
        if value < 0:
            raise Refusal(422, "out_of_range", f"{key} must not be negative.", param=key)
        return value
    return None


def _prompt_size(data: dict[str, Any], endpoint: Endpoint) -> tuple[int, bool]:
    """Tokens of the prompt, and whether that is exact: it is where the client sends tokens itself."""
    value = data[_INPUTS[endpoint]]
    if endpoint != "chat" and isinstance(value, list) and value:
        if isinstance(value[0], int):
            return len(value), True
        if isinstance(value[0], list):
            return sum(len(item) for item in value if isinstance(item, list)), False
    return _longest_text(value) // _CHARS_PER_TOKEN + 1, False


def _check_bounds(data: dict[str, Any], model: Model, asked: int | None) -> None:
    bounds = model.settings.bounds
    for key, (low, high) in (("temperature", bounds.temperature), ("top_p", bounds.top_p)):
        value = data.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refusal(400, "invalid_type", f"{key} must be a number.", param=key)
        if not low <= value <= high:
            raise Refusal(
                422, "out_of_range", f"{key} is {value:g}; {model.name} takes {low:g} to {high:g}.", param=key
            )
    if asked is not None and bounds.max_tokens is not None and asked > bounds.max_tokens:
        raise Refusal(
            422,
            "out_of_range",
            f"max_tokens is {asked}; {model.name} takes at most {bounds.max_tokens}.",
            param="max_tokens",
        )


def _check_context(
    data: dict[str, Any], exchange: Exchange, model: Model, asked: int | None, exact: int | None
) -> None:
    """Only what is certainly too long: the model server knows the tokens, and refuses the rest at once itself."""
    context = model.settings.context
    key = _INPUTS[exchange.endpoint]
    if asked is not None and asked > context:
        raise _too_long(context, f"max_tokens asks for {asked}", "max_tokens")
    if exact is not None:
        if exact + (asked or 0) > context:
            raise _too_long(context, f"{exact} tokens are given and {asked or 0} are asked for", key)
    elif len(exchange.body) > _MOST_CHARS_PER_TOKEN * context:
        longest = _longest_text(data[key])
        if longest > _MOST_CHARS_PER_TOKEN * context:
            raise _too_long(context, f"{longest} characters are given", key)


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
        return max((_longest_text(item) for item in value), default=0)
    if isinstance(value, dict):
        content = value.get("content", value.get("text"))
        return _longest_text(content) if isinstance(content, str | list) else 0
    return 0


def _from_headers(exchange: Exchange, config: Config) -> None:
    headers = exchange.headers
    wanted = headers.get(b"x-priority")
    if wanted is not None:
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


def _rewritten(data: dict[str, Any], model: Model, exchange: Exchange, asked: int | None) -> bytes:
    body = exchange.body
    added: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    if data.get("model") != model.served_name:
        (changed if "model" in data else added)["model"] = model.served_name
    if exchange.endpoint != "embeddings":
        defaults = model.settings.defaults
        context = model.settings.context
        # a default must not make a long prompt impossible, so it is left out where it might
        if asked is None and defaults.max_tokens is not None and len(body) + defaults.max_tokens <= context:
            added["max_tokens"] = defaults.max_tokens
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
