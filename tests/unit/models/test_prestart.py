"""What keeps a model from starting is said in one sentence, before vLLM is started."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from citadel import fetch, prestart
from citadel.sources import MANIFEST, source_of
from citadel.topology import GIB

Given = dict[str, Any]


@pytest.fixture
def given(tiny: Path, tmp_path: Path) -> Given:
    """All that a start needs, in order."""
    source = source_of("hermes-2", "", "r1", {"kind": "directory", "path": str(tiny / "hermes-2")})
    model, _ = fetch.fetch("hermes-2", source, "r1", tmp_path / "models")
    environment = tmp_path / "envs" / "vllm-1"
    environment.mkdir(parents=True)
    (environment / "complete").touch()
    config = tmp_path / "hermes-2.yml"
    config.touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "config": config,
        "available": 10 * GIB,
        "environment": {
            "CITADEL_ENVIRONMENT": str(environment),
            "CITADEL_MODEL": str(model),
            "CITADEL_PORT": f"127.0.0.1:{port}",
            "CITADEL_NEED_BYTES": str(3 * GIB),
            "VLLM_CACHE_ROOT": str(tmp_path / "cache" / "vllm"),
        },
    }


def said(given: Given) -> list[str]:
    return list(prestart.problems("hermes-2", given["environment"], given["config"], given["available"]))


def only(given: Given) -> str:
    (problem,) = said(given)
    assert "\n" not in problem
    return problem


def test_all_in_order(given: Given) -> None:
    assert said(given) == []


def test_a_missing_environment(given: Given) -> None:
    shutil.rmtree(given["environment"]["CITADEL_ENVIRONMENT"])
    assert "vllm-1 is missing or half built; deploy again" in only(given)


def test_a_half_built_environment(given: Given) -> None:
    (Path(given["environment"]["CITADEL_ENVIRONMENT"]) / "complete").unlink()
    assert "half built" in only(given)


def test_an_env_file_without_what_it_needs(given: Given) -> None:
    del given["environment"]["CITADEL_MODEL"]
    assert "does not set CITADEL_MODEL" in only(given)


def test_a_missing_configuration(given: Given) -> None:
    given["config"].unlink()
    assert "hermes-2.yml is missing" in only(given)


def test_an_altered_model(given: Given) -> None:
    weights = Path(given["environment"]["CITADEL_MODEL"]) / "model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors was altered" in only(given)


def test_a_model_that_was_never_finished(given: Given) -> None:
    (Path(given["environment"]["CITADEL_MODEL"]) / MANIFEST).unlink()
    assert "not here or not whole; deploy again" in only(given)


@pytest.fixture
def taken(given: Given) -> Iterator[None]:
    _, _, port = given["environment"]["CITADEL_PORT"].rpartition(":")
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(port)))
        other.listen()
        yield


@pytest.mark.usefixtures("taken")
def test_a_taken_port(given: Given) -> None:
    assert "cannot be had: Address already in use; `ss -ltnp" in only(given)


def test_too_little_memory(given: Given) -> None:
    given["available"] = GIB
    assert "gives this model 3.0 GiB and 1.0 GiB are available" in only(given)


def test_a_full_disk(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "less than 1 GiB free" in only(given)


def test_several_problems_are_said_at_once(given: Given) -> None:
    given["available"] = 0
    given["config"].unlink()
    assert len(said(given)) == 2
