#!/usr/bin/python
"""Look at a host, and refuse it in words if it cannot carry the product."""

from __future__ import annotations

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.fitness import Found, Wanted, clock_here, missing, objections

DOCUMENTATION = r"""
module: citadel_host
short_description: Look at a host, and refuse it in words if it cannot carry the product
description:
  - Says which distribution it runs and which packages it lacks. Fails with every objection at once, a sentence each.
    Changes nothing.
options:
  name: {description: What people call the host, type: str, required: true}
  reached_as: {description: The user that Ansible logs in as, type: str, default: ""}
  accounts: {description: 'The accounts of services, whom no person may be', type: list, elements: str, required: true}
  cores: {description: The least that it has to have, type: int, required: true}
  memory_gib: {description: The least that it has to have, type: int, required: true}
  python: {description: 'An interpreter that it shall have itself, if any', type: str, default: ""}
  hostname: {description: How it shall be called, type: str, default: ""}
  packages: {description: Packages that it shall have, type: list, elements: str, default: []}
author: [citadel-llm]
"""

RETURN = r"""
ansible_facts:
  description: Facts under the names that M(ansible.builtin.setup) gives them, at a tenth of its time.
  returned: success
  type: dict
  contains:
    distribution: {description: Debian or Ubuntu, type: str}
    distribution_version: {description: 'Its number, such as 24.04', type: str}
clock:
  description: What keeps its clock in time.
  returned: success
  type: dict
  contains:
    package: {description: 'What has to be installed for it, if anything', type: str}
    unit: {description: 'What has to run for it, if anything', type: str}
    said: {description: Why nothing has to, type: str}
missing: {description: Those of the packages that are not installed, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Look at the host
  citadel_host:
    name: "{{ inventory_hostname }}"
    accounts: [agent0, citadel-vllm]
    cores: 16
    memory_gib: 128
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
            "hostname": {"type": "str", "default": ""},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    wanted = Wanted(tuple(given["accounts"]), given["cores"], given["memory_gib"], given["python"], given["hostname"])
    found = Found.here(wanted)
    said = objections(found, wanted, given["reached_as"])
    if said:
        module.fail_json(msg="\n".join(f"{given['name']} {sentence}" for sentence in said))
    module.exit_json(
        changed=False,
        ansible_facts={"distribution": found.distribution, "distribution_version": found.version},
        missing=missing(given["packages"]),
        clock=asdict(clock_here()),
    )


if __name__ == "__main__":
    main()
