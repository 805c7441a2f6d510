"""What a model says, as output of a response: the items, and the events by which a client sees them come."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from citadel_companion.responses.items import Item, text_part

Event = dict[str, Any]

_MOST_HELD = 8 * 1024 * 1024  # of one event


class BrokenError(Exception):
    """The model's answer ends before its end, and this is why."""


class Answer:
    """Chunks of a chat go in, events come out; what is whole already is one chunk."""

    def __init__(self, response: dict[str, Any], named: Callable[[str], str]) -> None:
        self.response = response
        self._named = named
        self._number = 0
        self._open: Item = {}  # the item that grows
        self._call: Any = None  # by what the model calls the tool's call that is open
        self._finish: str | None = None

    def begin(self) -> list[Event]:
        return [self._of_response("response.created"), self._of_response("response.in_progress")]

    def feed(self, chunk: dict[str, Any]) -> list[Event]:
        if isinstance(chunk.get("usage"), dict):
            self.response["usage"] = _usage(chunk["usage"])
        choices = chunk.get("choices")
        if not choices:
            return []
        choice = choices[0]
        said = choice.get("delta") or choice.get("message") or {}
        found: list[Event] = []
        if said.get("content"):
            found += self._text(said["content"])
        for number, call in enumerate(said.get("tool_calls") or ()):
            found += self._tool(call, call.get("index", number))
        self._finish = choice.get("finish_reason") or self._finish
        return found

    def end(self) -> list[Event]:
        """All has come; the last event is to be told when the response is kept."""
        if self._finish is None:
            raise BrokenError("The model's answer broke off.")
        found = [] if self.response["output"] else self._text("")
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self._finish)
        status = "completed" if reason is None else "incomplete"
        found += self._close(status)
        self.response["status"] = status
        self.response["completed_at"] = int(time.time()) if reason is None else None
        self.response["incomplete_details"] = {"reason": reason} if reason is not None else None
        return found

    def fail(self, message: str) -> None:
        if self._open:
            self._open["status"] = "incomplete"
            self._open = {}
        self.response["status"] = "failed"
        self.response["completed_at"] = None
        self.response["error"] = {"code": "server_error", "message": message}

    def last(self) -> Event:
        return self._of_response(f"response.{self.response['status']}")

    # pieces

    def _of_response(self, kind: str) -> Event:
        return self._event(kind, response=orjson.loads(orjson.dumps(self.response)))

    def _event(self, kind: str, **told: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **told}
        self._number += 1
        return event

    def _of_item(self, kind: str, **told: Any) -> Event:
        at = len(self.response["output"]) - 1
        return self._event(kind, item_id=self._open["id"], output_index=at, **told)

    def _text(self, text: str) -> list[Event]:
        found: list[Event] = []
        if self._open.get("type") != "message":
            found += self._close()
            item = {"id": self._named("msg"), "type": "message", "status": "in_progress", "role": "assistant"}
            found += self._begin({**item, "content": []})
            self._open["content"].append(text_part(""))
            found.append(self._of_item("response.content_part.added", content_index=0, part=text_part("")))
        if text:
            self._open["content"][0]["text"] += text
            found.append(self._of_item("response.output_text.delta", content_index=0, delta=text, logprobs=[]))
        return found

    def _tool(self, call: dict[str, Any], index: Any) -> list[Event]:
        found: list[Event] = []
        function = call.get("function") or {}
        if self._open.get("type") != "function_call" or self._call != index:
            found += self._close()
            ident = self._named("fc")
            item = {
                "id": ident,
                "type": "function_call",
                "status": "in_progress",
                "call_id": call.get("id") or f"call_{ident.removeprefix('fc_')}",
                "name": function.get("name") or "",
                "arguments": "",
            }
            found += self._begin(item)
            self._call = index
        arguments = function.get("arguments")
        if arguments:
            self._open["arguments"] += arguments
            found.append(self._of_item("response.function_call_arguments.delta", delta=arguments))
        return found

    def _begin(self, item: Item) -> list[Event]:
        self._open = item
        self.response["output"].append(item)
        at = len(self.response["output"]) - 1
        return [self._event("response.output_item.added", output_index=at, item=_copy(item))]

    def _close(self, status: str = "completed") -> list[Event]:
        item = self._open
        if not item:
            return []
        item["status"] = status
        if item["type"] == "message":
            part = dict(item["content"][0])
            found = [
                self._of_item("response.output_text.done", content_index=0, text=part["text"], logprobs=[]),
                self._of_item("response.content_part.done", content_index=0, part=part),
            ]
        else:
            whole = {"name": item["name"], "arguments": item["arguments"]}
            found = [self._of_item("response.function_call_arguments.done", **whole)]
        at = len(self.response["output"]) - 1
        found.append(self._event("response.output_item.done", output_index=at, item=_copy(item)))
        self._open = {}
        return found


def _copy(item: Item) -> Item:
    return {**item, "content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)


def _usage(told: dict[str, Any]) -> dict[str, Any]:
    given, made = told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (told.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": given + made,
    }


def encoded(events: list[Event]) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (one["type"].encode(), orjson.dumps(one)) for one in events])


async def chunks(pieces: AsyncIterator[bytes]) -> AsyncIterator[list[dict[str, Any]]]:
    """Of a chat that is streamed: those that have come whole, together."""
    held = b""
    async for piece in pieces:
        held += piece
        if len(held) > _MOST_HELD:
            raise BrokenError("The model's answer has an event that is too long.")
        *blocks, held = held.replace(b"\r\n", b"\n").split(b"\n\n")
        found = []
        for block in blocks:
            data = block.removeprefix(b"data:").strip()
            if not block.startswith(b"data:") or data == b"[DONE]":
                continue
            found.append(read(data))
        if found:
            yield found


def read(data: bytes) -> dict[str, Any]:
    """A chunk, or a whole answer."""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BrokenError("The model's answer is not JSON.") from None
    if not isinstance(chunk, dict):
        raise BrokenError("The model's answer is no object.")
    if "error" in chunk:
        error = chunk["error"]
        raise BrokenError(str(error.get("message") if isinstance(error, dict) else error)[:1000])
    return chunk
