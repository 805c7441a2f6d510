"""Clients that stream completions at the same time, and what they see."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from dataclasses import dataclass

WORDS = "careful engineers measure quiet machines before long mornings because honest numbers stay well and "


@dataclass(frozen=True)
class Seen:
    first_token: float  # median seconds
    per_second: float  # tokens of all clients


def prompt(client: int, turn: int, words: int = 48) -> str:
    """Different at its beginning, so that no cache of prefixes answers in place of the model."""
    return " ".join([f"Client {client} in turn {turn} says that", *(WORDS.split() * 10)[:words]])


def stream(port: int, model: str, text: str, tokens: int) -> tuple[float, int, str]:
    """Seconds to the first token, how many came, and what they say."""
    body = {
        "model": model,
        "prompt": text,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read()[:500]!r}")
    first, counted, said = 0.0, 0, ""
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        first = first or time.perf_counter() - began
        counted = (event.get("usage") or {}).get("completion_tokens", counted)
        said += event["choices"][0]["text"] if event.get("choices") else ""
    connection.close()
    return first, counted, said


def measure(port: int, model: str, clients: int, turns: int, tokens: int) -> Seen:
    """Every turn is a question of its own."""
    return together(port, model, clients, turns, tokens, conversation=False)


def converse(port: int, model: str, clients: int, turns: int, tokens: int) -> Seen:
    """Every turn begins with the questions and answers before it."""
    return together(port, model, clients, turns, tokens, conversation=True)


def together(port: int, model: str, clients: int, turns: int, tokens: int, *, conversation: bool) -> Seen:
    firsts: list[float] = []
    counts: list[int] = []
    failures: list[Exception] = []
    lock = threading.Lock()

    def work(client: int) -> None:
        try:
            before = ""
            for turn in range(turns):
                asked = before + prompt(client, turn)
                first, counted, said = stream(port, model, asked, tokens)
                before = f"{asked}{said} " if conversation else ""
                with lock:
                    firsts.append(first)
                    counts.append(counted)
        except (OSError, RuntimeError, ValueError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    if set(counts) != {tokens}:
        raise RuntimeError(f"answers had {sorted(set(counts))} tokens instead of {tokens}: not comparable")
    return Seen(statistics.median(firsts), sum(counts) / seconds)
