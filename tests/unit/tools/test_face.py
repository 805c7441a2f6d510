"""`make`: the verbs that it prints are the verbs that there are, and bad input ends in a sentence."""

from __future__ import annotations

import importlib
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
from tools.deployment import request
from tools.phases import Failure

ROOT = Path(__file__).resolve().parents[3]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"ENV", "YES", "MAKEFLAGS", "TO"}}
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


@pytest.mark.parametrize("verb", ["demo", "deploy", "plan", "rollback", "status", "smoke", "destroy"])
def test_an_unknown_environment(verb: str) -> None:
    done = make(verb, "ENV=moon")
    assert done.returncode != 0
    assert "ENV is 'moon': say ENV=lab" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["deploy", "rollback"])
def test_the_real_estate_is_not_changed_unasked(verb: str) -> None:
    done = make(verb, "ENV=citadel")
    assert done.returncode != 0
    assert "changes the real estate and nobody is here to ask: say YES=1" in done.stderr


@pytest.mark.parametrize("verb", ["demo", "destroy"])
def test_only_the_labs_hosts_are_built_and_removed(verb: str) -> None:
    done = make(verb, "ENV=citadel", "YES=1")
    assert done.returncode != 0
    assert "only the lab's are ours" in done.stderr


@pytest.mark.parametrize("verb", ["deploy", "plan", "rollback", "releases", "smoke", "status"])
def test_a_lab_that_is_not_there(verb: str) -> None:
    done = make(verb, "LAB_PREFIX=nolab")
    assert done.returncode != 0
    assert "There is no lab 'nolab' on this machine: `make demo` builds one." in done.stderr


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


def test_an_older_python_is_told_so_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    monkeypatch.setattr(sys, "version", "3.10.13 (main)")
    with pytest.raises(SystemExit, match=r"python3 is 3\.10\.13 and 3\.11 or newer is needed"):
        importlib.reload(tools)
