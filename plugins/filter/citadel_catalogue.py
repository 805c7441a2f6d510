"""Filters over the catalogue, for roles that need whole stanzas."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# modules get the package from Ansible itself; on the controller it is found beside the plugins
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from citadel import catalogue  # noqa: E402


def citadel_stanzas(
    models: Mapping[str, Any], defaults: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every enabled model with its defaults and overrides applied."""
    try:
        return catalogue.complete(models, defaults, overrides)
    except catalogue.CatalogueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"citadel_stanzas": citadel_stanzas}
