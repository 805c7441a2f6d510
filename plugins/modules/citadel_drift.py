#!/usr/bin/python
"""Compare what is declared on a host with what it has."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.drift import findings, table
from ansible.module_utils.citadel.kinds import Host

DOCUMENTATION = r"""
module: citadel_drift
short_description: Compare what is declared on a host with what it has
description:
  - Reads back every item that a role has declared by M(citadel_declare), and the files of the live release. Changes
    nothing, and fails for nothing that it finds.
author: [citadel-llm]
"""

RETURN = r"""
findings:
  description: Each item with C(owner), C(item), C(desired), C(found), C(state) and C(cause).
  returned: success
  type: list
  elements: dict
drifted: {description: How many are not as declared, returned: success, type: int}
table: {description: The same for people, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: See what differs
  citadel_drift:
"""


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    found = findings(Host())
    module.exit_json(
        changed=False,
        findings=[vars(one) for one in found],
        drifted=sum(one.state == "drifted" for one in found),
        table=table(found),
    )


if __name__ == "__main__":
    main()
