"""Staging: the release becomes a tree on the host, whole or not at all, while no service notices."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from .compiled import add_compiled, compiled_gateway
from .failure import RefusedError
from .files import flush_folder
from .history import BAD, GOOD, WITHDRAWN, Histories
from .layout import Layout
from .lock import locked
from .manifest import Manifest, content_digest, number_of, read_manifest, sha256, tampering
from .services import services_of
from .survey import Live

_DIRECT = re.compile(r"^(units|config|gateway|host|[a-z][a-z0-9_-]*)/")
# `env` is the environment of the models for who looks for one, and a release shows what lies outside of it
INSIDE = {Path("env") / part: f"vllm/{part}" for part in ("bin", "lib", "pyvenv.cfg")} | {
    Path("logs"): "../../logs",
    Path("data"): "../../data",
}


@dataclass(frozen=True)
class Wish:
    """What somebody wants to have as a release."""

    files: Mapping[str, str]
    environments: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    who: str = ""
    at: str = ""


def manifest_of(layout: Layout, wish: Wish, live: Live) -> Manifest:
    """The release that the wish amounts to: the live one, one that was staged and never judged, or the next
    number."""
    _validate(wish)
    files = {path: sha256(text.encode()) for path, text in sorted(wish.files.items())}
    environments = dict(sorted(wish.environments.items()))
    models = {name: dict(model) for name, model in sorted(wish.models.items())}
    digest = content_digest(files, environments, models)
    if live.manifest and live.manifest.digest == digest:
        return live.manifest
    return Manifest(
        id=_name(layout, digest),
        digest=digest,
        files=files,
        environments=environments,
        models=models,
        services=tuple(services_of(wish.files)),
        source=dict(wish.source),
        created={"by": wish.who, "at": wish.at},
    )


def stage(layout: Layout, wish: Wish, manifest: Manifest, tell: Callable[[str], None] = lambda line: None) -> bool:
    """Write the release unless it is there; True if it was not."""
    release = layout.release(manifest.id)
    uncompiled: list[str] = []
    with (
        compiled_gateway(layout, wish.files, manifest, uncompiled.append)
        if not release.is_dir()
        else nullcontext() as compiled,
        locked(layout, f"the staging of {manifest.id}", wish.who, wish.at),
    ):
        if release.is_dir():
            altered = tampering(release, read_manifest(release))
            if altered:
                raise RefusedError(
                    f"Release {manifest.id} on the host was altered: {'; '.join(altered[:5])}. "
                    f"Remove {release} if it is not live, and deploy again."
                )
            return False
        aside = layout.releases / f".{manifest.id}.new"
        try:
            _write(aside, wish, manifest)
            if compiled is not None:
                add_compiled(aside, compiled)
            _flush(aside)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise RefusedError(
                    f"No room for release {manifest.id} in {layout.releases}: {error.strerror}. Nothing was changed."
                ) from error
            raise
        aside.replace(release)
        flush_folder(layout.releases)
        _remember(layout, manifest, uncompiled)
    for line in uncompiled:
        tell(line)
    return True


def _remember(layout: Layout, manifest: Manifest, uncompiled: list[str]) -> None:
    """Why the gateway runs from its source, for the report; a full disk keeps nobody from deploying for it."""
    if uncompiled:
        histories = Histories(layout)
        with suppress(OSError):
            histories.write(replace(histories.of(manifest.id), uncompiled=uncompiled[0]))


def _name(layout: Layout, digest: str) -> str:
    histories = Histories(layout)
    known = histories.all()
    for history in reversed(known):
        # Judged releases keep their verdict; the same content deployed again is a new attempt.
        if history.id.endswith(f"-{digest[:8]}") and history.state not in {BAD, GOOD, WITHDRAWN}:
            return history.id
    number = 1 + max([number_of(history.id) for history in known] + [_highest(layout)])
    return f"{number:04d}-{digest[:8]}"


def _highest(layout: Layout) -> int:
    """Numbers of collected releases are not given again while their journals name them."""
    if not layout.journals.is_dir():
        return 0
    return max((number_of(path.stem.partition("-")[2]) for path in layout.journals.glob("*.jsonl")), default=0)


def _write(aside: Path, wish: Wish, manifest: Manifest) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True, mode=0o755)
    for path, text in {**wish.files, "manifest.json": manifest.text()}.items():
        target = aside / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="")
    (aside / "env").mkdir(exist_ok=True)
    for name, environment in manifest.environments.items():
        (aside / "env" / name).symlink_to(environment)
    for place, lead in INSIDE.items():
        if place.parent.name != "env" or "vllm" in manifest.environments:
            (aside / place).symlink_to(lead)


def _flush(aside: Path) -> None:
    """Everything is on the disk before the release has its name, and nobody writes to it any more."""
    for path in [path for path in aside.rglob("*") if not path.is_symlink()]:
        if path.is_dir():
            path.chmod(0o755)
            flush_folder(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            path.chmod(0o555 if path.suffix == ".sh" else 0o444)
    flush_folder(aside)


def _validate(wish: Wish) -> None:
    for path in wish.files:
        parts = PurePosixPath(path).parts
        if not _DIRECT.match(path) or ".." in parts or path != str(PurePosixPath(path)) or path == "manifest.json":
            raise RefusedError(
                f"A release cannot hold a file at {path!r}: use a path inside of units/, config/, gateway/ or host/."
            )
    for name, environment in wish.environments.items():
        if not environment.startswith("/"):
            raise RefusedError(
                f"Environment {name} is at {environment!r}: give an absolute path that ends in its digest."
            )
    for name, model in wish.models.items():
        missing = [key for key in ("revision", "path") if not model.get(key)]
        if missing:
            raise RefusedError(f"Model {name} has no {' and no '.join(missing)}: a release names both.")
