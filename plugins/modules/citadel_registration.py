#!/usr/bin/python
"""Put this product's targets, rules, routes and dashboards on a metrics server, or take them away, in one step."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.registration import RegistrationError, Wanted, bring_about

DOCUMENTATION = r"""
module: citadel_registration
short_description: Put this product's targets, rules, routes and dashboards on a metrics server
description:
  - Looks first and refuses what is somebody else's, checks with promtool and amtool on a copy, writes by rename what
    differs, reloads what has to read it, and puts everything back byte for byte when a check or a reload fails.
  - Check mode does all of it but the writing.
options:
  state: {description: 'C(absent) takes away all that is ours', type: str, choices: [present, absent], default: present}
  targets: {description: Text of the file of targets of each LLM server, type: dict, default: {}}
  targets_directory: {description: The folder for them, type: path, required: true}
  rules: {description: 'Text of the file of rules, beginning with our mark', type: str, default: ''}
  rules_directory: {description: The folder for it, type: path, required: true}
  prometheus:
    description:
      - Its C(config), C(unit), C(url) and C(promtool); C(edit) lets us put our job and rules into its configuration.
    type: dict
    required: true
  alertmanager: {description: 'Its C(config), C(unit), C(url) and C(amtool)', type: dict, required: true}
  routing:
    description: Entries for its C(routes), C(receivers) and C(inhibit_rules) as text; empty leaves its file alone.
    type: dict
    default: {}
  grafana:
    description:
      - Its C(unit), the folders C(provisioning) and C(dashboards_directory), the texts C(provider) and C(dashboards).
      - C(mode) is files, none, or auto, which is files where /etc/grafana is there.
    type: dict
    required: true
  patience: {description: Seconds in which Prometheus shall forget targets that are gone, type: float, default: 60}
author: [citadel-llm]
"""

RETURN = r"""
told: {description: What changed and what somebody has to know, returned: success, type: list, elements: str}
snippet: {description: What prometheus.yml lacks to read our files, returned: success, type: str}
read: {description: Whether it reads our files of targets, returned: success, type: bool}
"""

EXAMPLES = r"""
- name: Join the metrics server
  citadel_registration:
    targets: {llm-01: "{{ targets_text }}"}
    targets_directory: /etc/prometheus/targets.d
    rules: "{{ rules_text }}"
    rules_directory: /etc/prometheus/rules.d
    prometheus: {config: /etc/prometheus/prometheus.yml, unit: prometheus, url: "http://127.0.0.1:9090",
                 promtool: promtool, edit: false}
    alertmanager: {config: /etc/prometheus/alertmanager.yml, unit: prometheus-alertmanager,
                   url: "http://127.0.0.1:9093", amtool: amtool}
    grafana: {mode: none, unit: grafana-server, provisioning: /etc/grafana/provisioning/dashboards,
              dashboards_directory: /var/lib/grafana/dashboards/citadel-llm}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "targets": {"type": "dict", "default": {}},
            "targets_directory": {"type": "path", "required": True},
            "rules": {"type": "str", "default": ""},
            "rules_directory": {"type": "path", "required": True},
            "prometheus": {"type": "dict", "required": True},
            "alertmanager": {"type": "dict", "required": True},
            "routing": {"type": "dict", "default": {}},
            "grafana": {"type": "dict", "required": True},
            "patience": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    try:
        found = bring_about(Wanted.of(module.params), not module.check_mode, module.params["patience"])
    except (RegistrationError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=found.changed, told=found.told, snippet=found.snippet, read=found.read, diff=found.diff)


if __name__ == "__main__":
    main()
