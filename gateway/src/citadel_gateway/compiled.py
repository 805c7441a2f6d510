"""Compile the modules of the path with mypyc: the same source at half of the cost (docs/decisions/014).

    python -m citadel_gateway.compiled FOLDER

makes FOLDER a copy of the package with those modules compiled beside their source. Whoever puts it first in PYTHONPATH
runs them; nothing else knows the difference, and without it everything works as it is written.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent
# the stations and what they call for every request; what inherits from asyncio stays as it is
MODULES = (
    "admission",
    "answers",
    "bounds",
    "breaker",
    "budget",
    "cache",
    "envelope",
    "errors",
    "exchange",
    "identity",
    "limits",
    "protocol",
    "quarantine",
    "record",
    "relay",
    "reservation",
    "route",
    "routes",
    "sameness",
    "secured",
    "settlement",
    "spool",
    "sse",
    "step",
    "walk",
)


def compile_into(folder: Path) -> None:
    from mypyc.build import mypycify  # noqa: PLC0415 - what serves needs no compiler
    from setuptools import setup  # type: ignore[import-untyped]  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="citadel-gateway-") as name:
        work = Path(name)
        shutil.copytree(PACKAGE, work / "citadel_gateway", ignore=shutil.ignore_patterns("__pycache__"))
        os.chdir(work)  # mypy finds the package by the folder that it stands in
        files = [f"citadel_gateway/{module}.py" for module in MODULES]
        extensions = mypycify(["--ignore-missing-imports", *files], opt_level="1", debug_level="0")
        build = ["--quiet", "build_ext", "--inplace", "--parallel", "2"]
        setup(name="citadel-gateway", ext_modules=extensions, script_args=build)
        shutil.rmtree(work / "build")
        shutil.rmtree(work / ".mypy_cache", ignore_errors=True)
        os.chdir("/")
        shutil.copytree(work, folder)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    if folder.exists():
        print(f"{folder} exists already: give the path of a folder to make.", file=sys.stderr)
        return 2
    compile_into(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
