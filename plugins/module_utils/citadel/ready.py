"""Waits until a model answers, and tells at once if its unit dies instead."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

PROMPT = "Say that you are ready."
TOKENS = 8
INTERVAL = 0.5  # between two looks at the unit
ANSWER_SECONDS = 60.0
DEAD_STATES = ("failed", "inactive", "deactivating")


class NotReady(RuntimeError):
    """The model will not answer, or did not in time; the message has the last lines of its journal."""


@dataclass(frozen=True)
class Unit:
    """What systemd says about a service."""

    active: str
    sub: str
    pid: int
    restarts: int
    result: str


@dataclass(frozen=True)
class Proof:
    """The answer that shows that a model is ready."""

    instance: str
    model: str
    answer: str
    waited_seconds: float
    answer_seconds: float


def look_at(unit: str) -> Unit:
    keys = ("ActiveState", "SubState", "MainPID", "NRestarts", "Result", "Job")
    shown = subprocess.run(
        ["systemctl", "show", unit, *(f"--property={key}" for key in keys)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    # A start that waits in the queue has not failed, though the unit still shows what it was before.
    queued = values.get("Job", "0") not in {"", "0"}
    return Unit(
        active="activating" if queued else values.get("ActiveState", ""),
        sub=values.get("SubState", ""),
        pid=int(values.get("MainPID") or 0),
        restarts=int(values.get("NRestarts") or 0),
        result=values.get("Result", ""),
    )


def journal_of(unit: str, lines: int = 15) -> str:
    shown = subprocess.run(
        ["journalctl", "--unit", unit, "--lines", str(lines), "--no-pager", "--output", "cat"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return shown.stdout.strip() or "(the journal has nothing)"


def ask(url: str, body: dict[str, Any] | None = None, timeout: float = 5.0) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 from the plan
    # A model is asked directly, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as response:
        return json.load(response)


def serves(url: str, model: str) -> bool:
    """Whether the port answers under the right name; a wrong name is an error at once."""
    try:
        names = [entry["id"] for entry in ask(f"{url}/v1/models")["data"]]
    except (OSError, ValueError, KeyError):
        return False
    if model not in names:
        raise NotReady(f"{url} serves {', '.join(names)} instead of {model}: another process has the port")
    return True


def infer(url: str, model: str, kind: str, timeout: float) -> str:
    """One deterministic answer."""
    if kind == "embeddings":
        found = ask(f"{url}/v1/embeddings", {"model": model, "input": PROMPT}, timeout)
        return f"a vector of {len(found['data'][0]['embedding'])}"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
        "min_tokens": 1,  # a model may have nothing to add; one word shows that it can
        "temperature": 0,
        "seed": 0,
    }
    found = ask(f"{url}/v1/chat/completions", body, timeout)
    if not found.get("usage", {}).get("completion_tokens"):
        raise NotReady(f"{model} answered without a single token")
    return str(found["choices"][0]["message"]["content"]).strip()


def wait(
    instance: str,
    url: str,
    model: str,
    kind: str = "chat",
    *,
    timeout: float = 300.0,
    look: Callable[[str], Unit] = look_at,
    journal: Callable[[str], str] = journal_of,
    interval: float = INTERVAL,
) -> Proof:
    """Returns the proof, or raises as soon as it is certain that none will come."""
    unit = f"citadel-llm@{instance}.service"
    began = time.monotonic()
    first = look(unit)
    while True:
        now = look(unit)
        if now.active in DEAD_STATES or now.restarts > first.restarts or now.sub == "auto-restart":
            state = f"is {now.active} ({now.sub}), result {now.result}"
            if now.active == "active":
                state = "died and was started again"
            raise NotReady(
                f"{unit} {state}, after {time.monotonic() - began:.0f} s. Its journal ends:\n{journal(unit)}"
            )
        if serves(url, model):
            break
        if time.monotonic() - began > timeout:
            raise NotReady(
                f"{unit} runs but did not open {url} within {timeout:.0f} s. Its journal ends:\n{journal(unit)}"
            )
        time.sleep(interval)
    asked = time.monotonic()
    try:
        answer = infer(url, model, kind, ANSWER_SECONDS)
    except (urllib.error.HTTPError, OSError, ValueError, KeyError, IndexError) as error:
        raise NotReady(
            f"{unit} opened {url} but gave no answer: {error}. Its journal ends:\n{journal(unit)}"
        ) from error
    done = time.monotonic()
    return Proof(instance, model, answer, round(asked - began, 3), round(done - asked, 3))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance")
    parser.add_argument("--url", required=True, help="where it listens, such as http://127.0.0.1:11400")
    parser.add_argument("--model", help="the name that it serves; the instance's own if not given")
    parser.add_argument("--kind", choices=("chat", "embeddings"), default="chat")
    parser.add_argument("--timeout", type=float, default=300.0)


def run(arguments: argparse.Namespace) -> int:
    try:
        proof = wait(
            arguments.instance,
            arguments.url.rstrip("/"),
            arguments.model or arguments.instance,
            arguments.kind,
            timeout=arguments.timeout,
        )
    except NotReady as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(proof)))
    return 0
