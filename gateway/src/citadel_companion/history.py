"""What a host runs with and ran with before, setting by setting: each release's files, compared with the one before."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Depends, Query

from citadel_companion.services import Asker, Services, administrator
from citadel_companion.store import Store, Version

logger = logging.getLogger("citadel_companion")

MOST = 1000


def settings_of(release: Path, since: datetime) -> tuple[Version, dict[str, Any]]:
    """Each setting by its path, as `gateway.server.drain` or `models.phi-3-mini.max-model-len`."""
    manifest = json.loads((release / "manifest.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for file in ("gateway", "companion"):
        found |= flat(file, _yaml(release / "config" / f"{file}.yml"))
    for path in sorted((release / "config" / "models").glob("*")):
        told = _yaml(path) if path.suffix == ".yml" else {"environment": dict(_assignments(path))}
        found |= flat(f"models.{path.stem}", told)
    for name, model in manifest["models"].items():
        found |= flat(f"models.{name}", {"revision": model["revision"]})
    source = manifest["source"]
    version = Version(
        host=socket.gethostname(),
        version=manifest["id"],
        changed_by=manifest["created"].get("by", ""),
        changed_from=source.get("revision", "") + (", with changes" if source.get("dirty") else ""),
        changed_at=since,
    )
    return version, found


def flat(name: str, value: Any) -> dict[str, Any]:
    """A list is one setting: what has moved in it says nothing by its number. Null is no setting."""
    if value is None:
        return {}
    if isinstance(value, dict) and value:
        return {path: one for key, inner in value.items() for path, one in flat(f"{name}.{key}", inner).items()}
    return {name: value}


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _assignments(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            yield name.strip(), value.strip()


class Historian:
    """Looks which release is live; a new one is compared with what was there before, and a rollback is a change too."""

    def __init__(self, current: Path, store: Store) -> None:
        self._current = current
        self._store = store
        self._seen = ""

    def look(self) -> None:
        try:
            since = datetime.fromtimestamp(self._current.lstat().st_mtime, UTC)
            release = self._current.resolve(strict=True)
        except OSError:
            return  # none is live yet
        if release.name == self._seen:
            return
        try:
            version, settings = settings_of(release, since)
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            logger.warning("the settings of %s cannot be read, and are not kept: %r", release, error)
        else:
            count = self._store.configure(version, settings)
            logger.info("%s changed %d settings of %s", version.version, count, version.host)
        self._seen = release.name


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/v1/configuration")

    async def told(question: Callable[..., list[dict[str, Any]]], *values: Any) -> dict[str, Any]:
        return {"object": "list", "data": await services.kept(question, *values)}

    @router.get("")
    async def now(
        _: Annotated[Asker, Depends(administrator)], name: Annotated[str, Query(max_length=300)] = ""
    ) -> dict[str, Any]:
        """What is set, and since when; with `name` a setting or all that is below it."""
        return await told(services.store.configuration, name)

    @router.get("/history")
    async def before(
        _: Annotated[Asker, Depends(administrator)],
        name: Annotated[str, Query(max_length=300)] = "",
        limit: Annotated[int, Query(gt=0, le=MOST)] = 100,
        after: Annotated[int | None, Query(gt=0)] = None,
    ) -> dict[str, Any]:
        """What was changed, the newest first, and what it was before; `after` is the last number that was seen."""
        return await told(services.store.changes, name, after, limit)

    return router
