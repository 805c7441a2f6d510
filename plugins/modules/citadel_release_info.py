#!/usr/bin/python
"""List the releases on a host."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.release.failure import RefusedError
from ansible.module_utils.citadel.release.layout import Layout
from ansible.module_utils.citadel.release.server import now
from ansible.module_utils.citadel.release.table import rows, table

DOCUMENTATION = r"""
module: citadel_release_info
short_description: List the releases on a host
description:
  - Every release with its state, age, source, what changed and its proof; which one is live.
options:
  root:
    description: Folder that stands for C(/); for tests.
    type: path
    default: /
author:
  - Citadel
"""

EXAMPLES = r"""
- name: See which releases there are
  citadel_release_info:
"""

RETURN = r"""
releases:
  description: One entry for each release, newest first.
  returned: always
  type: list
  elements: dict
table:
  description: The same for people, one line each.
  returned: always
  type: list
  elements: str
"""


def main() -> None:
    module = AnsibleModule(argument_spec={"root": {"type": "path", "default": "/"}}, supports_check_mode=True)
    try:
        entries = rows(Layout(Path(module.params["root"])))
    except RefusedError as refusal:
        module.fail_json(msg=str(refusal))
    module.exit_json(changed=False, releases=entries, table=table(entries, now()).splitlines())


if __name__ == "__main__":
    main()
