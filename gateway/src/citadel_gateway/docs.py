"""The OpenAPI document of the clients' side. The requests themselves never come here: see front.py and walk.py."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from citadel_gateway import __version__


class _Open(BaseModel):
    """Whatever else vLLM accepts is passed on untouched."""

    model_config = ConfigDict(extra="allow")


class Message(_Open):
    role: str = Field(examples=["user"])
    content: str | list[dict[str, Any]] | None = None


class _Generation(_Open):
    model: str | None = Field(default=None, description="left out or 'auto': the gateway chooses")
    stream: bool | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = None
    top_p: float | None = None


class ChatRequest(_Generation):
    messages: list[Message] = Field(min_length=1)


class CompletionRequest(_Generation):
    prompt: str | list[Any]


class EmbeddingRequest(_Open):
    model: str | None = None
    input: str | list[Any]


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


def documents() -> FastAPI:
    app = FastAPI(
        title="Citadel gateway",
        version=__version__,
        description="OpenAI's API in front of this host's models.",
        openapi_tags=[{"name": "models"}, {"name": "health"}],
    )

    async def never() -> None:
        """The document's operations are served before they could come here."""

    def operation(path: str, request: Any, summary: str) -> None:
        async def endpoint(body: Any) -> None: ...

        endpoint.__annotations__ = {"body": request, "return": None}
        app.post(path, response_model=Answer, responses=_ERRORS, tags=["models"], summary=summary)(endpoint)

    operation("/v1/chat/completions", ChatRequest, "Chat")
    operation("/v1/completions", CompletionRequest, "Completion of a text")
    operation("/v1/embeddings", EmbeddingRequest, "Embeddings")
    errors: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 404)}
    app.get("/v1/models", response_model=ModelList, responses={401: _ERRORS[401]}, tags=["models"])(never)

    async def one(model_id: str) -> None: ...

    app.get("/v1/models/{model_id:path}", response_model=ModelCard, responses=errors, tags=["models"])(one)
    unhealthy: dict[int | str, dict[str, Any]] = {503: {"model": HealthReport, "description": "no model is ready"}}
    app.get("/health", response_model=HealthReport, responses=unhealthy, tags=["health"])(never)
    app.get("/health/detailed", response_model=HealthReport, responses=unhealthy, tags=["health"])(never)
    app.get("/metrics", tags=["health"])(never)
    return app
