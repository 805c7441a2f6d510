"""The gateway's modules compiled beside their source, by the environment that will run them.

What is compiled follows from the source and the environment, and takes longer than all else of a staging: it is kept on
the host under the digest of both, so no source is compiled twice. It is no part of the release's digest, so it has
digests of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .layout import Layout
from .manifest import COMPILED, COMPILED_DIGESTS, Manifest, digests_of

_SOURCE = "gateway/"
_PATIENCE = 900.0
KEPT = 4  # results of as many sources stay, those that were used last


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
    entry = layout.compiled / _digest(layout.inside(environment), manifest)
    if _whole(entry):
        _used(entry)
        yield entry / COMPILED
        return
    with tempfile.TemporaryDirectory(prefix="citadel-compile-") as name:
        for path, text in source.items():
            target = Path(name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="")
        folder = _compile(layout.inside(environment) / "bin", Path(name), tell)
        if folder:
            _keep(folder, entry)
        yield folder


def add_compiled(release: Path, folder: Path) -> None:
    """Put it into a release that is being written, or where results are kept, and write down what it was."""
    shutil.copytree(folder, release / COMPILED)
    (release / COMPILED_DIGESTS).write_text(json.dumps(digests_of(release / COMPILED), indent=1), encoding="utf-8")


def _digest(environment: Path, manifest: Manifest) -> str:
    """Names the sources, the compiler (an environment's name is its packages' digest), and what it compiles for."""
    source = {path: digest for path, digest in manifest.files.items() if path.startswith(_SOURCE)}
    version = environment / "pyvenv.cfg"
    python = version.read_text(encoding="utf-8") if version.is_file() else ""
    parts = [source, environment.name, python, platform.machine(), platform.libc_ver()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _whole(entry: Path) -> bool:
    """Unaltered since it was kept: a power cut or a bad disk costs a compilation, never a gateway."""
    try:
        expected = json.loads((entry / COMPILED_DIGESTS).read_text(encoding="utf-8"))
        return bool(expected) and digests_of(entry / COMPILED) == expected
    except (OSError, ValueError):
        return False


def _used(entry: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(entry)


def _keep(folder: Path, entry: Path) -> None:
    """For the next release of this source, and no longer than others are used more. That there is no room for it is no
    reason to fail."""
    aside = entry.with_name(f".{entry.name}.{os.getpid()}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        aside.mkdir()
        add_compiled(aside, folder)
        shutil.rmtree(entry, ignore_errors=True)
        aside.rename(entry)
        _used(entry)
        kept = sorted(entry.parent.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)


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
