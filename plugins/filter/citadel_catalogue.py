"""Filters that wire roles together: whole stanzas of the catalogue, pins of a Python, and where an environment is."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# modules get the package from Ansible itself; on the controller it is found beside the plugins
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from citadel import catalogue, contract

# minor version of Python -> how the names of its lock files end
PINNED = {"3.11": "", "3.12": "-3.12"}


def citadel_stanzas(
    models: Mapping[str, Any],
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
    ports: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Every enabled model with its defaults and overrides applied, refused here already if it can't be meant."""
    try:
        stanzas = catalogue.complete(models, defaults, overrides)
        catalogue.parse(stanzas, contract.taken(ports))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error
    return stanzas


def citadel_environment_path(item: Mapping[str, Any], root: str, python: str) -> str:
    """Environments are shared by what goes into them: the same requirements for the same Python are the same folder."""
    digest = hashlib.sha256(f"{python}\n{item['value']['requirements']}".encode())
    return f"{root}/{item['key']}-{digest.hexdigest()[:12]}"


def citadel_pins(name: str, python: str, checkout: str) -> str:
    """The requirements of an environment, locked for the minor version that `citadel_python` names."""
    minor = ".".join(python.split(".")[:2])
    if minor not in PINNED or not re.fullmatch(r"3\.\d+(\.\d+)?", python):
        raise AnsibleFilterError(
            f"citadel_python = {python!r}: packages are pinned for {' and '.join(PINNED)}. Name a full version of "
            'these, such as "3.11.18", which uv brings, or one of them alone, such as "3.12", for the host\'s own.'
        )
    return (Path(checkout) / "requirements" / f"{name}{PINNED[minor]}.txt").read_text(encoding="utf-8")


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "citadel_stanzas": citadel_stanzas,
            "citadel_environment_path": citadel_environment_path,
            "citadel_pins": citadel_pins,
        }
