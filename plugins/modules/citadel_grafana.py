#!/usr/bin/python
"""Keep this product's dashboards in Grafana by its HTTP API."""

from __future__ import annotations

import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.grafana import Grafana, GrafanaError, bring_about

DOCUMENTATION = r"""
module: citadel_grafana
short_description: Keep this product's dashboards in Grafana by its HTTP API
description:
  - Dashboards are told apart by uid and by our tag; one of somebody else under our uid is refused.
  - Writes on a difference only, and puts back what it changed when Grafana refuses one of them.
options:
  url: {description: Where Grafana answers, type: str, required: true}
  token: {description: A token of a service account that may edit folders and dashboards, type: str, required: true}
  folder: {description: The title of the folder, type: str, required: true}
  dashboards: {description: 'The text of each, by the name of its file; none removes ours', type: dict, default: {}}
author: [citadel-llm]
"""

RETURN = r"""
told: {description: What changed, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Dashboards are there
  citadel_grafana:
    url: http://127.0.0.1:3000
    token: "{{ lookup('ansible.builtin.file', token_file) }}"
    folder: AI Infrastructure
    dashboards: {one.json: "{{ lookup('ansible.builtin.file', 'one.json') }}"}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "folder": {"type": "str", "required": True},
            "dashboards": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    wanted = [json.loads(text) for text in given["dashboards"].values()]
    grafana = Grafana(given["url"].rstrip("/"), given["token"].strip())
    try:
        told = bring_about(grafana, given["folder"], wanted, act=not module.check_mode)
    except GrafanaError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(told), told=told)


if __name__ == "__main__":
    main()
