"""The lab's hosts as pytest-testinfra sees them: over the same ssh as Ansible, and by sudo."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from lab.settings import Lab
from tests.lab.clients import Client, temporary_key


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab.from_environment()


@pytest.fixture(scope="session")
def on(lab: Lab) -> Callable[[str], Host]:
    settings = lab.directory / "ssh_config"
    return lambda name: testinfra.get_host(f"ssh://{name}?ssh_config={settings}&controlpersist=60&sudo=true")


@pytest.fixture(scope="session")
def llm(on: Callable[[str], Host]) -> Host:
    return on("llm-01")


@pytest.fixture(scope="session")
def data(on: Callable[[str], Host]) -> Host:
    return on("data-01")


@pytest.fixture(scope="session")
def metrics(on: Callable[[str], Host]) -> Host:
    return on("metrics-01")


@pytest.fixture(scope="session")
def address(lab: Lab) -> dict[str, str]:
    return {host.name: lab.address(host) for host in lab.hosts}


@pytest.fixture(scope="session")
def gateway(address: dict[str, str]) -> str:
    return f"http://{address['llm-01']}:8000"


@pytest.fixture(scope="session")
def key(llm: Host) -> Iterator[str]:
    with temporary_key(llm) as secret:
        yield secret


@pytest.fixture(scope="session")
def client(address: dict[str, str], key: str) -> Client:
    client = Client(address["llm-01"], key)
    deadline = time.monotonic() + 30
    while client.ask({"messages": []})[0] in {401, 429}:  # the gateway reads its keys again in a moment
        assert time.monotonic() < deadline, "the gateway does not know the new key"
        time.sleep(0.3)
    return client


def fetch(url: str, body: dict[str, Any] | None = None) -> Any:
    call = urllib.request.Request(
        url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def ask() -> Callable[..., Any]:
    return fetch


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Await what is true only after the next probe or scrape; say what was seen last if it never is."""

    def wait(condition: Callable[[], Any], wanted: Callable[[Any], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not wanted(seen := condition()):
            assert time.monotonic() < deadline, f"after {seconds} s it still is {seen!r}"
            time.sleep(0.3)

    return wait
