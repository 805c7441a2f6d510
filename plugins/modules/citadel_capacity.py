#!/usr/bin/python
"""Plans the capacity of a host for the catalogue; see plugins/module_utils/citadel/capacity.py."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel import (
    accuracy,
    asking,
    capacity,
    catalogue,
    needs,
    observed,
    offering,
    safetensors,
    serving,
)
from ansible.module_utils.citadel.settings import Settings
from ansible.module_utils.citadel.topology import GIB, Host

DOCUMENTATION = r"""
module: citadel_capacity
short_description: Plans which model gets which memory and cores of this host, and refuses what cannot fit
description:
  - Checks the catalogue, reads memory, NUMA nodes, cores, instruction set and disk of the host, and gives each
    instance its limits. Changes nothing.
options:
  models: {description: 'Complete stanzas', type: dict, required: true}
  source: {description: Where models come from unless a stanza says otherwise, type: dict, default: {}}
  environment_path: {description: Folder of the vLLM environment, type: path, required: true}
  models_root: {description: The store, type: path, required: true}
  cache_root: {description: Where compiled code is kept, type: path, required: true}
  state_root: {description: Where measured figures are kept, type: path, required: true}
  settings: {description: The keys of citadel.settings.Settings, type: dict, default: {}}
author: [citadel-llm]
"""

RETURN = r"""
instances: {description: Each instance with its limits and vLLM options, returned: success, type: list, elements: dict}
models: {description: 'Each model with the variant, revision and source chosen', returned: success, type: dict}
settings: {description: 'The settings, with defaults for what was not said', returned: success, type: dict}
report: {description: The sums as lines of text, returned: success, type: list, elements: str}
hugepages: {description: 'How many the host shall reserve; -1 is what it has', returned: success, type: int}
notes: {description: What is worth knowing, returned: success, type: list, elements: str}
variants: {description: A line for each variant of each model, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Plan the capacity
  citadel_capacity:
    models: "{{ citadel_models }}"
    environment_path: /opt/citadel/envs/vllm-0123456789ab
    models_root: /opt/models
    cache_root: /opt/cache
    state_root: /opt/citadel/state
"""

ARGUMENTS: dict[str, Any] = {
    "models": {"type": "dict", "required": True},
    "source": {"type": "dict", "default": {}},
    "environment_path": {"type": "path", "required": True},
    "models_root": {"type": "path", "required": True},
    "cache_root": {"type": "path", "required": True},
    "state_root": {"type": "path", "required": True},
    "settings": {"type": "dict", "default": {}},
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
            if key in found or weights.made_from:
                continue
            if place.get("kind") == "directory" and folder.is_dir():
                found[key] = safetensors.describe(folder)
    return found


def run(module: AnsibleModule) -> dict[str, Any]:
    given = module.params
    models = catalogue.parse(given["models"])
    settings = Settings.of(given["settings"])
    root = Path(given["models_root"])
    host = Host.here(
        root,
        tmpfs=round(settings.tmpfs_gib * GIB),
        # those that are reserved only if they cost nothing are not counted before that is known
        hugepages=None if settings.asks_no_hugepages else max(settings.hugepages, 0),
        zentorch=settings.zentorch,
    )
    details = details_at_hand(models, root, given["source"])
    details |= asking.ask(models, given["source"], details)
    knowledge = needs.Knowledge(details, observed.observe(Path(given["state_root"])), accuracy.reports(models, root))
    plan = capacity.plan_beside_hugepages(models, host, settings, knowledge)
    places = serving.Places(
        environment=given["environment_path"],
        models=given["models_root"],
        cache=given["cache_root"],
        settings=settings,
    )
    instances = serving.instances(plan.placed, places)
    chosen: dict[str, dict[str, Any]] = {}
    for place in plan.placed:
        weights = place.need.model.weights[place.need.variant]
        chosen[place.need.model.name] = {
            "variant": weights.variant,
            "repository": weights.repository,
            "revision": weights.revision,
            "source": {**given["source"], **weights.source},
            "made_from": weights.made_from,
            "accept_accuracy_loss": place.need.model.accept_accuracy_loss,
        }
    return {
        "changed": False,
        "instances": instances,
        "nodes": len(host.nodes),
        "hugepages": -1 if settings.asks_no_hugepages else plan.host.hugepages // host.hugepage,
        "models": chosen,
        "settings": settings.as_dict(),
        "report": plan.report().splitlines(),
        "notes": list(plan.notes),
        "variants": list(
            offering.lines(models, host, knowledge, root, {n: one["variant"] for n, one in chosen.items()})
        ),
    }


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (catalogue.CatalogueError, capacity.DoesNotFit, safetensors.WeightsError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
