"""What can be asked of a model: each endpoint is declared here, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Endpoint:
    name: str  # in the configuration
    path: str  # here and at the model server
    given: str  # the parameter that carries the prompt
    generates: bool  # text, so that it can be streamed and has a length
    summary: str


ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint("chat", "/v1/chat/completions", "messages", True, "Chat"),
        Endpoint("completions", "/v1/completions", "prompt", True, "Completion of a text"),
        Endpoint("embeddings", "/v1/embeddings", "input", False, "Embeddings"),
    )
}
