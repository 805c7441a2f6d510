"""Questions to a gateway, asked the way a client asks them, and what counts as an answer."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol

from .failure import FailedError
from .manifest import Manifest
from .services import Service
from .systemd import Systemd

QUESTION = "Say hello."
PAUSE = 0.2  # between two looks at a service that is starting
ANSWER = 60.0  # seconds that one short completion may take


class Prober(Protocol):
    """Each method returns what was proven, for the report, or raises FailedError."""

    def model(self, service: Service) -> dict[str, Any]: ...
    def trial(self, manifest: Manifest) -> dict[str, Any]: ...
    def gateway(self, manifest: Manifest, service: Service) -> dict[str, Any]: ...


class WrongError(FailedError):
    """An answer that waiting does not make right."""


class StrangerError(WrongError):
    """The gateway serves nobody whom it does not know, or has served this stranger enough."""


class Connection:
    """One connection kept for several questions, so that one process answers them all."""

    def __init__(self, port: int, key: str = "", host: str = "127.0.0.1", *, tls: bool = False) -> None:
        self._http = http.client.HTTPConnection(host, port, timeout=ANSWER)
        if tls:
            # the certificate names the host, and here is its own loopback: whoever listens there is known by the kernel
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._http = http.client.HTTPSConnection(host, port, timeout=ANSWER, context=context)
        self._key = key
        self.port = port

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def own_port(self) -> int:
        return int(self._http.sock.getsockname()[1]) if self._http.sock else 0

    def ask(self, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON object; anything else is a FailedError."""
        method = "GET" if body is None else "POST"
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            self._http.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._http.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise FailedError(f"{method} {path} on port {self.port}: {error or type(error).__name__}") from error
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise WrongError(f"{method} {path} on port {self.port} answered {response.status} with no JSON object")
        return response.status, value


def listed(connection: Connection) -> set[str]:
    """The models that a server names."""
    status, listing = connection.ask("/v1/models")
    if status != 200:
        raise _refused("the list of models", status, listing)
    return {str(entry.get("id")) for entry in listing.get("data", []) if isinstance(entry, dict)}


def answer(connection: Connection, model: str, task: str, **more: Any) -> dict[str, Any]:
    """One deterministic answer of a model; `more` goes into the question to one that chats."""
    begun = time.monotonic()
    if task == "embeddings":
        path = "/v1/embeddings"
        body: dict[str, Any] = {"model": model, "input": QUESTION}
    else:
        path = "/v1/chat/completions"
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, "seed": 0, **more}
    status, value = connection.ask(path, body)
    if status != 200:
        raise _refused(model, status, value)
    text = _sense(value, task)
    if text is None:
        raise WrongError(f"{model} on port {connection.port} answered nothing that can be read as an answer")
    return {"model": model, "seconds": round(time.monotonic() - begun, 3), "answer": text}


def own_answer(service: Service) -> dict[str, Any]:
    """What a model says on its own port, once it has its own name there."""
    with Connection(service.port) as connection:
        names = listed(connection)
        if service.served not in names:
            raise WrongError(
                f"port {service.port} serves {', '.join(sorted(names)) or 'nothing'} instead of {service.served}: "
                "another process has the port"
            )
        # a model may have nothing to add; one word shows that it can
        return answer(connection, service.served, service.task, min_tokens=1)


def _refused(what: str, status: int, value: dict[str, Any]) -> FailedError:
    error = value.get("error", value)
    said = str(error.get("message", error) if isinstance(error, dict) else error)[:200]
    text = f"{what}: {status}, {said}"
    if status in {401, 403, 429}:
        return StrangerError(text)
    # Not being ready passes; a client's error does not, however long one waits.
    return FailedError(text) if status in {502, 503, 504} else WrongError(text)


def _sense(value: dict[str, Any], task: str) -> str | None:
    """The text of an answer, or None if it is none: a wrong shape or nothing in it is no proof."""
    try:
        if task == "embeddings":
            vector = value["data"][0]["embedding"]
            return f"a vector of {len(vector)}" if any(float(number) for number in vector) else None
        text = value["choices"][0]["message"]["content"]
        tokens = int(value["usage"]["completion_tokens"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return text if isinstance(text, str) and text.strip() and tokens > 0 else None


def await_proof(
    systemd: Systemd,
    service: Service,
    prove: Callable[[], dict[str, Any]],
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Ask until the proof succeeds, the unit is dead, the answer is wrong, or the time is over."""
    begun, before = clock(), systemd.show(service.unit).restarts
    while True:
        state = systemd.show(service.unit)
        try:
            if state.given_up:
                raise WrongError(f"{service.unit} is {state}")
            if state.restarts > before:
                raise WrongError(f"{service.unit} died and was started again")
            return prove()
        except FailedError as error:
            if isinstance(error, WrongError) or clock() - begun > service.timeout:
                late = "" if isinstance(error, WrongError) else f" after {service.timeout:.0f} s"
                words = " | ".join(line.strip() for line in systemd.log(service.unit, 15) if line.strip())[-2000:]
                raise FailedError(f"{service.unit} is not proven{late}: {error}. Its last words: {words}") from error
        pause(PAUSE)
