"""What a release changes in rendered files, line by line, without anything that looks like a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .plan import Plan

SHOWN = ("config/", "units/")  # source code is reviewed where it is kept
_SECRET = re.compile(r"(?i)((?:^|[\s\"'_-])(?:password|passwd|secret|token|api_?key|private_?key)\"?\s*[:=]\s*)(\S.*)$")


def masked(text: str) -> str:
    return "\n".join(_SECRET.sub(r"\1(not shown)", line) for line in text.split("\n"))


def differences(plan: Plan, files: Mapping[str, str], live: Path | None) -> list[dict[str, str]]:
    """One entry for each rendered file that comes, goes or changes, as Ansible's --diff shows them."""
    entries = []
    for path in sorted({*plan.added, *plan.changed, *plan.removed}):
        if not path.startswith(SHOWN):
            continue
        before = _text(live / path) if live and path not in plan.added else ""
        after = files.get(path, "")
        header = {"before_header": f"live: {path}", "after_header": f"{plan.release}: {path}"}
        entries.append({**header, "before": masked(before), "after": masked(after)})
    return entries


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
