"""`make keys`, with a host that is this machine: the real verb, playbook and command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools.keys import arguments
from tools.phases import REPORTS, Failure

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("CREATE", "ROTATE", "REVOKE", "ROLE", "TIER", "DAYS", "MODELS", "OVERLAP", "HOST", "MAKEFLAGS")


@pytest.fixture
def estate(tmp_path: Path) -> Path:
    """One LLM server whose live release is this checkout."""
    live = tmp_path / "current"
    (live / "env").mkdir(parents=True)
    (live / "config").mkdir()
    (live / "env/gateway").symlink_to(sys.prefix)
    (live / "gateway").symlink_to(ROOT / "gateway/src")
    config = yaml.safe_load((ROOT / "gateway/example.yml").read_text())
    config["auth"]["keys_file"] = str(tmp_path / "keys/gateway.json")
    config["logs"]["audit"] = str(tmp_path / "audit.log")
    (live / "config/gateway.yml").write_text(yaml.safe_dump(config))
    server = {"ansible_host": "127.0.0.1", "ansible_connection": "local", "ansible_become": False}
    server |= {"citadel_root": str(tmp_path), "citadel_python": "3.11"}
    servers = {"llm_servers": {"hosts": {"one": server}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": servers}}))
    return tmp_path


def keys(estate: Path, **words: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in WORDS}
    return subprocess.run(
        ["make", "keys", f"ENV={estate / 'hosts.yml'}", "YES=1"],
        cwd=ROOT,
        env={**inherited, **words},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def secret_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    (secret,) = re.findall(r"^ *(ck_\S+)$", done.stdout, re.MULTILINE)
    return str(secret)


def test_a_key_from_its_making_to_its_end(estate: Path) -> None:
    first = secret_of(keys(estate, CREATE="the web shop", TIER="premium", DAYS="90", MODELS="phi-3-mini"))
    second = secret_of(keys(estate, ROTATE=first.split("_")[1], OVERLAP="60"))
    gone = keys(estate, REVOKE=second.split("_")[1])
    assert "(the web shop) is revoked" in gone.stdout
    listed = keys(estate).stdout
    assert len(re.findall(r"premium +\S.*the web shop$", listed, re.MULTILINE)) == 2
    kept = json.loads((estate / "keys/gateway.json").read_text())["keys"]
    assert [key["models"] for key in kept] == [["phi-3-mini"]] * 2
    assert (estate / "audit.log").read_text().count('"ok"') == 3
    # shown once: neither on the server nor in any log of the verb
    for secret in (first, second):
        assert secret not in listed
        for file in [estate / "audit.log", estate / "keys/gateway.json", *REPORTS.glob("keys-*.log")]:
            assert secret not in file.read_text(), file
    refused = keys(estate, REVOKE="nobody")
    assert refused.returncode != 0
    assert "key nobody: does not exist" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_server_without_a_gateway(estate: Path) -> None:
    (estate / "current/env/gateway").unlink()
    done = keys(estate)
    assert done.returncode != 0
    assert "no gateway is deployed here" in done.stderr


def test_keys_of_several_servers_are_not_changed_at_once(estate: Path) -> None:
    hosts = yaml.safe_load((estate / "hosts.yml").read_text())
    servers = hosts["all"]["children"]["llm_servers"]["hosts"]
    servers["two"] = servers["one"]
    (estate / "hosts.yml").write_text(yaml.safe_dump(hosts))
    done = keys(estate, CREATE="shop")
    assert done.returncode != 0
    assert "Each LLM server has keys of its own: say HOST=, which is one of one, two." in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"CREATE": "a", "REVOKE": "b"}, "CREATE and REVOKE cannot be done at once"),
        ({"TIER": "basic"}, "TIER=basic is said with CREATE only"),
        ({"REVOKE": "a", "OVERLAP": "5"}, "OVERLAP=5 is said with ROTATE only"),
    ],
)
def test_words_that_do_not_go_together(words: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORDS:
        monkeypatch.delenv(name, raising=False)
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Failure, match=said):
        arguments()
