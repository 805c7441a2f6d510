#!/usr/bin/python
"""Look who listens where node exporter shall."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.kinds import Host
from ansible.module_utils.citadel.node import NodeError, foreign

DOCUMENTATION = r"""
module: citadel_node
short_description: Look who listens where node exporter shall
description:
  - Tells a node exporter of somebody else's, and whether it passes on our texts. Refuses a port that another program
    has. Changes nothing.
options:
  name: {description: What people call the host, type: str, required: true}
  port: {description: Where it shall listen, type: int, required: true}
  texts: {description: The folder whose texts it shall pass on, type: path, required: true}
author: [citadel-llm]
"""

RETURN = r"""
foreign: {description: Whether somebody else's node exporter listens there, returned: success, type: bool}
passes_on: {description: Whether that one passes on the texts, returned: success, type: bool}
said: {description: 'What becomes of it, for people; empty where there is none', returned: success, type: str}
"""

EXAMPLES = r"""
- name: Somebody may have a node exporter already
  citadel_node:
    name: "{{ inventory_hostname }}"
    port: 9100
    texts: /var/lib/prometheus/node-exporter
  register: found
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "texts": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        found = foreign(Host(), given["port"])
    except NodeError as error:
        module.fail_json(msg=f"{given['name']}: {error}")
    module.exit_json(
        changed=False,
        foreign=found is not None,
        passes_on=found is not None and found.texts == given["texts"],
        said=found.said(given["texts"]) if found else "",
    )


if __name__ == "__main__":
    main()
