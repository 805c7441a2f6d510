#!/usr/bin/python
"""Start a transaction on the host, and follow it to its end."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.release.failure import RefusedError
from ansible.module_utils.citadel.release.layout import Layout
from ansible.module_utils.citadel.release.unit import Request, begin, follow

DOCUMENTATION = r"""
module: citadel_release_activation
short_description: Activate a staged release or go back to an earlier one
description:
  - Starts the transaction as a unit of its own on the host, so that it ends well without this module, its
    connection and the controller, and waits for its end.
options:
  act:
    description: What to do.
    type: str
    choices: [activate, rollback, recover]
    default: activate
  release:
    description: The release to make live; for a rollback, none means the good one before.
    type: str
    default: ""
  force:
    description: Even if the release is marked bad, or C(current) leads nowhere.
    type: bool
    default: false
  who:
    description: Who does it.
    type: str
    default: ""
  timeout:
    description: Seconds to follow the transaction. It goes on afterwards.
    type: int
    default: 7200
author:
  - Citadel
"""

EXAMPLES = r"""
- name: Activate the release
  citadel_release_activation:
    release: 0007-1a2b3c4d
"""

RETURN = r"""
outcome:
  description: How it ended, with steps, seconds and proof.
  returned: always
  type: dict
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "act": {"type": "str", "choices": ["activate", "rollback", "recover"], "default": "activate"},
            "release": {"type": "str", "default": ""},
            "force": {"type": "bool", "default": False},
            "who": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 7200},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    request = Request(wanted["act"], wanted["release"], wanted["force"], wanted["who"])
    if module.check_mode:
        module.exit_json(changed=True, outcome={"said": f"would {request.act} {request.release}".strip()})
    try:
        result = begin(Layout(), request)
        outcome = follow(result, wanted["timeout"])
    except RefusedError as refusal:
        module.fail_json(msg=str(refusal))
    if not outcome["good"]:
        module.fail_json(msg=outcome["said"], outcome=outcome)
    module.exit_json(changed=outcome["outcome"] in {"committed", "finished"}, outcome=outcome)


if __name__ == "__main__":
    main()
