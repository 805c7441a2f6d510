"""The OpenAPI document of the clients' side, and the page that shows it: made once, after the start.

What the document admits is not refused for its shape, and whatever is answered has its content type here.
"""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from citadel_gateway import __version__
from citadel_gateway.endpoints import ENDPOINTS
from citadel_gateway.exchange import header_lines
from citadel_gateway.page import CONTENT_SECURITY_POLICY, page

Pages = dict[str, tuple[bytes, bytes]]  # path -> headers and content


class _Open(BaseModel):
    """Whatever else vLLM accepts is passed on untouched."""

    model_config = ConfigDict(extra="allow")


class Message(_Open):
    role: str = Field(examples=["user"])
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(_Open):
    include_usage: bool | None = None


_Count = Annotated[int, Field(ge=0)]


class _Generation(_Open):
    model: str | None = Field(default=None, description="left out or 'auto': the gateway chooses")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = Field(default=None, description="at most the model's context, with the prompt")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)


class ChatRequest(_Generation):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: _Count | None = None


_Tokens = Annotated[list[_Count], Field(min_length=1)]


class CompletionRequest(_Generation):
    prompt: str | _Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[_Tokens], Field(min_length=1)]


_Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(_Open):
    model: str | None = None
    input: _Text | _Tokens | Annotated[list[_Text], Field(min_length=1)] | Annotated[list[_Tokens], Field(min_length=1)]
    stream: Annotated[bool | None, Field(json_schema_extra={"enum": [False, None]})] = None


_REQUESTS: dict[str, type[BaseModel]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingRequest,
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    error: ErrorDetail


class Answer(_Open):
    """As vLLM gives it; with `stream` it is a text/event-stream of such objects that ends with [DONE]."""


class ModelCard(_Open):
    id: str
    object: str
    max_model_len: int
    capabilities: list[str]
    endpoints: list[str]
    status: str


class ModelList(BaseModel):
    object: str
    data: list[ModelCard]


class HealthReport(_Open):
    status: str
    models: dict[str, Any]


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text}
    for status, text in (
        (400, "not understood, or longer than the model's context"),
        (401, "no valid API key"),
        (403, "not allowed for this key"),
        (404, "no such model"),
        (408, "the body came too slowly"),
        (413, "larger than the gateway takes"),
        (422, "a parameter is out of range"),
        (429, "a limit is reached; see retry-after-ms"),
        (503, "not ready or too busy; see retry-after-ms"),
        (504, "no answer in time"),
    )
}


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with `stream` the events of it",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def pages() -> Pages:
    document = documents().openapi()
    policy = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
    return {
        "/openapi.json": (header_lines((b"content-type", b"application/json")), orjson.dumps(document)),
        "/docs": (header_lines((b"content-type", b"text/html; charset=utf-8"), policy), page(document).encode()),
    }


def documents() -> FastAPI:
    app = FastAPI(
        title="Citadel gateway",
        version=__version__,
        description="OpenAI's API in front of this host's models.",
        openapi_tags=[{"name": "models"}, {"name": "health"}],
    )

    async def never() -> None:
        """Only the document is used; see front.py for what is served."""

    def operation(path: str, request: Any, summary: str, also: dict[int | str, dict[str, Any]]) -> None:
        async def endpoint(body: Any) -> None: ...

        endpoint.__annotations__ = {"body": request, "return": None}
        app.post(path, response_model=Answer, responses=_ERRORS | also, tags=["models"], summary=summary)(endpoint)

    for name, endpoint in ENDPOINTS.items():
        operation(endpoint.path, _REQUESTS[name], endpoint.summary, _STREAM if endpoint.generates else {})
    errors: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 404)}
    app.get("/v1/models", response_model=ModelList, responses={401: _ERRORS[401]}, tags=["models"])(never)

    async def one(model_id: str) -> None: ...

    app.get("/v1/models/{model_id:path}", response_model=ModelCard, responses=errors, tags=["models"])(one)
    unhealthy: dict[int | str, dict[str, Any]] = {503: {"model": HealthReport, "description": "no model is ready"}}
    app.get("/health", response_model=HealthReport, responses=unhealthy, tags=["health"])(never)
    app.get("/health/detailed", response_model=HealthReport, responses=unhealthy, tags=["health"])(never)
    guarded: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 403)}
    app.get("/metrics", response_class=PlainTextResponse, responses=guarded, tags=["health"])(never)
    return app
