"""Filters of what the metrics server gets: the rules of Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# modules get the package from Ansible itself; on the controller it is found beside the plugins
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from citadel import rules


def citadel_rules(contracts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The text of the file of rules: recorded series and alerts of these servers."""
    try:
        return rules.rendered(contracts, settings)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"citadel_rules": citadel_rules}
