"""Proof that a service does its work: a real question, asked the way a client asks it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .failure import FailedError
from .manifest import Manifest
from .services import Service
from .systemd import Systemd

QUESTION = "Say hello."
PAUSE = 0.2  # between two looks at a service that is loading


class Prober(Protocol):
    """Each method returns what was proven, for the report, or raises FailedError."""

    def model(self, service: Service) -> dict[str, Any]: ...
    def gateway(self, manifest: Manifest, service: Service) -> dict[str, Any]: ...
    def trial(self, manifest: Manifest, release: Path) -> dict[str, Any]: ...


def ask(
    port: int, path: str, body: Any = None, *, timeout: float = 10.0, key: str = "", host: str = "127.0.0.1"
) -> tuple[int, dict[str, str], Any]:
    """One request; the answer's status, headers and JSON. Anything that is no JSON object is a
    FailedError."""
    method = "GET" if body is None else "POST"
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    headers = {"Content-Type": "application/json", "X-Citadel-Probe": "release"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise FailedError(f"{method} {path} on port {port}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise FailedError(
            f"{method} {path} on port {port} answered {response.status} with something that is no JSON object"
        )
    return response.status, {name.lower(): content for name, content in response.getheaders()}, value


def prove_model(port: int, served: str, task: str, timeout: float, key: str = "") -> dict[str, Any]:
    """The served name and one deterministic answer."""
    status, _, listing = ask(port, "/v1/models", timeout=timeout, key=key)
    names = [str(entry.get("id")) for entry in listing.get("data", []) if isinstance(entry, dict)]
    if status != 200 or served not in names:
        raise FailedError(f"port {port} serves {', '.join(names) or 'nothing'} ({status}), not {served}")
    return prove_answer(port, served, task, timeout, key)


def prove_answer(port: int, served: str, task: str, timeout: float, key: str = "") -> dict[str, Any]:
    begun = time.monotonic()
    if task == "embeddings":
        path = "/v1/embeddings"
        body: dict[str, Any] = {"model": served, "input": QUESTION}
    else:
        path = "/v1/chat/completions"
        body = {
            "model": served,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 8,
            "temperature": 0,
            "seed": 0,
        }
    status, headers, answer = ask(port, path, body, timeout=timeout, key=key)
    if status != 200:
        raise FailedError(f"{served} on port {port} answered {status}: {_message(answer)}")
    text = _sense(answer, task)
    if text is None:
        raise FailedError(f"{served} on port {port} answered 200, but with nothing that can be read as an answer")
    return {
        "model": served,
        "port": port,
        "seconds": round(time.monotonic() - begun, 3),
        "answer": text,
        "release": headers.get("x-citadel-release", ""),
    }


def _message(answer: dict[str, Any]) -> str:
    error = answer.get("error", answer)
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def _sense(answer: dict[str, Any], task: str) -> str | None:
    """The text of an answer, or None if it is none: a wrong shape or nothing in it is no proof."""
    try:
        if task == "embeddings":
            vector = answer["data"][0]["embedding"]
            return f"a vector of {len(vector)}" if any(float(value) for value in vector) else None
        text = answer["choices"][0]["message"]["content"]
        tokens = int(answer["usage"]["completion_tokens"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return text if isinstance(text, str) and text.strip() and tokens > 0 else None


def await_ready(
    systemd: Systemd,
    service: Service,
    prove: Callable[[], dict[str, Any]],
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Wait for a proof as long as the unit lives and its time lasts; a crash is reported as soon as it shows.
    Wait for a proof as long as the unit lives and its time lasts; a crash is reported as soon as it shows."""
    begun = clock()
    while True:
        state = systemd.show(service.unit)
        if state.given_up:
            raise FailedError(
                f"{service.unit} is {state.active} ({state.sub}). Its last words: {_last(systemd, service.unit)}"
            )
        try:
            return prove()
        except FailedError as error:
            if clock() - begun > service.timeout:
                raise FailedError(
                    f"{service.unit} was not ready after {service.timeout:.0f} s: {error}. "
                    f"Its last words: {_last(systemd, service.unit)}"
                ) from error
        pause(PAUSE)


def _last(systemd: Systemd, unit: str) -> str:
    return " | ".join(line.strip() for line in systemd.log(unit, 5) if line.strip())[-600:] or "none"
