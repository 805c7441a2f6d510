"""Items of a conversation: as clients send them, as they are kept, and as a model gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from citadel_companion.services import Problem

Item = dict[str, Any]

MOST_ITEMS = 2000
_AROUND = 16  # characters, for what a template puts around an item
_ROLES = ("user", "system", "developer", "assistant")
_MESSAGE = ("type", "id", "role", "content", "status", "phase")
_CALL = ("type", "id", "call_id", "name", "arguments", "status", "created_by")
_OUTPUT = ("type", "id", "call_id", "output", "status", "created_by")
_PARTS = {
    "input_text": ("type", "text"),
    "output_text": ("type", "text", "annotations", "logprobs"),
    "refusal": ("type", "refusal"),
    "input_image": ("type", "image_url", "detail"),
}
_DETAILS = ("auto", "low", "high")
_OF_ASSISTANT = ("output_text", "refusal", "input_text")


def refused(where: str, message: str, code: str = "invalid_value") -> Problem:
    return Problem(400, code, message, where)


def given(value: Any, named: Callable[[str], str]) -> list[Item]:
    """What a request has as its input. `named` makes the id of the next one, by a prefix; references stay what they
    are."""
    if isinstance(value, str):
        return [_message_of("user", [{"type": "input_text", "text": value}], named)]
    if not isinstance(value, list):
        raise refused("input", "input must be a text or a list of items.", "invalid_type")
    if not value:
        raise refused("input", "input must not be empty.", "empty_array")
    if len(value) > MOST_ITEMS:
        raise refused("input", f"input has {len(value)} items; at most {MOST_ITEMS} are taken.", "out_of_range")
    return [_item(one, f"input[{number}]", named) for number, one in enumerate(value)]


def _item(one: Any, where: str, named: Callable[[str], str]) -> Item:
    if not isinstance(one, dict):
        raise refused(where, f"{where} must be an object.", "invalid_type")
    kind = one.get("type")
    if kind is None:
        kind = "message" if "role" in one else "item_reference"
    if kind == "message":
        return _message(one, where, named)
    if kind == "function_call":
        _only(one, _CALL, where)
        told = {key: _text(one, key, where) for key in ("call_id", "name", "arguments")}
        return {"id": named("fc"), "type": kind, **told, "status": "completed"}
    if kind == "function_call_output":
        _only(one, _OUTPUT, where)
        output = one.get("output")
        if isinstance(output, list):
            output = [_part(part, f"{where}.output[{at}]", ("input_text",)) for at, part in enumerate(output)]
        elif not isinstance(output, str):
            raise refused(f"{where}.output", f"{where}.output must be a text or a list of parts.", "invalid_type")
        call = _text(one, "call_id", where)
        return {"id": named("fco"), "type": kind, "call_id": call, "output": output, "status": "completed"}
    if kind == "item_reference":
        _only(one, ("type", "id"), where)
        return {"type": kind, "id": _text(one, "id", where)}
    raise refused(
        f"{where}.type",
        f"{where} is of type {str(kind)[:100]!r}; message, function_call, function_call_output and item_reference are "
        "taken.",
    )


def _message(one: dict[str, Any], where: str, named: Callable[[str], str]) -> Item:
    _only(one, _MESSAGE, where)
    role = one.get("role")
    if role not in _ROLES:
        raise refused(f"{where}.role", f"{where}.role must be one of {', '.join(_ROLES)}.")
    content = one.get("content")
    if isinstance(content, str):
        content = [{"type": "input_text", "text": content}]
    elif not isinstance(content, list) or not content:
        raise refused(f"{where}.content", f"{where}.content must be a text or a list of parts.", "invalid_type")
    taken = _OF_ASSISTANT if role == "assistant" else ("input_text", "input_image")
    return _message_of(role, [_part(part, f"{where}.content[{at}]", taken) for at, part in enumerate(content)], named)


def _message_of(role: str, content: list[Item], named: Callable[[str], str]) -> Item:
    if role == "assistant":
        content = [part if part["type"] == "refusal" else text_part(part["text"]) for part in content]
    return {"id": named("msg"), "type": "message", "role": role, "status": "completed", "content": content}


def text_part(text: str) -> Item:
    """What a model has said."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _part(part: Any, where: str, taken: Sequence[str]) -> Item:
    kind = str(part.get("type")) if isinstance(part, dict) else ""
    if kind not in taken:
        raise refused(f"{where}.type", f"{where} must be an object of type {' or '.join(taken)}.")
    _only(part, _PARTS[kind], where)
    if kind == "input_image":
        detail = part.get("detail") or "auto"
        if detail not in _DETAILS:
            raise refused(f"{where}.detail", f"{where}.detail must be one of {', '.join(_DETAILS)}.")
        return {"type": kind, "image_url": _text(part, "image_url", where), "detail": detail}
    key = "refusal" if kind == "refusal" else "text"
    return {"type": kind, key: _text(part, key, where)}


def _only(one: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key, value in one.items():
        if key not in known and value is not None:
            name = f"{where}.{key[:100]}"
            raise refused(name, f"{name} is not offered here; leave it out.", "unsupported_parameter")


def _text(one: dict[str, Any], key: str, where: str) -> str:
    value = one.get(key)
    if not isinstance(value, str):
        raise refused(f"{where}.{key}", f"{where}.{key} must be a text.", "invalid_type")
    return value


def check_pairs(items: Sequence[Item]) -> None:
    """Every call has its output somewhere behind it, and every output its call before it, as OpenAI's API wants it."""
    open_calls: dict[str, None] = {}
    called: set[str] = set()
    for one in items:
        if one["type"] == "function_call":
            called.add(one["call_id"])
            open_calls[one["call_id"]] = None
        elif one["type"] == "function_call_output":
            call = one["call_id"]
            if call not in called:
                raise refused("input", f"No tool call found for function call output with call_id {call[:100]}.")
            open_calls.pop(call, None)
    for call in open_calls:
        raise refused("input", f"No tool output found for function call {call[:100]}.")


def messages(instructions: str | None, items: Sequence[Item]) -> list[dict[str, Any]]:
    """As `/v1/chat/completions` takes them. What a system says at the beginning is one message: many templates take no
    second one."""
    found: list[dict[str, Any]] = []
    if instructions:
        found.append({"role": "system", "content": instructions})
    for one in items:
        last = found[-1] if found else {}
        if one["type"] == "function_call":
            call = {"name": one["name"], "arguments": one["arguments"]}
            if last.get("role") != "assistant":
                last = {"role": "assistant", "content": None}
                found.append(last)
            last.setdefault("tool_calls", []).append({"id": one["call_id"], "type": "function", "function": call})
        elif one["type"] == "function_call_output":
            output = one["output"]
            if isinstance(output, list):
                output = "".join(part["text"] for part in output)
            found.append({"role": "tool", "tool_call_id": one["call_id"], "content": output})
        elif one["role"] == "assistant":
            text = "".join(part.get("text") or part.get("refusal", "") for part in one["content"])
            found.append({"role": "assistant", "content": text})
        elif one["role"] == "user":
            found.append({"role": "user", "content": _content(one["content"])})
        else:
            text = "\n".join(part["text"] for part in one["content"] if part["type"] == "input_text")
            if len(found) == 1 and last["role"] == "system":
                last["content"] += f"\n\n{text}"
            else:
                found.append({"role": "system", "content": text})
    return found


def _content(parts: Sequence[Item]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and parts[0]["type"] == "input_text":
        return str(parts[0]["text"])
    return [
        {"type": "text", "text": part["text"]}
        if part["type"] == "input_text"
        else {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part["detail"]}}
        for part in parts
    ]


def characters(one: Item) -> int:
    """Of what a model reads of it, and of what its template puts around; an image counts for nothing, since its tokens
    do not follow from its size."""
    return _AROUND + _characters(one)


def _characters(one: Item) -> int:
    if one["type"] == "message":
        return sum(len(part.get("text") or part.get("refusal") or "") for part in one["content"])
    if one["type"] == "function_call":
        return len(one["name"]) + len(one["arguments"])
    output = one["output"]
    return len(output) if isinstance(output, str) else sum(len(part["text"]) for part in output)
