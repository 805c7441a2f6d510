"""`make`: the verbs that it prints are the verbs that there are, and bad input ends in a sentence."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import tools
from tools.__main__ import VERBS
from tools.deployment import ask, base_of, contracts, each_server, limited, request, said
from tools.phases import Failure

ROOT = Path(__file__).resolve().parents[3]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    said = {"ENV", "YES", "MAKEFLAGS", "TO", "HOST", "FORCE", "DIRTY", "MEASURE"}
    inherited = {name: value for name, value in os.environ.items() if name not in said}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_make_alone_prints_every_verb_with_a_line_of_what_it_does() -> None:
    printed = make()
    assert printed.returncode == 0
    listed = dict(re.findall(r"^  ([a-z-]+) +(\S.*)$", printed.stdout, re.MULTILINE))
    assert set(VERBS) <= set(listed)


@pytest.mark.parametrize("verb", ["demo", "deploy", "plan", "rollback", "keys", "status", "smoke", "destroy"])
def test_an_unknown_environment(verb: str) -> None:
    done = make(verb, "ENV=moon")
    assert done.returncode != 0
    assert "ENV is 'moon': there is no such inventory. Say the name of one below inventory/ (citadel," in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["deploy", "rollback", "untune"])
def test_the_real_estate_is_not_changed_unasked(verb: str) -> None:
    done = make(verb, "ENV=citadel")
    assert done.returncode != 0
    assert "changes the real estate of inventory/citadel and nobody is here to ask: say YES=1" in done.stderr


def test_nothing_is_measured_on_the_real_estate_unasked() -> None:
    done = make("variants", "MEASURE=phi-3-mini", "ENV=citadel")
    assert done.returncode != 0
    assert "nobody is here to ask: say YES=1" in done.stderr


@pytest.mark.parametrize("verb", ["demo", "destroy"])
def test_only_the_labs_hosts_are_built_and_removed(verb: str) -> None:
    done = make(verb, "ENV=citadel", "YES=1")
    assert done.returncode != 0
    assert "only the lab's are ours" in done.stderr


@pytest.mark.parametrize(
    "verb", ["deploy", "plan", "rollback", "keys", "variants", "smoke", "status", "validate", "drift", "untune"]
)
def test_a_lab_that_is_not_there(verb: str) -> None:
    done = make(verb, "LAB_PREFIX=nolab")
    assert done.returncode != 0
    assert "There is no lab 'nolab' on this machine: `make demo` builds one." in done.stderr


def test_the_real_estate_of_a_path_is_not_changed_unasked(tmp_path: Path) -> None:
    done = make("deploy", f"ENV={tmp_path}")
    assert done.returncode != 0
    assert f"changes the real estate of {tmp_path} and nobody is here to ask: say YES=1" in done.stderr


@pytest.fixture
def estate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two LLM servers and a metrics server, in a folder outside of the checkout."""
    (tmp_path / "hosts.yml").write_text(
        "all:\n  vars: {citadel_python: '3.11'}\n  children:\n    llm_servers:\n      hosts:\n"
        "        one: {ansible_host: 127.0.0.1, citadel_gateway_port: 8010}\n"
        "        two: {ansible_host: 127.0.0.2, citadel_models_settings: {reserve_gib: 20},"
        " citadel_models_overrides: {mixtral-8x7b: {enabled: false}}}\n"
        "    metrics_servers: {hosts: {watcher: {ansible_host: 127.0.0.3}}}\n"
    )
    monkeypatch.setenv("ENV", str(tmp_path))
    monkeypatch.delenv("HOST", raising=False)
    return tmp_path


def test_a_verb_meets_every_server_or_the_one_that_is_named(estate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [base_of(one) for one in contracts().values()] == ["http://127.0.0.1:8010", "http://127.0.0.2:8000"]
    assert limited() == []
    monkeypatch.setenv("HOST", "two")
    assert [base_of(one) for one in contracts().values()] == ["http://127.0.0.2:8000"]
    assert limited() == ["--limit", "two,watcher,localhost"]
    monkeypatch.setenv("HOST", "three")
    with pytest.raises(Failure, match=rf"HOST is 'three': {estate} has no such LLM server; it has one, two\."):
        limited()


def test_two_words_for_two_risks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE": "0", "DIRTY": "1", "TO": "1"}.items():
        monkeypatch.setenv(name, value)
    told = said(release_force="FORCE", release_allow_dirty="DIRTY", release_to="TO")
    assert json.loads(told[1]) == {"release_allow_dirty": True, "release_to": "1"}
    monkeypatch.setenv("DIRTY", "")
    monkeypatch.setenv("TO", "")
    assert said(release_force="FORCE", release_allow_dirty="DIRTY", release_to="TO") == []


def test_an_inventory_without_hosts(estate: Path) -> None:
    (estate / "hosts.yml").write_text("all: {children: {llm_servers: {hosts: {}}}}\n")
    with pytest.raises(Failure, match=rf"{estate} has no host in its group llm_servers: add the server"):
        contracts()


def test_one_silent_server_does_not_hide_the_other(estate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    met = []

    def meet(base: str) -> None:
        met.append(base)
        if base.endswith("8010"):
            raise Failure("it is silent")

    with pytest.raises(Failure, match="one did not answer as it should"):
        each_server(meet)
    assert len(met) == 2
    assert "one: it is silent" in capsys.readouterr().out


def test_the_sum_is_that_of_the_inventory(estate: Path) -> None:
    done = make("capacity", f"ENV={estate}", "HOST=cores=24,ram=192")
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = done.stdout.split(f"two of {estate}")
    assert "mixtral-8x7b" in one
    assert "mixtral-8x7b" not in two
    assert re.search(r"^reserve +20\.0", two, re.MULTILINE)


def test_every_verb_that_the_documents_name_is_there() -> None:
    """Code blocks and code words only: `make it right` in a sentence is no command."""
    known = {*VERBS, "help"}
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = document.read_text()
        named = re.findall(r"(?:^    |`)make ([a-z][a-z-]*)", text, re.MULTILINE)
        assert set(named) <= known, f"{document.name} names verbs that are not there"


class Production(BaseHTTPRequestHandler):
    """A gateway that knows one key."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer ck_1_right"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"status": "healthy"}')

    def log_message(self, *_: object) -> None:
        pass


def test_a_gateway_that_wants_a_key_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Production)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    url = f"http://127.0.0.1:{server.server_port}/health"
    try:
        with pytest.raises(Failure, match=r"answered 401.*Say KEY=<an API key> as well"):
            request(url)
        monkeypatch.setenv("KEY", "ck_1_right")
        assert request(url)[1] == {"status": "healthy"}
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("vector", "told"), [([0.6, 0.8], "one: a vector of 2"), ([0.0, 0.0], "an empty vector")])
def test_a_model_that_makes_vectors_is_asked_for_one(vector: list[float], told: str) -> None:
    class Vectors(Production):
        def do_POST(self) -> None:
            self.send_response(200 if self.path == "/v1/embeddings" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"model": "one", "data": [{"embedding": vector}]}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Vectors)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        with pytest.raises(Failure, match=told) if not any(vector) else contextlib.nullcontext():
            assert ask(f"http://127.0.0.1:{server.server_port}", "one", ["embeddings"]) == told
    finally:
        server.shutdown()
        server.server_close()


def test_an_older_python_is_told_so_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    monkeypatch.setattr(sys, "version", "3.10.13 (main)")
    with pytest.raises(SystemExit, match=r"python3 is 3\.10\.13 and 3\.11 or newer is needed"):
        importlib.reload(tools)
