"""Filters of the role `release`: what only the controller can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError


def citadel_tree(folder: str, prefix: str) -> dict[str, str]:
    """The text of every file below a folder of the checkout, by its path inside of a release."""
    root = Path(folder)
    if not root.is_dir():
        raise AnsibleFilterError(f"{folder} is no folder of this checkout")
    return {
        f"{prefix}/{path.relative_to(root).as_posix()}": path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"citadel_tree": citadel_tree}
