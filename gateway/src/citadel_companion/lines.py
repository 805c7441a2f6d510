"""The lines of a batch's input: requests, or what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import orjson

_CHUNK = 1024 * 1024
_MOST_ID = 512  # characters of a custom_id


class Line(NamedTuple):
    number: int  # in the file, from 1
    offset: int
    content: bytes | None  # None: longer than a line may be


class Asked(NamedTuple):
    custom_id: str
    body: dict[str, Any]


class LineError(Exception):
    """This line is no request; what is known of its id goes with it."""

    def __init__(self, code: str, message: str, param: str | None = None, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.custom_id = code, message, param, custom_id


def lines_of(file: IO[bytes], most: int) -> Iterator[Line]:
    """Those that are not blank."""
    number = offset = 0
    while content := file.readline(most + 1):
        number += 1
        length = len(content)
        whole = length <= most or content.endswith(b"\n")
        if not whole:
            while rest := file.readline(_CHUNK):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
        if not whole or content.strip():
            yield Line(number, offset, content if whole else None)
        offset += length


def line_at(file: IO[bytes], offset: int) -> bytes:
    file.seek(offset)
    return file.readline()


def asked(content: bytes, endpoint: str) -> Asked:
    try:
        told = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise LineError("invalid_json_line", f"This line is no JSON: {error}.") from None
    if not isinstance(told, dict):
        raise LineError("invalid_request", "This line is JSON, but no object.")
    custom_id = told.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MOST_ID:
        raise LineError("invalid_custom_id", f"custom_id is a text of 1 to {_MOST_ID} characters.", "custom_id")
    body = told.get("body")

    def wrong(code: str, message: str, param: str) -> LineError:
        return LineError(code, message, param, custom_id)

    if told.get("method") != "POST":
        raise wrong("invalid_method", "method is POST.", "method")
    if told.get("url") != endpoint:
        raise wrong("mismatched_endpoint", f"url is the batch's endpoint, {endpoint}.", "url")
    if not isinstance(body, dict):
        raise wrong("invalid_body", "body is an object: what a POST to that url would send.", "body")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise wrong("missing_model", "body.model names a model.", "body.model")
    if body.get("stream"):
        raise wrong(
            "unsupported_value", "A request of a batch cannot be a stream: leave out body.stream.", "body.stream"
        )
    return Asked(custom_id, body)
