"""A request for a response: what it may say, and what a model is asked. What is not offered is refused by name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from citadel_companion.config import Responses as Settings
from citadel_companion.responses.items import Item, given, refused
from citadel_companion.services import Problem

# what says nothing in these may be there, for clients send it unasked
_NOTHING: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "include": ([],),
    "reasoning": ({},),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "context_management": ([],),
}
_INSTEAD = {
    "background": "a response is made while its client waits; leave it out",
    "conversation": "go on from a response with previous_response_id",
    "prompt": "send its text as instructions and input",
    "max_tool_calls": "it bounds tools that run in the server, and there are none; leave it out",
}
_PASSED = ("temperature", "top_p", "parallel_tool_calls")
_TEXTS = ("user", "safety_identifier", "prompt_cache_key")
_OURS = ("model", "input", "instructions", "previous_response_id", "store", "stream", "stream_options", "truncation")
_KNOWN = frozenset((*_OURS, "max_output_tokens", "metadata", "text", "tools", "tool_choice", *_PASSED, *_TEXTS))
_FUNCTION = ("type", "name", "description", "parameters", "strict")
_FORMAT = {
    "text": ("type",),
    "json_object": ("type",),
    "json_schema": ("type", "name", "schema", "strict", "description"),
}
_CHOICES = ("none", "auto", "required")
_LONGEST_NAME = 512
_MOST_PARTS = 300_000


@dataclass
class Wanted:
    model: str
    id: str  # of the response that is to be
    items: list[Item]
    instructions: str | None
    previous: str | None
    store: bool
    stream: bool
    truncation: str
    max_output_tokens: int | None
    metadata: dict[str, str]
    chat: dict[str, Any] = field(default_factory=dict)  # of the request to the model
    told: dict[str, Any] = field(default_factory=dict)  # of the response, as it was asked for

    def response(self, created_at: int, model: str) -> dict[str, Any]:
        """As it is before the model has said anything."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": created_at,
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata,
            "model": model,
            "output": [],
            "previous_response_id": self.previous,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": self.store,
            "truncation": self.truncation,
            "usage": None,
            **self.told,
        }


def wanted(body: bytes, settings: Settings) -> Wanted:
    data = _parsed(body)
    for key, value in data.items():
        if key not in _KNOWN and value is not None and value not in _NOTHING.get(key, ()):
            instead = _INSTEAD.get(key, "leave it out")
            raise refused(key[:100], f"{key[:100]} is not offered here: {instead}.", "unsupported_parameter")
    options = data.get("stream_options")
    if options is not None and (not isinstance(options, dict) or any(options.values())):
        raise refused("stream_options", "stream_options: no option is offered here; leave it out.")
    ident = uuid.uuid4().hex
    found = Wanted(
        model=_text(data, "model") or _missing("model"),
        id=f"resp_{ident}",
        items=given(_there(data, "input"), numbered(ident)),
        instructions=_text(data, "instructions", most=None),
        previous=_text(data, "previous_response_id"),
        store=_flag(data, "store", settings.store),
        stream=_flag(data, "stream", False),
        truncation=_choice(data, "truncation", ("auto", "disabled"), settings.truncation),
        max_output_tokens=_tokens(data),
        metadata=_metadata(data.get("metadata")),
    )
    for key in _PASSED:
        if data.get(key) is not None:
            found.chat[key] = data[key]
    if found.max_output_tokens is not None:
        found.chat["max_output_tokens"] = found.max_output_tokens
    found.told = {
        "temperature": data.get("temperature"),
        "top_p": data.get("top_p"),
        "parallel_tool_calls": _flag(data, "parallel_tool_calls", True),
        "top_logprobs": 0,
        **{key: _text(data, key) for key in _TEXTS},
        **_format(data.get("text"), found.chat),
        **_tools(data, found.chat),
    }
    if found.told["user"] is not None:
        found.chat["user"] = found.told["user"]
    return found


def numbered(ident: str) -> Callable[[str], str]:
    """Ids of items: by them the response is found to which an item belongs."""
    number = 0

    def named(prefix: str) -> str:
        nonlocal number
        number += 1
        return f"{prefix}_{ident}{number:04x}"

    return named


def response_of(item: str) -> str:
    """The id of the response that has this item, if there is one."""
    return f"resp_{item.rpartition('_')[2][:32]}"


def _parsed(body: bytes) -> dict[str, Any]:
    # a megabyte of empty lists is a hundred of memory
    if sum(map(body.count, (b"{", b"[", b","))) > _MOST_PARTS:
        raise Problem(400, "out_of_range", f"The body has more than {_MOST_PARTS} parts.")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "invalid_json", f"The body is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise Problem(400, "invalid_json", "The body must be a JSON object.")
    return data


def _there(data: dict[str, Any], key: str) -> Any:
    value = data.get(key)
    return _missing(key) if value is None else value


def _missing(key: str) -> Any:
    raise refused(key, f"{key} is missing.", "missing_required_parameter")


def _text(data: dict[str, Any], key: str, most: int | None = _LONGEST_NAME) -> str | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise refused(key, f"{key} must be a text.", "invalid_type")
    if most is not None and len(value) > most:
        raise refused(key, f"{key} has {len(value)} characters; at most {most} are taken.", "out_of_range")
    return value


def _flag(data: dict[str, Any], key: str, default: bool) -> bool:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise refused(key, f"{key} must be true or false.", "invalid_type")
    return value


def _choice(data: dict[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = data.get(key)
    if value is None:
        return default
    if value not in choices:
        raise refused(key, f"{key} must be one of {', '.join(choices)}.")
    return str(value)


def _tokens(data: dict[str, Any]) -> int | None:
    value = data.get("max_output_tokens")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise refused("max_output_tokens", "max_output_tokens must be a whole number, 1 or more.", "invalid_type")
    return value


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > 16:
        raise refused("metadata", "metadata must be an object of at most 16 texts.")
    for key, text in value.items():
        if len(key) > 64 or not isinstance(text, str) or len(text) > 512:
            raise refused("metadata", "metadata: keys have at most 64 characters, and values are texts of at most 512.")
    return value


def _format(value: Any, chat: dict[str, Any]) -> dict[str, Any]:
    """Of the text that is to come; told as it was asked for."""
    text = {} if value is None else value
    if not isinstance(text, dict):
        raise refused("text", "text must be an object.", "invalid_type")
    for key, one in text.items():
        if key != "format" and (key, one) != ("verbosity", "medium") and one is not None:
            raise refused(f"text.{key[:100]}", f"text.{key[:100]} is not offered here; leave it out.")
    form = text.get("format") or {"type": "text"}
    kind = form.get("type") if isinstance(form, dict) else None
    for key in form if isinstance(form, dict) else ():
        if key not in _FORMAT.get(str(kind), (key,)):
            raise refused(f"text.format.{key[:100]}", f"text.format.{key[:100]} is not offered here; leave it out.")
    if kind == "json_schema":
        if not isinstance(form.get("name"), str) or not isinstance(form.get("schema"), dict):
            raise refused("text.format", "text.format needs a name, which is a text, and a schema, which is an object.")
        schema = {key: form[key] for key in ("name", "schema", "strict", "description") if form.get(key) is not None}
        chat["response_format"] = {"type": kind, "json_schema": schema}
    elif kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind != "text":
        raise refused("text.format.type", "text.format.type must be one of text, json_schema, json_object.")
    return {"text": {"format": form, "verbosity": "medium"}}


def _tools(data: dict[str, Any], chat: dict[str, Any]) -> dict[str, Any]:
    tools = data.get("tools") or []
    if not isinstance(tools, list):
        raise refused("tools", "tools must be a list.", "invalid_type")
    asked = []
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise refused(f"{where}.type", f"{where} is of type {str(kind)[:100]!r}; only functions are offered here.")
        if not isinstance(tool.get("name"), str):
            raise refused(f"{where}.name", f"{where}.name must be a text.", "invalid_type")
        strange = next((key for key, one in tool.items() if key not in _FUNCTION and one is not None), None)
        if strange is not None:
            raise refused(where, f"{where}.{strange[:100]} is not offered here; leave it out.", "unsupported_parameter")
        function = {key: one for key, one in tool.items() if key != "type" and one is not None}
        asked.append({"type": "function", "function": function})
    choice = data.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        passed: Any = {"type": "function", "function": {"name": choice["name"]}}
    elif choice is None or choice in _CHOICES:
        passed = choice
    else:
        raise refused("tool_choice", f"tool_choice must be one of {', '.join(_CHOICES)}, or name a function.")
    if asked:
        chat["tools"] = asked
    if passed is not None and (asked or passed != "auto"):
        chat["tool_choice"] = passed
    if not asked:
        chat.pop("parallel_tool_calls", None)
    return {"tools": tools, "tool_choice": choice if choice is not None else "auto"}
