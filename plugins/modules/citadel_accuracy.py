#!/usr/bin/python
"""Measures what the variants of a model cost in accuracy; see plugins/module_utils/citadel/measuring.py."""

from __future__ import annotations

import syslog
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel import catalogue, measuring, safetensors, serving, sources, store
from ansible.module_utils.citadel.settings import Settings
from ansible.module_utils.citadel.topology import Host

DOCUMENTATION = r"""
module: citadel_accuracy
short_description: Measures what the variants of a model cost in accuracy
description:
  - vLLM reads a text as the original and as each variant that the store has, one after the other and behind whatever
    serves. The report is written beside the variant's manifest. Stops and starts nothing.
options:
  model: {description: Whose variants, type: str, required: true}
  models: {description: 'Complete stanzas', type: dict, required: true}
  source: {description: Where models come from unless a stanza says otherwise, type: dict, default: {}}
  environment_path: {description: Folder of the vLLM environment, type: path, required: true}
  models_root: {description: The store, type: path, required: true}
  cache_root: {description: Where it may work, type: path, required: true}
  user: {description: Who runs vLLM, type: str, required: true}
  settings: {description: The keys of citadel.settings.Settings, type: dict, default: {}}
author: [citadel-llm]
"""

RETURN = r"""
lines: {description: A line for each variant that was measured, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Measure the variants
  citadel_accuracy:
    model: openchat-3.5
    models: "{{ citadel_models }}"
    environment_path: /opt/citadel/envs/vllm-0123456789ab
    models_root: /opt/models
    cache_root: /opt/cache/engines
    user: citadel-vllm
"""

ARGUMENTS: dict[str, Any] = {
    "model": {"type": "str", "required": True},
    "models": {"type": "dict", "required": True},
    "source": {"type": "dict", "default": {}},
    "environment_path": {"type": "path", "required": True},
    "models_root": {"type": "path", "required": True},
    "cache_root": {"type": "path", "required": True},
    "user": {"type": "str", "required": True},
    "settings": {"type": "dict", "default": {}},
}


def tell(line: str) -> None:
    """A line in the journal. Not by `module.log`: Ansible is told not to log there what it does itself."""
    syslog.openlog("ansible-citadel_accuracy")
    syslog.syslog(line)


def run(module: AnsibleModule) -> dict[str, Any]:
    given = module.params
    models = {model.name: model for model in catalogue.parse(given["models"])}
    if given["model"] not in models:
        raise measuring.MeasureError(
            f"MEASURE is {given['model']!r}: the catalogue has no such model; it has {', '.join(models)}"
        )
    environment = Path(given["environment_path"])
    if not (environment / "complete").exists():
        raise measuring.MeasureError(f"{environment} is missing or half built; deploy first, which builds it")
    settings = Settings.of(given["settings"])
    places = serving.Places(str(environment), given["models_root"], given["cache_root"], settings)
    root = Path(given["models_root"])
    bench = measuring.Bench(
        root, places, Host.here(root, zentorch=settings.zentorch), given["user"], given["source"], tell
    )
    lines = [f"{given['model']} {one.variant}: {one}" for one in measuring.measure(models[given["model"]], bench)]
    return {"changed": True, "lines": lines}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=False)
    try:
        module.exit_json(**run(module))
    except (
        measuring.MeasureError,
        catalogue.CatalogueError,
        sources.SourceError,
        sources.Interrupted,
        safetensors.WeightsError,
        store.StoreError,
        ValueError,
        OSError,
    ) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
