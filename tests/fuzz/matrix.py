"""Ask a gateway one strange thing after the other, and say what is wrong with its answers.

Each answer is 200 or a 4xx that helps. It is the same for the simulator and for real vLLM.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.gateway.parameters import BASES, PATHS, Case, Outcome, cases

_PATIENCE = 180.0


@dataclass(frozen=True)
class Target:
    address: str
    port: int = 8000
    key: str | None = None

    def send(self, path: str, body: Any) -> tuple[int, str]:
        """Status and text of the answer; waits where the limits say so, as a client does."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        deadline = time.monotonic() + _PATIENCE
        while True:
            connection = http.client.HTTPConnection(self.address, self.port, timeout=_PATIENCE)
            try:
                connection.request("POST", path, content, headers)
                answer = connection.getresponse()
                text = answer.read().decode("utf-8", "replace")
                wait = float(answer.headers.get("retry-after-ms") or 0) / 1000
            except (OSError, http.client.HTTPException) as error:
                return 0, repr(error)
            finally:
                connection.close()
            if answer.status != 429 or time.monotonic() + wait > deadline:
                return answer.status, text
            time.sleep(max(wait, 0.05))


def complaint(outcome: Outcome, status: int, text: str, *, stream: bool) -> str | None:
    if status == 200:
        if outcome == "refused":
            return "200, and should have been refused"
        if stream and "data: [DONE]" not in text:
            return f"a stream without its end: {text[-200:]!r}"
        if stream and text.startswith('data: {"error"'):
            return f"an error that should have been the status: {text[:300]!r}"
        # what vLLM finds only after its first token it tells as an event; that hurts nobody but who asked for it
        if stream and outcome != "either" and 'data: {"error"' in text:
            return f"an error in the stream: {text[-300:]!r}"
        return None
    if not 400 <= status < 500:
        return f"{status} {text[:300]}"
    if outcome == "answered":
        return f"{status}, and should have been answered: {text[:300]}"
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{status} without an error in it: {text[:200]}"
    return None if isinstance(error, dict) and error.get("message") else f"{status} that does not help: {text[:200]}"


@dataclass(frozen=True)
class Shot:
    name: str
    path: str
    body: Any
    outcome: Outcome
    stream: bool = False

    def fire(self, target: Target) -> str | None:
        status, text = target.send(self.path, self.body)
        wrong = complaint(self.outcome, status, text, stream=self.stream and status == 200)
        return f"{self.name}: {wrong}" if wrong else None


def shots(model: str, endpoints: tuple[str, ...], *, share: float = 1.0, seed: int = 1) -> Iterator[Shot]:
    """Each value whole and streamed; `share` of them, by chance, where time is short."""
    chance = random.Random(seed)
    for case in cases(endpoints):
        for stream in (False,) if case.endpoint == "embeddings" or case.parameter == "stream" else (False, True):
            if chance.random() >= share:
                continue
            yield _shot(case, model, stream=stream)


def _shot(case: Case, model: str, *, stream: bool) -> Shot:
    body = case.body(stream=stream, **({} if case.parameter == "model" else {"model": model}))
    how = "streamed" if stream else "whole"
    return Shot(
        f"{model}, {how}, {case.name}", PATHS[case.endpoint], body, case.outcome, bool(body.get("stream") is True)
    )


def random_shots(model: str, endpoints: tuple[str, ...], seed: int) -> Iterator[Shot]:
    """Several parameters at once, and texts that are hardly JSON any more, without end."""
    chance = random.Random(seed)
    pool = {endpoint: list(cases((endpoint,))) for endpoint in endpoints}
    while True:
        endpoint = chance.choice(endpoints)
        body: dict[str, Any] = {**BASES[endpoint], "model": model}
        chosen = chance.sample(pool[endpoint], chance.randint(1, 4))
        for case in chosen:
            body.update({**case.beside, case.parameter: case.value})
        if endpoint != "embeddings" and chance.random() < 0.5:
            body["stream"] = True
        content: Any = body
        name = " + ".join(case.name for case in chosen)
        if chance.random() < 0.1:
            raw = bytearray(json.dumps(body).encode())
            for _ in range(chance.randint(1, 5)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            content, name = bytes(raw), f"spoilt: {name}"
        yield Shot(f"{model}, {name}", PATHS[endpoint], content, "either", body.get("stream") is True)


def fire_all(target: Target, what: Iterable[Shot], *, at_once: int = 4) -> tuple[int, list[str]]:
    """How many were fired, and every complaint."""
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda shot: shot.fire(target), what))
    return len(answers), [wrong for wrong in answers if wrong]


class Innocent:
    """Asks without pause; keeps every answer that is not 200."""

    def __init__(self, target: Target, model: str) -> None:
        self._target, self._model = target, model
        self.asked = 0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        question = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4, "model": self._model}
        while not self._over.is_set():
            status, text = self._target.send("/v1/chat/completions", question)
            self.asked += 1
            if status != 200:
                self.wrong.append(f"{time.strftime('%H:%M:%S')} innocent on {self._model}: {status} {text[:200]}")

    def __enter__(self) -> Innocent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
