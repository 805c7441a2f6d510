"""Whole stanzas of the catalogue, as every play may read them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# modules get the package from Ansible itself; on the controller it is found beside the plugins
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from citadel import catalogue, contract


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


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "citadel_stanzas": citadel_stanzas,
        }
