#!/usr/bin/python
"""Set what a role wants of a host, read it back, and declare it."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.declarations import DeclarationError, bring_about, item_of
from ansible.module_utils.citadel.kinds import CannotError

DOCUMENTATION = r"""
module: citadel_declare
short_description: Set what a role wants of a host, read it back, and declare it
description:
  - Sets the items that differ, reads each back from the real thing, and fails with a sentence for each that is still
    otherwise. Check mode tells what differs.
  - Keeps what was there before the first time, and puts it back when the owner has the item no longer.
  - Writes the items to C(/var/lib/citadel/declared/OWNER.json), where C(make drift) compares them later.
options:
  owner: {description: 'Whose items these are, such as the name of a role', type: str, required: true}
  items:
    description:
      - All that the owner sets, each with its C(kind), C(name), C(desired) and options of its kind; see
        plugins/module_utils/citadel/kinds.py.
      - Every item may have C(apply=false), which only compares it, and C(advice), a sentence for when it can't be had.
    type: list
    elements: dict
    default: []
  state: {description: 'C(absent) puts all of it back', type: str, choices: [present, absent], default: present}
author: [citadel-llm]
"""

RETURN = r"""
told: {description: 'What changed, and what is not this host''s to set', returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Kernel and ssh are as they shall be
  citadel_declare:
    owner: example
    items:
      - {kind: sysctl, name: vm.swappiness, desired: 1}
      - kind: file
        name: /etc/ssh/sshd_config.d/10-example.conf
        desired: content
        content: "PermitRootLogin no\n"
        validate: [sshd, -t, -f, "%s"]
        then: [[systemctl, try-reload-or-restart, ssh.service]]
      - {kind: command, name: PermitRootLogin, desired: "no", read: [sshd, -T], word: permitrootlogin}
      - {kind: unit, name: ssh.service, desired: enabled active}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "required": True},
            "items": {"type": "list", "elements": "dict", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    given = module.params
    os.umask(0o022)
    try:
        items = [item_of(said) for said in given["items"]] if given["state"] == "present" else []
        result = bring_about(given["owner"], items, act=not module.check_mode)
    except (DeclarationError, CannotError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=result.changed,
        told=result.told,
        diff={
            "before": "".join(f"{line}\n" for line in result.before),
            "after": "".join(f"{line}\n" for line in result.after),
        },
    )


if __name__ == "__main__":
    main()
