"""Every command that docs/operations.md and docs/quick-reference.md tell people to type, typed in their order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from testinfra.host import Host

from lab.settings import ROOT

DOCUMENTS = ("operations.md", "quick-reference.md")
PATIENCE = 900
INTERRUPTED = 124
GLANCE = 4  # seconds for a command that never ends


@dataclass(frozen=True)
class Block:
    where: str
    commands: str
    status: int
    patterns: tuple[str, ...]
    follows: bool


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        where = f"{path.name}:{text.count(chr(10), 0, match.start()) + 1}"
        assert match[1] == "sh", f"{where}: a block of an operator's document is `sh`"
        lines = match[2].splitlines()
        told = {
            key: [line.removeprefix(f"# {key}").strip() for line in lines if line.startswith(f"# {key}")]
            for key in ("shows", "exits", "follows")
        }
        # bash goes on after `! command`, so what is written like that could never fail
        assert not any(line.startswith("!") for line in lines), where
        status = INTERRUPTED if told["follows"] else int((told["exits"] or ["0"])[0])
        found.append(Block(where, match[2], status, tuple(told["shows"]), bool(told["follows"])))
    return found


CUT = [block for name in DOCUMENTS for block in blocks(ROOT / "docs" / name)]


@pytest.mark.parametrize("block", CUT, ids=[block.where for block in CUT])
def test_the_runbook_says_what_happens(llm: Host, block: Block) -> None:
    seconds = GLANCE if block.follows else PATIENCE
    done = llm.run("sudo -n timeout %s bash -euo pipefail -c %s 2>&1", str(seconds), block.commands)
    told = f"{block.where}: status {done.rc}, and it said:\n{done.stdout[-3000:]}"
    assert done.rc == block.status, told
    for pattern in block.patterns:
        assert re.search(pattern, done.stdout, re.MULTILINE), f"no {pattern!r} in {told}"


def test_no_block_was_missed() -> None:
    fences = sum((ROOT / "docs" / name).read_text().count("\n```") for name in DOCUMENTS)
    assert len(CUT) == fences / 2 > 50
