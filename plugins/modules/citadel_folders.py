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
    description: Path of each folder, with its C(mode) as octal text and C(owner), whose group has the same name.
    type: dict
    required: true
  owner: {description: Owner of those that name none, type: str, required: true}
  group: {description: Group of those that name no owner, type: str, required: true}
author: [citadel-llm]
"""

RETURN = r"""
changed_folders: {description: What was made or set right, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Folders are there
  citadel_folders:
    owner: agent0
    group: agent0
    folders:
      /opt/citadel: {mode: "0755", owner: root}
      /opt/citadel/keys: {mode: "0700"}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "dict", "required": True},
            "owner": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    os.umask(0o022)
    try:
        wanted = [Folder.of(path, said, given["owner"], given["group"]) for path, said in given["folders"].items()]
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
