#!/usr/bin/python
"""Start a transaction on the host, and follow it to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel.release.activation import Request, begin, follow, follow_step
from ansible.module_utils.citadel.release.failure import RefusedError
from ansible.module_utils.citadel.release.layout import Layout

DOCUMENTATION = r"""
module: citadel_release_activation
short_description: Activate a staged release or go back to an earlier one
description:
  - Starts the transaction as a unit of its own on the host, so that it ends well without this module, its
    connection and the controller.
  - Then follows it, step by step or to its end.
options:
  act:
    description: What to do.
    type: str
    choices: [activate, rollback, recover, follow]
    default: activate
  release:
    description: The release to make live; for a rollback, none means the good one before.
    type: str
    default: ""
  force:
    description: Even if the release is marked bad, or C(current) leads nowhere.
    type: bool
    default: false
  who:
    description: Who does it.
    type: str
    default: ""
  keep:
    description: Good releases that stay on the host.
    type: int
    default: 5
  keep_bad:
    description: Other releases that stay for study.
    type: int
    default: 2
  keep_revisions:
    description: Revisions of each model that stay, after an activation.
    type: int
    default: 2
  transaction:
    description: What a start returned, to follow that one.
    type: path
  step:
    description: Return as soon as this step has ended, one way or the other.
    type: str
  wait:
    description: Stay until the end. Without it, a start returns at once.
    type: bool
    default: true
  timeout:
    description: Seconds to follow the transaction. It goes on afterwards.
    type: int
    default: 7200
author:
  - Citadel
"""

EXAMPLES = r"""
- name: Activate the release
  citadel_release_activation:
    release: 0007-1a2b3c4d
"""

RETURN = r"""
outcome:
  description: How it ended, with steps, seconds and proof.
  returned: when the end was waited for
  type: dict
evidence:
  description: The report of the transaction, as names of files and their text.
  returned: when the end was waited for
  type: dict
transaction:
  description: What to follow.
  returned: when a start did not wait
  type: str
seconds:
  description: How long the step took; nothing if it was not reached.
  returned: when a step was followed
  type: float
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "act": {"type": "str", "choices": ["activate", "rollback", "recover", "follow"], "default": "activate"},
            "release": {"type": "str", "default": ""},
            "force": {"type": "bool", "default": False},
            "who": {"type": "str", "default": ""},
            "keep": {"type": "int", "default": 5},
            "keep_bad": {"type": "int", "default": 2},
            "keep_revisions": {"type": "int", "default": 2},
            "transaction": {"type": "path"},
            "step": {"type": "str"},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 7200},
        },
        required_if=[("act", "follow", ["transaction"]), ("act", "activate", ["release"])],
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        module.exit_json(**_act(wanted, module.check_mode))
    except RefusedError as refusal:
        module.fail_json(msg=str(refusal))
    except NotActivatedError as failure:
        module.fail_json(msg=failure.outcome["said"], outcome=failure.outcome, evidence=_evidence(failure.outcome))


class NotActivatedError(Exception):
    """The transaction ended, and the release that was asked for is not live."""

    def __init__(self, outcome: dict[str, Any]) -> None:
        super().__init__(outcome["said"])
        self.outcome = outcome


def _act(wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    if check_mode:
        said = f"This would {wanted['act']} {wanted['release'] or 'the release before'}."
        return {"changed": True, "outcome": {"good": True, "said": said}}
    layout = Layout()
    if wanted["act"] == "follow":
        transaction = Path(wanted["transaction"])
    else:
        keys = ("act", "release", "force", "who", "keep", "keep_bad", "keep_revisions")
        request = Request(**{key: wanted[key] for key in keys})
        transaction = begin(layout, request)
    if not wanted["wait"]:
        return {"changed": True, "transaction": str(transaction)}
    if wanted["step"]:
        taken = follow_step(layout, transaction, wanted["step"], wanted["timeout"])
        return {"changed": False, "seconds": taken}
    outcome = follow(transaction, wanted["timeout"])
    if not outcome["good"]:
        raise NotActivatedError(outcome)
    changed = outcome["outcome"] in {"committed", "finished"}
    return {"changed": changed, "outcome": outcome, "evidence": _evidence(outcome)}


def _evidence(outcome: dict[str, Any]) -> dict[str, str]:
    """The report's files by name, so that they can be kept on the controller too."""
    report = Path(outcome.get("report") or "/nowhere.md")
    found = [path for path in (report, report.with_suffix(".json")) if path.is_file()]
    return {path.name: path.read_text(encoding="utf-8") for path in found}


if __name__ == "__main__":
    main()
