#!/usr/bin/python
"""Give a host its static address by netplan, in a way that undoes itself unless somebody comes in anew."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.network import Network, NetworkError

DOCUMENTATION = r"""
module: citadel_network
short_description: Give a host its static address by netplan, in a way that undoes itself unless somebody comes in anew
description:
  - Writes C(/etc/netplan/01-network-config.yaml) and applies it a moment later. A timer on the host puts back what was
    there, unless this module is called once more, with O(state=confirmed), over a connection that was made since.
options:
  name: {description: What people call the host, type: str, required: true}
  text: {description: The file; the filter C(citadel_netplan) makes it, type: str, required: true}
  state:
    description: C(looked_at) only says whether C(begun) would be refused.
    type: str
    choices: [looked_at, begun, confirmed]
    required: true
  patience: {description: Seconds until the host undoes what nobody confirmed, type: int, default: 60}
author: [citadel-llm]
"""

RETURN = r""" # """

EXAMPLES = r"""
- name: The network is as it shall be, for a moment
  citadel_network:
    name: "{{ inventory_hostname }}"
    text: "{{ host_network | citadel_netplan(ansible_host) }}"
    state: begun
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "text": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["looked_at", "begun", "confirmed"], "required": True},
            "patience": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given, network = module.params, Network()
    if said := network.refusal(given["text"]):
        module.fail_json(msg=f"{given['name']} {said}")
    try:
        changed = given["state"] == "begun" and network.differs(given["text"])
        before = network.file.read_text() if network.file.is_file() else ""
        if given["state"] == "confirmed":
            network.confirm()
        elif changed and not module.check_mode:
            network.begin(given["text"], given["patience"])
    except (NetworkError, OSError) as error:
        module.fail_json(msg=f"{given['name']} {error}")
    module.exit_json(changed=changed, diff={"before": before, "after": given["text"] if changed else before})


if __name__ == "__main__":
    main()
