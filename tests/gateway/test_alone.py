"""`make gateway`, as whoever tries it on a laptop meets it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.companion.test_shipping import until


def free_port() -> int:
    """One whose neighbours two and eighty further are free as well."""
    while True:
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 2))
                third.bind(("127.0.0.1", port + 80))
            except (OSError, OverflowError):
                continue
            return port


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    port = free_port()
    # it finds what this process has found
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-m", "tests.gateway.alone", "--port", str(port)], env=paths)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def serves() -> bool:
                try:
                    return bool(client.get("/health").json()["status"] == "healthy")
                except httpx.TransportError:
                    return False

            until(serves, 60)
            yield client
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not list(tmp_path.iterdir()), "it leaves nothing"
    finally:
        process.kill()
        process.wait()


def test_models_conversations_and_usage_are_there(client: httpx.Client) -> None:
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5})
    assert chat.status_code == 200
    first = client.post("/v1/responses", json={"model": "phi-3-mini", "input": "hi", "max_output_tokens": 5}).json()
    assert client.get(f"/v1/responses/{first['id']}").json()["id"] == first["id"]
    until(lambda: sum(one["requests"] for one in client.get("/v1/usage").json()["data"]) == 2, 30)
