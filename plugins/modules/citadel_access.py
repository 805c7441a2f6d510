#!/usr/bin/python
"""Set who may reach a host, in a way that undoes itself unless a new connection confirms it."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.access import Policy
from ansible.module_utils.citadel.access_host import ChangeError, Host, operator
from ansible.module_utils.citadel.declarations import DeclarationError
from ansible.module_utils.citadel.kinds import CannotError, NotHereError

DOCUMENTATION = r"""
module: citadel_access
short_description: Set who may reach a host, in a way that undoes itself unless a new connection confirms it
description:
  - Writes a drop-in for sshd and, in production, a table of nftables and the unit that loads it. A timer on the host
    puts everything back, unless this module is called once more over a connection that was made later.
  - Refuses in words, before anything is changed, what would shut out whoever called it.
options:
  name: {description: What people call the host, type: str, required: true}
  policy: {description: Who may reach what; the filter C(citadel_access) makes it, type: dict, required: true}
  state:
    description: C(looked_at) only says whether C(present) would be refused; C(absent) takes everything away.
    type: str
    choices: [present, absent, looked_at]
    default: present
  patience: {description: Seconds until the host undoes what nobody confirmed, type: int, default: 120}
  confirms: {description: The connection that a change was made over; it is kept, type: str}
author: [citadel-llm]
"""

RETURN = r"""
connection:
  description: The connection that the change was made over; empty where it is none of ssh.
  returned: success
  type: str
told: {description: 'What changed, in lines for people', returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Set who may come in, for a moment
  citadel_access:
    name: "{{ inventory_hostname }}"
    policy: "{{ access_policy }}"
  register: access__change
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "policy": {"type": "dict", "required": True},
            "state": {"type": "str", "choices": ["present", "absent", "looked_at"], "default": "present"},
            "patience": {"type": "int", "default": 120},
            "confirms": {"type": "str"},
        },
        supports_check_mode=True,
    )
    given = module.params
    host, who = Host(given["name"]), operator()
    policy = None if given["state"] == "absent" else Policy.loaded(given["policy"])
    try:
        if given["confirms"] is not None:
            host.confirm(given["confirms"], who, policy)
            module.exit_json(changed=False, connection=who.connection if who else "")
        said = host.refusal(policy, who) if policy else []
        if said:
            module.fail_json(msg="\n".join(f"{host.name} {sentence}" for sentence in said))
        if given["state"] == "looked_at":
            module.exit_json(changed=False, connection="")
        found = host.set(policy, given["patience"], act=not module.check_mode)
    except (ChangeError, DeclarationError, CannotError, NotHereError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=found.changed,
        told=found.told,
        connection=who.connection if who else "",
        diff={
            "before": "".join(f"{line}\n" for line in found.before),
            "after": "".join(f"{line}\n" for line in found.after),
        },
    )


if __name__ == "__main__":
    main()
