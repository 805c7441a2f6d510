#!/usr/bin/python
"""Plans the capacity of a host for the catalogue; see plugins/module_utils/citadel/capacity.py."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel import capacity, catalogue, needs, observed, safetensors, serving
from ansible.module_utils.citadel.placement import Settings
from ansible.module_utils.citadel.topology import GIB, Host

DOCUMENTATION = r"""
module: citadel_model_plan
short_description: Plans which model gets which memory and cores of this host, and refuses what cannot fit
description:
  - Checks the catalogue, reads memory, NUMA nodes, cores, instruction set and disk of the host, and gives each
    instance its limits. Changes nothing.
options:
  models: {description: The stanzas, type: dict, required: true}
  defaults: {description: What a stanza has when it does not say, type: dict, default: {}}
  overrides: {description: What this inventory says differently, type: dict, default: {}}
  taken_ports: {description: 'Ports of other services, as port: name', type: dict, default: {}}
  source: {description: Where models come from unless a stanza says otherwise, type: dict, default: {}}
  environment_path: {description: Folder of the vLLM environment, type: path, required: true}
  models_root: {description: The store, type: path, required: true}
  cache_root: {description: Where compiled code is kept, type: path, required: true}
  state_root: {description: Where measured figures are kept, type: path, required: true}
  libraries: {description: Libraries to preload, type: list, elements: str, default: []}
  address: {description: Where the models listen, type: str, default: 127.0.0.1}
  drain: {description: Seconds that running requests get when a model is stopped, type: int, default: 30}
  log_level: {description: What vLLM writes, type: str, default: INFO}
  share_cores: {description: Put several models on the same cores, type: bool, default: false}
  reserve_gib: {description: 'Memory that is not for models; 0 is 8 GiB or 8 %', type: float, default: 0}
  hugepages: {description: 'Pages that the host reserves; -1 is what it has now', type: int, default: -1}
  tmpfs_gib: {description: Sum of the tmpfs caches, type: float, default: 0}
  revisions_kept: {description: Revisions of each model that the disk has to hold, type: int, default: 2}
  zentorch: {description: Whether zentorch is installed in the environment, type: bool, default: false}
author: [citadel-llm]
"""

RETURN = r"""
instances: {description: Each instance with its limits and vLLM options, returned: success, type: list, elements: dict}
models: {description: 'Each model with the variant, revision and source chosen', returned: success, type: dict}
report: {description: The sums as lines of text, returned: success, type: list, elements: str}
notes: {description: What is worth knowing, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Plan the capacity
  citadel_model_plan:
    models: "{{ citadel_models }}"
    environment_path: /opt/citadel/envs/vllm-0123456789ab
    models_root: /opt/models
    cache_root: /opt/cache
    state_root: /opt/citadel/state
"""

ARGUMENTS: dict[str, Any] = {
    "models": {"type": "dict", "required": True},
    "defaults": {"type": "dict", "default": {}},
    "overrides": {"type": "dict", "default": {}},
    "taken_ports": {"type": "dict", "default": {}},
    "source": {"type": "dict", "default": {}},
    "environment_path": {"type": "path", "required": True},
    "models_root": {"type": "path", "required": True},
    "cache_root": {"type": "path", "required": True},
    "state_root": {"type": "path", "required": True},
    "libraries": {"type": "list", "elements": "str", "default": []},
    "address": {"type": "str", "default": "127.0.0.1"},
    "drain": {"type": "int", "default": 30},
    "log_level": {"type": "str", "default": "INFO"},
    "share_cores": {"type": "bool", "default": False},
    "reserve_gib": {"type": "float", "default": 0},
    "hugepages": {"type": "int", "default": -1},
    "tmpfs_gib": {"type": "float", "default": 0},
    "revisions_kept": {"type": "int", "default": 2},
    "zentorch": {"type": "bool", "default": False},
}


def details_at_hand(models: list[catalogue.Model], root: Path, source: dict[str, Any]) -> dict[str, Any]:
    """What the files say, for the models whose files are on this host already: in the store or in a folder."""
    found = {}
    for model in models:
        for weights in model.weights.values():
            key = f"{model.name}/{weights.revision}"
            stored = root / model.name / weights.revision
            place = {**source, **weights.source}
            folder = Path(
                str(place.get("path", "")).replace("{model}", model.name).replace("{revision}", weights.revision)
            )
            with contextlib.suppress(safetensors.WeightsError):  # what is damaged there is fetched anew
                found[key] = safetensors.describe(stored)
            if key not in found and place.get("kind") == "directory" and folder.is_dir():
                found[key] = safetensors.describe(folder)
    return found


def run(module: AnsibleModule) -> dict[str, Any]:
    given = module.params
    stanzas = catalogue.complete(given["models"], given["defaults"], given["overrides"])
    models = catalogue.parse(stanzas, {int(port): name for port, name in given["taken_ports"].items()})
    root = Path(given["models_root"])
    host = Host.here(
        root,
        tmpfs=round(given["tmpfs_gib"] * GIB),
        hugepages=None if given["hugepages"] < 0 else given["hugepages"],
        zentorch=given["zentorch"],
    )
    settings = Settings(
        share_cores=given["share_cores"],
        reserve=round(given["reserve_gib"] * GIB),
        revisions_kept=given["revisions_kept"],
    )
    plan = capacity.plan(
        models,
        host,
        settings,
        needs.Knowledge(details_at_hand(models, root, given["source"]), observed.observe(Path(given["state_root"]))),
    )
    places = serving.Places(
        environment=given["environment_path"],
        models=given["models_root"],
        cache=given["cache_root"],
        libraries=tuple(given["libraries"]),
        address=given["address"],
        drain=given["drain"],
        log_level=given["log_level"],
    )
    instances = serving.instances(plan.placed, places)
    chosen = {}
    for place in plan.placed:
        weights = place.need.model.weights[place.need.variant]
        chosen[place.need.model.name] = {
            "variant": weights.variant,
            "repository": weights.repository,
            "revision": weights.revision,
            "source": {**given["source"], **weights.source},
        }
    return {
        "changed": False,
        "instances": instances,
        "nodes": len(host.nodes),
        "models": chosen,
        "report": plan.report().splitlines(),
        "notes": list(plan.notes),
    }


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (catalogue.CatalogueError, capacity.DoesNotFit, safetensors.WeightsError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
