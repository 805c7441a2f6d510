"""The environments of an LLM server: how each distribution calls their packages, and what names their folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "plugins/filter/citadel_environments.py"
SPEC = importlib.util.spec_from_file_location("citadel_environments", FILE)
assert SPEC and SPEC.loader
filters: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)

NOBLE = {"distribution": "Ubuntu", "distribution_version": "24.04"}
TRIXIE = {"distribution": "Debian", "distribution_version": "13"}
BOOKWORM = {"distribution": "Debian", "distribution_version": "12"}


def environments(python: str, host: dict[str, str], wheel: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = filters.citadel_environments(python, str(ROOT), "/opt/citadel/envs", wheel or {}, host)
    return found


@pytest.mark.parametrize(
    ("host", "called"),
    [(NOBLE, "minimal4t64"), (TRIXIE, "minimal4t64"), (BOOKWORM, "minimal4"), ({}, "minimal4t64")],
)
def test_a_library_has_the_name_that_the_distribution_gives_it(host: dict[str, str], called: str) -> None:
    assert f"libtcmalloc-{called}" in environments("3.11.18", host)["vllm"]["packages"]


def test_the_hosts_own_python_needs_its_headers_and_uvs_has_them() -> None:
    for name, one in environments("3.12", NOBLE).items():
        assert "python3.12-dev" in one["packages"], name
    assert not [p for one in environments("3.12.3", NOBLE).values() for p in one["packages"] if p.endswith("-dev")]


def test_a_folder_is_named_by_what_goes_into_it() -> None:
    wheel = {"url": "https://somewhere/vllm.whl", "sha256": "0" * 64}
    paths = {
        one["path"]
        for found in (environments("3.11.18", NOBLE), environments("3.11.17", NOBLE), environments("3.12", NOBLE))
        for one in found.values()
    }
    assert len(paths) == 6
    official = environments("3.11.18", NOBLE, wheel)
    assert "vllm @ https://somewhere/vllm.whl --hash=sha256:" in official["vllm"]["requirements"]
    assert official["vllm"]["path"] not in paths and official["gateway"]["path"] in paths
    assert environments("3.11.18", NOBLE)["vllm"]["path"] == environments("3.11.18", BOOKWORM)["vllm"]["path"]


@pytest.mark.parametrize("python", ["3.13", "python3", "3.11.x", ""])
def test_a_python_without_pins_is_refused(python: str) -> None:
    with pytest.raises(AnsibleFilterError, match=r"packages are pinned for 3.11 and 3.12. Name a full version"):
        environments(python, NOBLE)
