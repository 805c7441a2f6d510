#!/usr/bin/python
"""Puts models into the store; see plugins/module_utils/citadel/store.py."""

from __future__ import annotations

import syslog
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel import fetch, making, safetensors, sources, store

DOCUMENTATION = r"""
module: citadel_model
short_description: Puts the pinned revisions of models into the store, every file checked
description:
  - Fetches what is missing or damaged from a hub, a mirror, a directory or an archive, in parallel and resumable.
    A variant that is made on the host is made of the revision that it names, which is fetched for that.
    What is in the store is checked by size and time of change, and read again where those differ, or if asked.
options:
  models: {description: 'Each model with repository, revision, source, variant, made_from', type: dict, required: true}
  environment: {description: The environment of vLLM, whose Python makes variants, type: path, required: true}
  root: {description: The store, type: path, required: true}
  deep: {description: Read every file again and compare checksums, type: bool, default: false}
author: [citadel-llm]
"""

RETURN = r"""
models: {description: 'Path, revision and digest of each model', returned: success, type: dict}
fetched: {description: What was fetched or made and why, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Put the models into the store
  citadel_model:
    root: /opt/models
    environment: /opt/citadel/envs/vllm-0123456789ab
    models:
      phi-3-mini:
        repository: microsoft/Phi-3-mini-4k-instruct
        revision: 0a67737cc96d2554230f90338b163bc6380a2a85
        source: {kind: hub}
"""

ARGUMENTS: dict[str, Any] = {
    "models": {"type": "dict", "required": True},
    "root": {"type": "path", "required": True},
    "environment": {"type": "path", "required": True},
    "deep": {"type": "bool", "default": False},
}


def stored(target: Path, deep: bool) -> tuple[dict[str, Any] | None, str]:
    """The manifest of a revision that can be trusted, or why there is none."""
    if not target.exists():
        return None, "not in the store"
    try:
        return store.verify(target, deep), ""
    except store.StoreError as problem:
        return None, str(problem)


def made(target: Path, base: Path, deep: bool) -> tuple[dict[str, Any] | None, str]:
    """The same for a variant, which also has to be one of the files that the store has now."""
    manifest, reason = stored(target, deep)
    if manifest is not None:
        reason = making.stale(making.made_by(manifest, target), base)
    return (None if reason else manifest), reason


def tell(line: str) -> None:
    """A line in the journal. Not by `module.log`: Ansible is told not to log there what it does itself."""
    syslog.openlog("ansible-citadel_model")
    syslog.syslog(line)


class Filling:
    """The store while it is filled; in check mode it only says what it would do."""

    def __init__(self, module: AnsibleModule) -> None:
        self.root = Path(module.params["root"])
        self.deep, self.pretend = module.params["deep"], module.check_mode
        self.workshop = making.Workshop(Path(module.params["environment"]) / "bin" / "python", tell=tell)
        self.done: list[str] = []

    def fetched(self, name: str, model: dict[str, Any], revision: str) -> dict[str, Any]:
        manifest, reason = stored(self.root / name / revision, self.deep)
        if manifest is not None:
            return manifest
        source = sources.source_of(name, model["repository"], revision, model["source"])
        self.done.append(f"{name} {revision}: {reason}")
        if self.pretend:
            return {"files": {}, "revision": revision}
        _, manifest = fetch.fetch(name, source, revision, self.root, tell)
        return dict(manifest)

    def made(self, name: str, model: dict[str, Any], revision: str) -> dict[str, Any]:
        workshop = replace(self.workshop, accept_loss=bool(model.get("accept_accuracy_loss")))
        base = self.root / name / str(model["made_from"])
        manifest, reason = made(self.root / name / revision, base, self.deep)
        if manifest is not None:
            return manifest
        self.fetched(name, model, base.name)
        self.done.append(f"{name} {revision}: {reason}, made of {base.name}")
        if self.pretend:
            return {"files": {}, "revision": base.name}
        _, manifest = making.make(base, model["repository"], model["variant"], workshop)
        return dict(manifest)


def run(module: AnsibleModule) -> dict[str, Any]:
    filling, found = Filling(module), {}
    root, fetched = filling.root, filling.done
    for name, model in module.params["models"].items():
        revision = str(model["revision"])
        manifest = (filling.made if model.get("made_from") else filling.fetched)(name, model, revision)
        found[name] = {
            "path": str(root / name / revision),
            "revision": revision,
            "commit": manifest["revision"],
            "digest": store.digest_of(manifest) if manifest["files"] else "",
        }
    return {
        "changed": bool(fetched),
        "models": found,
        "fetched": fetched,
        "diff": {"before": "", "after": "".join(f"{line}\n" for line in fetched)},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (sources.SourceError, sources.Interrupted, store.StoreError, safetensors.WeightsError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
