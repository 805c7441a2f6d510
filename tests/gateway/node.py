"""Scripts with OpenAI's SDK for Node."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

NODE_SDK = "openai@7.57.0"
CACHE = Path(__file__).parents[2] / ".cache" / "node-openai"


async def printed(name: str, **variables: str) -> Any:
    """What the script of that name, beside this file, prints."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed, so the SDK for Node cannot be tried")
    if not (CACHE / "node_modules" / "openai").is_dir():
        await _run(npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(CACHE), NODE_SDK)
    script = CACHE / name
    await asyncio.to_thread(shutil.copy, Path(__file__).with_name(name), script)
    return json.loads(await _run(node, str(script), **variables))


async def _run(*words: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *words,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    return output.decode()
