#!/usr/bin/python
"""Folders with their owners and modes, in one call."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.folders import Folder, FolderError, bring_about

DOCUMENTATION = r"""
module: citadel_folders
short_description: Folders with their owners and modes, in one call
description:
  - Makes what is missing and sets right what is otherwise. A loop of M(ansible.builtin.file) would ask the host once
    for each.
options:
  folders:
    description: Each folder, with its C(path), C(mode) as octal text and C(owner).
    type: list
    elements: dict
    required: true
  groups: {description: 'Group of each owner whose group has another name', type: dict, default: {}}
author: [citadel-llm]
"""

RETURN = r"""
changed_folders: {description: What was made or set right, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Folders are there
  citadel_folders:
    folders:
      - {path: /opt/citadel, mode: "0755", owner: root}
      - {path: /opt/citadel/keys, mode: "0700", owner: agent0}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "dict", "required": True},
            "groups": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    os.umask(0o022)
    try:
        wanted = [Folder.of(said, given["groups"]) for said in given["folders"]]
        before, after = bring_about(wanted, act=not module.check_mode)
    except (FolderError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(after),
        changed_folders=after,
        diff={"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)},
    )


if __name__ == "__main__":
    main()
