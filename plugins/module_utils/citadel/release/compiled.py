"""The gateway's modules compiled beside their source, by the environment that will run them.

What is compiled follows from the source and the environment, so a release that shares both with another takes it from
there: most deployments compile nothing. It is no part of the release's digest, so it has digests of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .failure import RefusedError
from .layout import Layout
from .manifest import COMPILED, COMPILED_DIGESTS, Manifest, digests_of, read_manifest, tampering

_SOURCE = "gateway/"
_PATIENCE = 900.0

Run = Callable[[list[str], dict[str, str]], "subprocess.CompletedProcess[str]"]


def gateway_paths(release: Path) -> dict[str, str]:
    """Where a release's gateway is found, as its unit says it too."""
    return {"PYTHONPATH": f"{release / COMPILED}:{release / 'gateway'}"}


@contextlib.contextmanager
def compiled_gateway(
    layout: Layout, files: Mapping[str, str], manifest: Manifest, tell: Callable[[str], None]
) -> Iterator[Path | None]:
    """A folder with the compiled gateway of a release to be, for as long as it is staged; None if its environment has
    no compiler, or that failed, which is told: the source serves as well. Nothing is locked meanwhile: a rollback need
    not wait for a compiler."""
    environment = manifest.environments.get("gateway")
    source = {path: text for path, text in files.items() if path.startswith(_SOURCE)}
    if not environment or not source or not (layout.inside(environment) / "bin" / "mypyc").exists():
        yield None
        return
    like = _same(layout, manifest)
    if like is not None:
        yield like / COMPILED
        return
    with tempfile.TemporaryDirectory(prefix="citadel-compile-") as name:
        for path, text in source.items():
            target = Path(name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="")
        yield _compile(layout.inside(environment) / "bin", Path(name), tell)


def add_compiled(release: Path, folder: Path) -> None:
    """Put it into a release that is being written, and write down what it was."""
    shutil.copytree(folder, release / COMPILED)
    (release / COMPILED_DIGESTS).write_text(json.dumps(digests_of(release / COMPILED), indent=1), encoding="utf-8")


def _compile(programs: Path, work: Path, tell: Callable[[str], None]) -> Path | None:
    folder = work / COMPILED
    # models that serve meanwhile come first; -P: what lies in the current folder is nobody's gateway
    command = ["nice", "-n", "19", str(programs / "python"), "-B", "-P", "-m", "citadel_gateway.compiled", str(folder)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(work / "gateway")},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
            timeout=_PATIENCE,
        )
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        failed = bool(done.returncode) or not folder.is_dir()
    except subprocess.TimeoutExpired:
        said, failed = [f"it was not done after {_PATIENCE:.0f} s"], True
    except OSError as error:
        said, failed = [str(error)], True
    if failed:
        tell(
            f"The gateway runs from its source, slower: it could not be compiled with {programs / 'mypyc'}: "
            f"{' '.join(said) or 'without a word'}"
        )
        return None
    return folder


def _same(layout: Layout, manifest: Manifest) -> Path | None:
    """An unaltered release of the same source for the same environment."""
    for other in sorted(layout.releases.iterdir(), reverse=True) if layout.releases.is_dir() else ():
        if other.name.startswith(".") or not (other / COMPILED).is_dir():
            continue
        try:
            found = read_manifest(other)
        except RefusedError:
            continue
        alike = found.environments.get("gateway") == manifest.environments["gateway"]
        if alike and _source(found) == _source(manifest) and not tampering(other, found):
            return other
    return None


def _source(manifest: Manifest) -> dict[str, str]:
    return {path: digest for path, digest in manifest.files.items() if path.startswith(_SOURCE)}
