"""The gateway's modules compiled beside their source, by the environment that will run them.

What is compiled follows from the source and the environment, so a release that shares both with another takes it from
there: most deployments compile nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from .failure import RefusedError
from .layout import Layout
from .manifest import Manifest, read_manifest

FOLDER = "compiled"
_SOURCE = "gateway/"
_PATIENCE = 900.0

Run = Callable[[list[str], dict[str, str]], "subprocess.CompletedProcess[str]"]


def compile_gateway(layout: Layout, release: Path, manifest: Manifest, run: Run | None = None) -> None:
    """Make `compiled/` in a release that is being staged. Without a compiler in the environment there is none."""
    environment = manifest.environments.get("gateway")
    if not environment or not _source(manifest):
        return
    programs = layout.inside(environment) / "bin"
    if not (programs / "mypyc").exists():
        return
    folder = release / FOLDER
    like = _same(layout, release, manifest)
    if like is not None:
        shutil.copytree(like / FOLDER, folder)
        return
    # models that serve meanwhile come first
    command = ["nice", "-n", "19", str(programs / "python"), "-B", "-m", "citadel_gateway.compiled", str(folder)]
    done = (run or _run)(command, {"PYTHONPATH": str(release / "gateway")})
    if done.returncode or not folder.is_dir():
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RefusedError(
            f"The gateway could not be compiled with {programs / 'mypyc'}: {' '.join(said)} Nothing was changed."
        )


def gateway_paths(release: Path) -> dict[str, str]:
    """Where a release's gateway is found, as its unit says it too."""
    return {"PYTHONPATH": f"{release / FOLDER}:{release / 'gateway'}"}


def _same(layout: Layout, release: Path, manifest: Manifest) -> Path | None:
    """A release of the same source for the same environment."""
    for other in sorted(layout.releases.iterdir(), reverse=True):
        if other == release or other.name.startswith(".") or not (other / FOLDER).is_dir():
            continue
        try:
            found = read_manifest(other)
        except RefusedError:
            continue
        if (
            _source(found) == _source(manifest)
            and found.environments.get("gateway") == manifest.environments["gateway"]
        ):
            return other
    return None


def _source(manifest: Manifest) -> dict[str, str]:
    return {path: digest for path, digest in manifest.files.items() if path.startswith(_SOURCE)}


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
        timeout=_PATIENCE,
    )
