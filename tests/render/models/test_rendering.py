"""What the role `models` renders, by running it in check mode on this machine: a model more is one stanza more."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel import catalogue
from lab import tiny_models

ROOT = Path(__file__).resolve().parents[3]
PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  roles: [models]
  tasks:
    - ansible.builtin.copy:
        content: "{{ {'files': models_release_files, 'instances': models_instances} | to_json }}"
        dest: "{{ out }}"
        mode: "0644"
      check_mode: false
"""
SMALL = {"revision": "r1", "cores": 1, "kv_cache_gib": 0.25, "fallback": []}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.main([str(folder)])
    shutil.copytree(folder / "phi-3-mini", folder / "fifth")
    return folder


def render(
    tiny: Path, tmp_path: Path, models: dict[str, Any], **more: Any
) -> tuple[dict[str, str], list[dict[str, Any]], str]:
    """The files of the release, the instances, and what the run said; `models` upon a catalogue of phi-3-mini alone."""
    committed = yaml.safe_load((ROOT / "group_vars/all/models.yml").read_text(encoding="utf-8"))
    only = {"phi-3-mini": {**committed["citadel_models"]["phi-3-mini"], **SMALL}}
    stanzas = {name: {**only.get(name, {}), **stanza} for name, stanza in {**only, **models}.items()}
    variables = {
        "models_stanzas": catalogue.complete(stanzas, committed["citadel_models_defaults"]),
        "models_source": {"kind": "directory", "path": f"{tiny}/{{model}}"},
        "models_environment": "/opt/citadel/envs/vllm-0123456789ab",
        "models_root": str(tmp_path / "models"),
        "models_cache_root": "/opt/cache",
        "models_state_root": "/opt/citadel/state",
        "models_current": "/opt/citadel/current",
        "models_user": "citadel-vllm",
        "models_group": "citadel-vllm",
        "models_settings": {"share_cores": True, "reserve_gib": 0.5},
        "out": str(tmp_path / "out.json"),
        **more,
    }
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "variables.json").write_text(json.dumps(variables))
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", tmp_path / "play.yml", "--check", "-e", f"@{tmp_path}/variables.json"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = done.stdout + done.stderr
    if done.returncode:
        return {}, [], said
    found = json.loads((tmp_path / "out.json").read_text())
    return found["files"], found["instances"], said


def test_one_model(tiny: Path, tmp_path: Path) -> None:
    files, _, said = render(tiny, tmp_path, {})
    assert sorted(files) == [
        "config/models/phi-3-mini.env",
        "config/models/phi-3-mini.yml",
        "units/citadel-llm.target",
        "units/citadel-llm@.service",
        "units/citadel-llm@phi-3-mini.service.d/plan.conf",
        "units/citadel-models.target",
        "units/citadel-revive@.service",
        "units/citadel-revive@.timer",
    ], said
    assert not (tmp_path / "models").exists(), "check mode changed something"
    options = yaml.safe_load(files["config/models/phi-3-mini.yml"])
    assert options["port"] == 11403
    assert options["model"] == f"{tmp_path}/models/phi-3-mini/r1"
    assert options["kv-cache-memory-bytes"] == 2**28
    told = files["config/models/phi-3-mini.env"]
    assert "CITADEL_DIGEST=" in told
    # the names that people and their scripts know
    known = ("MODEL_NAME=phi-3-mini", "SERVICE_PORT=11403", "MAX_MODEL_LEN=4096", "MAX_BATCHED_TOKENS=1024")
    for line in (*known, "MAX_NUM_SEQS=32", "CPU_QUOTA=100", f"MODEL_PATH={tmp_path}/models/phi-3-mini/r1"):
        assert f"{line}\n" in told
    assert "MEMORY_LIMIT=" in told


def test_caches_in_memory_are_in_the_models_own_tmp(tiny: Path, tmp_path: Path) -> None:
    """A unit that did not wait for the mount would fill the folder below it instead."""
    caches = {"/opt/cache/model_cache": "/tmp/model_cache", "/opt/cache/temp_cache": "/tmp/temp_cache"}
    files, _, said = render(tiny, tmp_path, {}, models_caches=caches)
    unit = files["units/citadel-llm@.service"].split("[Service]")
    assert "RequiresMountsFor=/opt/cache/model_cache /opt/cache/temp_cache\n" in unit[0], said
    assert "BindPaths=/opt/cache/temp_cache:/tmp/temp_cache\n" in unit[1]


def test_a_fifth_model_is_one_stanza(tiny: Path, tmp_path: Path) -> None:
    before, _, _ = render(tiny, tmp_path, {})
    stanza = {
        **SMALL,
        "repository": "some/thing",
        "port": 11404,
        "context": 2048,
        "batched_tokens": 1024,
        "sequences": 16,
        "concurrent": 10,
        "timeout": 60,
    }
    after, instances, said = render(tiny, tmp_path, {"fifth": stanza})
    assert after, said
    assert [one["name"] for one in instances] == ["phi-3-mini", "fifth"]
    assert {name for name in after if "fifth" in name} == set(after) - set(before)
    assert before == {name: after[name] for name in before}, "the others are left alone, so they do not restart"


def test_a_second_replica_is_one_line_and_so_is_an_option_of_its_unit(tiny: Path, tmp_path: Path) -> None:
    files, instances, said = render(tiny, tmp_path, {"phi-3-mini": {"replicas": 2, "unit": {"Nice": 5}}})
    assert [(one["name"], one["port"], one["model"]) for one in instances] == [
        ("phi-3-mini-1", 11403, "phi-3-mini"),
        ("phi-3-mini-2", 11503, "phi-3-mini"),
    ], said
    served = {yaml.safe_load(files[f"config/models/phi-3-mini-{one}.yml"])["served-model-name"] for one in (1, 2)}
    assert served == {"phi-3-mini"}
    assert "\nNice=5\n" in files["units/citadel-llm@phi-3-mini-2.service.d/plan.conf"]
    assert "Nice" not in files["units/citadel-llm@.service"]


def test_an_embeddings_model_is_one_stanza(tiny: Path, tmp_path: Path) -> None:
    stanza = {
        **SMALL,
        "kind": "embeddings",
        "repository": "some/vectors",
        "port": 11404,
        "context": 512,
        "batched_tokens": 512,
        "sequences": 16,
        "concurrent": 10,
        "timeout": 10,
    }
    files, instances, said = render(tiny, tmp_path, {"nomic-embed-text": stanza})
    assert files, said
    options = yaml.safe_load(files["config/models/nomic-embed-text.yml"])
    assert options["runner"] == "pooling"
    assert 0 < options["kv-cache-memory-bytes"] <= 2**26, "left out, vLLM asks for nearly all memory of the host"
    assert instances[1]["hidden_size"] == 768


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"port": 80}, "citadel_models.phi-3-mini.port = 80"),
        ({"context": 100000}, "takes 4096 tokens at most"),
        ({"memory_gb": 0.5}, "Smallest changes that make it fit"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    tiny: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    files, _, said = render(tiny, tmp_path, {"phi-3-mini": change})
    assert not files
    assert words in said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("listens", [True, False])
def test_what_still_loads_is_ended_at_once_and_what_serves_may_drain(tiny: Path, tmp_path: Path, listens: bool) -> None:
    """vLLM does not hear SIGTERM while it loads; the unit's own stop command is run here as systemd runs it."""
    files, _, _ = render(tiny, tmp_path, {})
    lines = files["units/citadel-llm@.service"].splitlines()
    stop = next(line.removeprefix("ExecStop=") for line in lines if line.startswith("ExecStop=")).replace("$$", "$")
    model = subprocess.Popen(["sleep", "60"])
    try:
        with socket.create_server(("127.0.0.1", 0)) as port:
            address = f"127.0.0.1:{port.getsockname()[1]}"
            if not listens:
                port.close()
            told = {**os.environ, "CITADEL_PORT": address, "MAINPID": str(model.pid)}
            subprocess.run(shlex.split(stop), env=told, check=True, capture_output=True)
        assert (model.poll() is None) if listens else (model.wait(10) == -signal.SIGKILL)
    finally:
        model.kill()
        model.wait()


def test_the_unit_is_hardened(tiny: Path, tmp_path: Path) -> None:
    files, _, _ = render(tiny, tmp_path, {})
    unit = tmp_path / "citadel-llm@.service"
    unit.write_text(files["units/citadel-llm@.service"])
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine; the lab's hosts have it")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
