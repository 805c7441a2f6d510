"""The production profile, deployed over the one for development and taken back: who comes in by which door."""

from __future__ import annotations

import http.client
import json
import shlex
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from lab.settings import Lab
from tests.certificates import made
from tests.lab import loopback
from tests.lab.plays import live, play

PLACE = "/etc/citadel-tls"
MODEL = "phi-3-mini"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 8}


def put(llm: Host, folder: Path, name: str, address: str, days: int = 30) -> ssl.SSLContext:
    """A new pair for the gateway, put there as whatever renews certificates does: key first, each by rename."""
    pair = made(folder, name, days, address)
    llm.check_output(f"install -d -m 0750 -g agent0 {PLACE}")
    for source, target, mode in ((pair.key, "server.key", "0640"), (pair.certificate, "server.pem", "0644")):
        text = Path(source).read_text()
        llm.check_output(f"umask 077; printf '%s' '{text}' > {PLACE}/.new; chgrp agent0 {PLACE}/.new")
        llm.check_output(f"chmod {mode} {PLACE}/.new && mv {PLACE}/.new {PLACE}/{target}")
    return ssl.create_default_context(cafile=pair.certificate)


@pytest.fixture(scope="module")
def trust(
    llm: Host, lab: Lab, address: dict[str, str], key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ssl.SSLContext]:
    """What a client trusts of the gateway in production; in the end the release before serves again."""
    folder = tmp_path_factory.mktemp("tls")
    trust = put(llm, folder, "first", address["llm-01"])
    before, sshd = live(llm), llm.check_output("sshd -T")
    play(
        "site.yml",
        citadel_profile="production",
        access_management=[lab.gateway],
        citadel_tls={"certificate": f"{PLACE}/server.pem", "key": f"{PLACE}/server.key"},
    )
    assert live(llm) != before
    yield trust
    play("playbooks/rollback.yml")
    assert live(llm) == before
    play("playbooks/access.yml")
    assert llm.run("nft list table inet citadel").rc != 0
    assert llm.check_output("sshd -T") == sshd
    llm.check_output(f"rm -r {PLACE}")


def ask(
    address: str,
    trust: ssl.SSLContext | None,
    key: str = "",
    path: str = "/v1/chat/completions",
    body: dict[str, Any] | None = None,
) -> http.client.HTTPResponse:
    connection = (
        http.client.HTTPSConnection(address, 8000, timeout=120, context=trust)
        if trust is not None
        else http.client.HTTPConnection(address, 8000, timeout=120)
    )
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    return connection.getresponse()


def test_clients_come_by_tls_and_with_a_key(address: dict[str, str], key: str, trust: ssl.SSLContext) -> None:
    host = address["llm-01"]
    answer = ask(host, trust, key, body=QUESTION)
    assert answer.status == 200
    assert json.load(answer)["choices"][0]["message"]["content"]
    assert ask(host, trust, body=QUESTION).status == 401
    assert ask(host, trust, path="/metrics").status == 401
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(host, None, key, body=QUESTION)
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        ask(host, old, key, body=QUESTION)


def test_only_clients_and_prometheus_find_an_open_door(
    address: dict[str, str], llm: Host, metrics: Host, trust: ssl.SSLContext
) -> None:
    ports = (22, 8000, 8002, 8080, 9090, *range(11400, 11404))
    scan = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[2:]):\n"
        "    try:\n        socket.create_connection((sys.argv[1], port), 2).close()\n"
        "    except OSError:\n        continue\n"
        "    print(port)"
    )
    command = ["python3", "-c", scan, address["llm-01"], *map(str, ports)]
    here = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # this machine manages the lab and is its client; the metrics server is neither
    assert here == ["22", "8000"]
    assert metrics.check_output(shlex.join(command)).split() == ["9090"]
    # whoever is on the host finds them
    assert llm.check_output("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/health") == "200"
    assert llm.check_output("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8002/management/keys") == "401"
    # nothing but figures stands on the door of Prometheus
    assert loopback.ask(metrics, f"http://{address['llm-01']}:9090/metrics")[0] == 200
    assert loopback.ask(metrics, f"http://{address['llm-01']}:9090/v1/models")[0] == 404


def test_prometheus_sees_it(
    address: dict[str, str],
    ask: Callable[..., Any],
    eventually: Callable[..., None],
    trust: ssl.SSLContext,
) -> None:
    url = f"http://{address['metrics-01']}:9090/api/v1/query?query=up{{citadel_host=%22llm-01%22}}"
    eventually(
        lambda: {entry["value"][1] for entry in ask(url)["data"]["result"]}, lambda seen: seen == {"1"}, seconds=60
    )


def test_a_renewed_certificate_is_taken_over_and_cuts_no_stream(
    llm: Host,
    lab: Lab,
    address: dict[str, str],
    key: str,
    tmp_path: Path,
    eventually: Callable[..., None],
    trust: ssl.SSLContext,
) -> None:
    host = address["llm-01"]
    streamed: list[bytes] = []

    def stream() -> None:
        with ask(host, trust, key, body={**QUESTION, "max_tokens": 400, "ignore_eos": True, "stream": True}) as answer:
            streamed.append(answer.read())

    reader = threading.Thread(target=stream)
    reader.start()
    new = put(llm, tmp_path, "second", host)

    def accepted() -> bool:
        try:
            return ask(host, new, path="/health").status == 200
        except ssl.SSLError:
            return False

    eventually(accepted, bool, 15)
    with pytest.raises(ssl.SSLError):
        ask(host, trust, path="/health")
    reader.join(120)
    assert streamed and streamed[0].rstrip().endswith(b"data: [DONE]")


def test_somebody_is_told_of_a_certificate_that_nobody_renews(
    llm: Host,
    address: dict[str, str],
    ask: Callable[..., Any],
    eventually: Callable[..., None],
    trust: ssl.SSLContext,
    tmp_path: Path,
) -> None:
    def told() -> list[dict[str, Any]]:
        """What Alertmanager has to send, and to whom."""
        url = f"http://{address['metrics-01']}:9093/api/v2/alerts?active=true&filter=citadel_host=%22llm-01%22"
        return [one for one in ask(url) if one["labels"]["alertname"] == "CertificateExpiresSoon"]

    assert not told()
    put(llm, tmp_path, "short", address["llm-01"], days=2)
    eventually(told, bool, seconds=240)
    (alert,) = told()
    assert "valid for 1.9" in alert["annotations"]["summary"]
    assert alert["labels"]["severity"] == "critical"
    put(llm, tmp_path, "long", address["llm-01"])
    eventually(told, lambda found: not found, seconds=240)
