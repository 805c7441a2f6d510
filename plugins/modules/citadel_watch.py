#!/usr/bin/python
"""Ask Prometheus which targets it reports as up."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.watch import PATIENCE, Watched, watch

DOCUMENTATION = r"""
module: citadel_watch
short_description: Ask Prometheus which targets it reports as up
description:
  - Waits until all of them are up and nothing else of their hosts is asked for, or for as long as C(patience) says, and
    returns what it found.
  - Never fails by itself. A server that is not watched yet serves all the same.
options:
  url:
    description: Where Prometheus answers, such as C(http://192.168.10.37:9090).
    type: str
    required: true
  targets:
    description: What it should scrape, as the contracts have it, with C(job), C(address), C(path) and C(labels).
    type: list
    elements: dict
    required: true
  patience:
    description: Seconds to wait for the first scrapes.
    type: float
    default: 90
author:
  - Citadel
"""

EXAMPLES = r"""
- name: Prometheus gets our figures
  citadel_watch:
    url: "{{ citadel_prometheus_url }}"
    targets: "{{ citadel_scraped_targets }}"
  register: targets_seen

- name: Say what it sees
  ansible.builtin.debug:
    msg: "| {{ targets_seen.said }}"
"""

RETURN = r"""
found:
  description: Targets that are up.
  returned: always
  type: list
  elements: str
missing:
  description: Targets that are not, or of which Prometheus does not know.
  returned: always
  type: list
  elements: str
others:
  description: What it asks these hosts for besides, which it should not.
  returned: always
  type: list
  elements: str
said:
  description: A sentence with the reason, as far as this host can find it.
  returned: always
  type: str
seconds:
  description: How long it was waited for.
  returned: always
  type: float
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "targets": {"type": "list", "elements": "dict", "required": True},
            "patience": {"type": "float", "default": PATIENCE},
        },
        supports_check_mode=True,
    )
    given = module.params
    targets = [Watched.of(target) for target in given["targets"]]
    module.exit_json(changed=False, **watch(given["url"].rstrip("/"), targets, given["patience"]).as_dict())


if __name__ == "__main__":
    main()
