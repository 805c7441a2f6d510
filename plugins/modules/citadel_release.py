#!/usr/bin/python
"""Stage a release on a host, and say what its activation would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.release.diff import differences
from ansible.module_utils.citadel.release.failure import RefusedError
from ansible.module_utils.citadel.release.history import GOOD, Histories
from ansible.module_utils.citadel.release.layout import Layout
from ansible.module_utils.citadel.release.plan import plan
from ansible.module_utils.citadel.release.server import now
from ansible.module_utils.citadel.release.services import listening
from ansible.module_utils.citadel.release.stage import Wish, manifest_of, stage
from ansible.module_utils.citadel.release.survey import survey
from ansible.module_utils.citadel.release.systemd import Systemctl

DOCUMENTATION = r"""
module: citadel_release
short_description: Stage an immutable release and plan its activation
description:
  - Writes a release below C(/opt/citadel/releases) in one call, touching no service; equal content once.
  - Says what an activation would change, start, restart and stop, and for how long. In check mode that is all it
    does, on a host where nothing is installed too, since the module brings everything that it needs.
options:
  files:
    description: Every file of the release, as path inside of it and text.
    type: dict
    required: true
  environments:
    description: Environments that the release runs with, as name and absolute path.
    type: dict
    default: {}
  models:
    description: Model revisions that the release serves, as name and a dict of C(revision) and C(path).
    type: dict
    default: {}
  source:
    description: Where the content comes from, as C(revision) and C(dirty).
    type: dict
    default: {}
  who:
    description: Who deploys, for the manifest and for whoever meets the lock.
    type: str
    default: ""
  root:
    description: Folder that stands for C(/); for tests.
    type: path
    default: /
author:
  - Citadel
"""

EXAMPLES = r"""
- name: Stage the release
  citadel_release:
    files: "{{ release_files }}"
    environments: "{{ release_environments }}"
    models: "{{ release_models }}"
"""

RETURN = r"""
release:
  description: The id of the release.
  returned: always
  type: str
plan:
  description: What its activation would do.
  returned: always
  type: dict
steps:
  description: The steps of its activation, as the journal will name them.
  returned: always
  type: list
  elements: str
summary:
  description: The plan as lines for people.
  returned: always
  type: list
  elements: str
activates:
  description: Whether there is anything to do for an activation.
  returned: always
  type: bool
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "required": True},
            "environments": {"type": "dict", "default": {}},
            "models": {"type": "dict", "default": {}},
            "source": {"type": "dict", "default": {}},
            "who": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**_stage(module.params, module.check_mode))
    except RefusedError as refusal:
        module.fail_json(msg=str(refusal))


def _stage(wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    layout = Layout(Path(wanted["root"]))
    keys = ("files", "environments", "models", "source", "who")
    wish = Wish(**{key: wanted[key] for key in keys}, at=now())
    live = survey(layout, Systemctl(), units=True)
    manifest = manifest_of(layout, wish, live)
    todo = plan(manifest, live, listening(wish.files))
    before = layout.release(live.release) if live.release else None
    # Read before staging: afterwards the diff would compare the release with itself.
    diff = differences(todo, wish.files, before)
    missing = not layout.release(manifest.id).is_dir()
    notes: list[str] = []
    staged = missing if check_mode else stage(layout, wish, manifest, notes.append)
    return {
        "changed": staged,
        "release": manifest.id,
        "previous": live.release,
        "plan": todo.as_dict(),
        "steps": todo.steps,
        "summary": [*todo.lines(), *notes],
        "activates": todo.changes or Histories(layout).of(manifest.id).state != GOOD,
        "diff": diff if staged else [],
    }


if __name__ == "__main__":
    main()
