"""Server-sent events as they pass: whole events only, usage taken out of the tail.

A client gets an event when it is complete, so that a cut or a failure never falls inside a character or a JSON
text. Nothing but the search for a few bytes is done to the usual event.
"""

from __future__ import annotations

import re

ERROR_EVENT = b'data: {"error"'
_MOST_HELD = 1024 * 1024
_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d+)')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_USAGE = b'"usage"'
_USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*\{').match


class Usage:
    __slots__ = ("cached", "completion", "prompt")

    def __init__(self, prompt: int, completion: int, cached: int) -> None:
        self.prompt = prompt
        self.completion = completion
        self.cached = cached


def find_usage(data: bytes) -> Usage | None:
    """The usage object nearest to the end. A text inside JSON cannot look like it, since its quotes are escaped; a
    token that reads so can, but has no object after it."""
    at = data.rfind(_USAGE)
    while at >= 0:
        if _USAGE_OBJECT(data, at) is not None:
            prompt = _PROMPT.search(data, at)
            if prompt is None:
                return None
            completion = _COMPLETION.search(data, at)
            cached = _CACHED.search(data, at)
            return Usage(int(prompt[1]), int(completion[1]) if completion else 0, int(cached[1]) if cached else 0)
        at = data.rfind(_USAGE, 0, at)
    return None


def event_data(event: bytes) -> bytes:
    """What stands behind `data: `."""
    return event[6:].partition(b"\n")[0]


class EventStream:
    __slots__ = ("_held", "_strip", "done", "events", "failed", "failure", "usage")

    def __init__(self, strip_usage: bool) -> None:
        self._strip = strip_usage
        self._held = b""
        self.events = 0
        self.done = False
        self.failed = False  # the model server itself sent an error event
        self.failure = b""
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """The events that are complete now."""
        if self._held:
            data = self._held + data
            self._held = b""
        if not data.endswith(b"\n\n"):
            end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
            if end < 4 and len(data) <= _MOST_HELD:
                self._held = data
                return b""
            if end >= 4:
                data, self._held = data[:end], data[end:]
        self.events += data.count(b"data:")
        if _USAGE in data:
            data = self._without_usage(data)
        if data.endswith((b"data: [DONE]\n\n", b"data: [DONE]\r\n\r\n")):
            self.done = True
            self.events -= 1
        if ERROR_EVENT in data:
            self.failed = True
            self.failure = event_data(data[data.index(ERROR_EVENT) :])
        return data

    def _without_usage(self, data: bytes) -> bytes:
        if not data.endswith(b"\n\n"):
            self.usage = find_usage(data) or self.usage
            return data
        kept = []
        for event in data.split(b"\n\n")[:-1]:
            found = find_usage(event)
            if found is not None:
                self.usage = found
                if _NO_CHOICES.search(event):
                    self.events -= 1
                    if self._strip:
                        continue
            kept.append(event + b"\n\n")
        return b"".join(kept)
