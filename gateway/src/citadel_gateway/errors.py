"""How the gateway says no: one exception, one shape of answer, the codes in one place."""

from __future__ import annotations

import math

import orjson

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    501: "invalid_request_error",
    504: "timeout_error",
    505: "invalid_request_error",
}


class Refusal(Exception):
    """A request ends here, and the client is told why.

    `retry_after` is in seconds and honest: None means that waiting does not help. `allow` is what a path does take.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.allow = allow

    def body(self) -> bytes:
        return error_body(self.status, self.code, self.message, self.param)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the OpenAI SDKs read: whether to come again, and when."""
        if self.allow is not None:
            return [(b"x-should-retry", b"false"), (b"allow", self.allow.encode())]
        if self.status == 401:
            return [(b"x-should-retry", b"false"), (b"www-authenticate", b"Bearer")]
        if self.retry_after is None:
            return [(b"x-should-retry", b"false")]
        wait = max(self.retry_after, 0.001)
        return [
            (b"x-should-retry", b"true"),
            (b"retry-after-ms", b"%d" % math.ceil(wait * 1000)),
            (b"retry-after", b"%d" % math.ceil(wait)),
        ]


def error_type(status: int) -> str:
    return _TYPES.get(status, "server_error")


def error_body(status: int, code: str, message: str, param: str | None = None) -> bytes:
    error = {"message": message, "type": error_type(status), "param": param, "code": code}
    return orjson.dumps({"error": error})


def error_event(status: int, code: str, message: str) -> bytes:
    """The same as an event of a stream that has begun; the SDKs raise it as an APIError."""
    return b"data: " + error_body(status, code, message) + b"\n\n"
