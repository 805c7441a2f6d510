"""The manifest of a release: what it is made of, to the byte, and where that came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .failure import RefusedError
from .services import Service

NAME = re.compile(r"^(\d{4,})-([0-9a-f]{8})$")
FORMAT = 1


# what the gateway's source was compiled to, and the digests of that: it follows from files and environments
COMPILED = "compiled"
COMPILED_DIGESTS = "compiled.json"


@dataclass(frozen=True)
class Manifest:
    id: str
    digest: str
    files: dict[str, str]  # path -> sha256
    environments: dict[str, str]  # name -> absolute path
    models: dict[str, dict[str, str]]  # name -> revision, path
    services: tuple[Service, ...]
    source: dict[str, Any] = field(default_factory=dict)  # revision, dirty
    created: dict[str, str] = field(default_factory=dict)  # by, at
    format: int = FORMAT

    @property
    def number(self) -> int:
        return number_of(self.id)

    def wanted(self) -> list[Service]:
        """The services as systemd shall run them, models before the gateway that needs them."""
        order = {"model": 0, "other": 1, "gateway": 2}
        return sorted(
            (service.for_release(self.id) for service in self.services), key=lambda s: (order[s.kind], s.unit)
        )

    def gateway(self) -> Service | None:
        return next((service for service in self.wanted() if service.kind == "gateway"), None)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Manifest:
        value = json.loads(text)
        if value.get("format") != FORMAT:
            raise ValueError(f"format {value.get('format')!r} is not {FORMAT}")
        value["services"] = tuple(Service.of(entry) for entry in value["services"])
        # releases of an earlier version say more
        return cls(**{key: value[key] for key in cls.__dataclass_fields__ if key in value})


def number_of(name: str) -> int:
    match = NAME.match(name)
    return int(match.group(1)) if match else 0


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, bytecode left out."""
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def content_digest(
    files: Mapping[str, str],
    environments: Mapping[str, str],
    models: Mapping[str, Mapping[str, str]],
) -> str:
    """What the release is, without who staged it and when: equal content has an equal digest.

    Services are read from the files, so they are in it; how they are written down may change with this code.
    """
    value = [files, environments, models]
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(release: Path) -> Manifest:
    """The manifest of a staged release, or a sentence that says why there is none."""
    try:
        return Manifest.parse((release / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefusedError(f"{release} has no manifest.json: it is not a complete release. Deploy again.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RefusedError(
            f"{release / 'manifest.json'} cannot be read ({error}): the release was altered or is from "
            "another "
            "version. Deploy again."
        ) from error


def tampering(release: Path, manifest: Manifest) -> list[str]:
    """How the files of a release differ from its manifest, and what was compiled from what was written down of it;
    bytecode beside its source does not count."""
    found = []
    present = {
        path.relative_to(release).as_posix()
        for path in release.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and not {"__pycache__", COMPILED}.intersection(path.relative_to(release).parts)
    } - {"manifest.json", COMPILED_DIGESTS}
    for path in sorted(present | manifest.files.keys()):
        if path not in present:
            found.append(f"{path} is missing")
        elif path not in manifest.files:
            found.append(f"{path} was added")
        elif sha256((release / path).read_bytes()) != manifest.files[path]:
            found.append(f"{path} was changed")
    if (release / COMPILED).exists() or (release / COMPILED_DIGESTS).exists():
        try:
            expected = json.loads((release / COMPILED_DIGESTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            expected = {}
        if digests_of(release / COMPILED) != expected:
            found.append(f"{COMPILED}/ was changed")
    for name, target in sorted(manifest.environments.items()):
        lead = release / "env" / name
        if not lead.is_symlink() or str(lead.readlink()) != target:
            found.append(f"env/{name} does not lead to {target}")
    recomputed = content_digest(manifest.files, manifest.environments, manifest.models)
    if manifest.digest != recomputed or manifest.id != release.name or not manifest.id.endswith(recomputed[:8]):
        found.append("manifest.json does not match its own digest")
    return found
