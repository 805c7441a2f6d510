#!/usr/bin/python
"""Puts models into the store; see plugins/module_utils/citadel/store.py."""

from __future__ import annotations

import syslog
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel import fetch, safetensors, sources, store

DOCUMENTATION = r"""
module: citadel_model
short_description: Puts the pinned revisions of models into the store, every file checked
description:
  - Fetches what is missing or damaged from a hub, a mirror, a directory or an archive, in parallel and resumable.
    What is in the store is checked by size and time of change, and read again where those differ, or if asked.
options:
  models: {description: 'Each model with repository, revision and source', type: dict, required: true}
  root: {description: The store, type: path, required: true}
  deep: {description: Read every file again and compare checksums, type: bool, default: false}
author: [citadel-llm]
"""

RETURN = r"""
models: {description: 'Path, revision and digest of each model', returned: success, type: dict}
fetched: {description: What was fetched and why, returned: success, type: list, elements: str}
"""

EXAMPLES = r"""
- name: Put the models into the store
  citadel_model:
    root: /opt/models
    models:
      phi-3-mini:
        repository: microsoft/Phi-3-mini-4k-instruct
        revision: 0a67737cc96d2554230f90338b163bc6380a2a85
        source: {kind: hub}
"""

ARGUMENTS: dict[str, Any] = {
    "models": {"type": "dict", "required": True},
    "root": {"type": "path", "required": True},
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


def tell(line: str) -> None:
    """A line in the journal. Not by `module.log`: Ansible is told not to log there what it does itself."""
    syslog.openlog("ansible-citadel_model")
    syslog.syslog(line)


def run(module: AnsibleModule) -> dict[str, Any]:
    root = Path(module.params["root"])
    fetched, found = [], {}
    for name, model in module.params["models"].items():
        revision = str(model["revision"])
        manifest, reason = stored(root / name / revision, module.params["deep"])
        if manifest is None:
            source = sources.source_of(name, model["repository"], revision, model["source"])
            fetched.append(f"{name} {revision}: {reason}")
            manifest = {"files": {}, "revision": revision}
            if not module.check_mode:
                _, manifest = fetch.fetch(name, source, revision, root, tell)
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
