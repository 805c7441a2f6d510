#!/usr/bin/python
"""Look at a host before anything is touched, and tell what it has and what it needs."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.fitness import Wanted
from ansible.module_utils.citadel.kinds import Host
from ansible.module_utils.citadel.validation import FAILURE, WARNING, Asked, Thresholds, checks, table

DOCUMENTATION = r"""
module: citadel_validate
short_description: Look at a host before anything is touched, and tell what it has and what it needs
description:
  - Compares processor, memory, disks, network, ports, clock and names with what is needed and recommended, measures the
    disk, and asks the neighbours. What M(citadel_host) refuses is a failure here, in the same words.
  - Changes nothing, and fails for nothing that it finds.
options:
  name: {description: What people call the host, type: str, required: true}
  reached_as: {description: The user that Ansible logs in as, type: str, default: ""}
  accounts: {description: 'The accounts of services, whom no person may be', type: list, elements: str, required: true}
  cores: {description: The least that it has to have, type: int, required: true}
  memory_gib: {description: The least that it has to have, type: int, required: true}
  python: {description: 'An interpreter that it shall have itself, if any', type: str, default: ""}
  recommended: {description: The figures of citadel.validation.Thresholds, type: dict, default: {}}
  models_root: {description: Where the models are stored, type: path, default: /opt/models}
  ports: {description: 'What will listen there, name to port', type: dict, default: {}}
  neighbours: {description: 'Other servers that shall answer, name to host:port', type: dict, default: {}}
author: [citadel-llm]
"""

RETURN = r"""
checks: {description: 'Each with name, found, needed, verdict, advice', returned: success, type: list, elements: dict}
failures: {description: How many forbid a deployment, returned: success, type: int}
warnings_found: {description: How many are worth knowing, returned: success, type: int}
table: {description: The same for people, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Look at the host
  citadel_validate:
    name: "{{ inventory_hostname }}"
    accounts: [agent0, citadel-vllm]
    cores: 16
    memory_gib: 128
    ports: {gateway: 8000}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "reached_as": {"type": "str", "default": ""},
            "accounts": {"type": "list", "elements": "str", "required": True},
            "cores": {"type": "int", "required": True},
            "memory_gib": {"type": "int", "required": True},
            "python": {"type": "str", "default": ""},
            "recommended": {"type": "dict", "default": {}},
            "models_root": {"type": "path", "default": "/opt/models"},
            "ports": {"type": "dict", "default": {}},
            "neighbours": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        asked = Asked(
            given["name"],
            Wanted(tuple(given["accounts"]), given["cores"], given["memory_gib"], given["python"]),
            Thresholds.of(given["recommended"]),
            Path(given["models_root"]),
            {name: int(port) for name, port in given["ports"].items()},
            given["neighbours"],
            given["reached_as"],
        )
        found = checks(Host(), asked)
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        checks=[vars(one) for one in found],
        failures=sum(one.verdict == FAILURE for one in found),
        warnings_found=sum(one.verdict == WARNING for one in found),
        table=table(found),
    )


if __name__ == "__main__":
    main()
