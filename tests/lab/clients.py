"""Clients of the gateway in the lab that know their key, so that no limit for strangers stands in their way."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from testinfra.host import Host


@contextlib.contextmanager
def temporary_key(llm: Host) -> Iterator[str]:
    """A key of the highest tier, made as an administrator makes one and revoked in the end."""
    keys = (
        "cd / && runuser -u agent0 -- env PYTHONPATH=/opt/citadel/current/gateway "
        "/opt/citadel/current/env/gateway/bin/python -B -m citadel_gateway keys"
    )
    where = "--config /opt/citadel/current/config/gateway.yml"
    secret = str(llm.check_output(f"{keys} create the-tests {where} --tier enterprise --days 1"))
    try:
        yield secret
    finally:
        llm.check_output(f"{keys} revoke {secret.split('_')[1]} {where}")


class Client:
    """One connection for each question, as many clients of the estate do it."""

    def __init__(self, address: str, key: str, timeout: float = 180) -> None:
        self._address, self._key, self._timeout = address, key, timeout

    def send(
        self, body: dict[str, Any] | bytes, path: str = "/v1/chat/completions", **more: str
    ) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._address, 8000, timeout=self._timeout)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}", **more}
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers)
        return connection

    def ask(self, body: dict[str, Any] | bytes, path: str = "/v1/chat/completions") -> tuple[int, dict[str, Any]]:
        connection = self.send(body, path)
        try:
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


class Twice:
    """Asks twice a second, all along, and keeps what went wrong."""

    def __init__(self, client: Client, model: str) -> None:
        self._client, self._model = client, model
        self.asked = 0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        body = {"model": self._model, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}
        while not self._over.wait(0.5):
            try:
                status, answer = self._client.ask(body)
                assert status == 200 and answer["usage"]["completion_tokens"], f"{status} {answer}"
            except Exception as error:
                self.wrong.append(f"{time.strftime('%H:%M:%S')} {self._model}: {error!r}")
            self.asked += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
