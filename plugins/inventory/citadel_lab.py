"""Tells Ansible which lab is meant, from the same place as every verb: lab/settings.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.settings import USER, Lab, LabError

DOCUMENTATION = """
name: citadel_lab
short_description: the lab of this checkout
description: Names, addresses and places of the lab on this machine, and the hosts that it has besides hosts.yml.
options:
  plugin:
    description: the name of this plugin
    required: true
    choices: [citadel_lab]
"""


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]
    NAME = "citadel_lab"

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        try:
            lab = Lab.from_environment()
        except LabError as error:
            raise AnsibleParserError(str(error)) from error
        for name, value in {
            "lab_prefix": lab.prefix,
            "lab_network": lab.settings["LAB_NETWORK"],
            "lab_directory": str(lab.directory),
            "lab_sockets": str(lab.sockets),
            "lab_user": USER,
        }.items():
            inventory.set_variable("all", name, value)
        for host in lab.hosts:
            if host.name not in inventory.hosts:
                inventory.add_host(host.name, inventory.add_group(host.group))
                inventory.set_variable(host.name, "ansible_host", lab.address(host))
