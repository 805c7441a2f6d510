"""Where models come from: a hub, a mirror, a directory, an archive.

Each source lists the files of a revision with what it knows of their contents, and opens one of them at an offset.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import io
import json
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

# What vLLM reads. The same weights in other containers would only double the download.
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "*.model")
UNWANTED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "*.md", "*.index.json.bak")
MANIFEST = "citadel-manifest.json"
SILENCE_SECONDS = 30.0  # a server that says nothing for so long is as good as gone
LISTED_MOST = 16 << 20
CHUNK = 1 << 20


class SourceError(RuntimeError):
    """A source that cannot give the model; trying again does not help."""


class Interrupted(RuntimeError):
    """A transfer that broke off and may be resumed."""


@dataclass(frozen=True)
class Entry:
    """One file of a revision; whichever checksum the source knows proves its contents."""

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""  # of git's blob: the hub knows only this of small files


@dataclass(frozen=True)
class Listing:
    revision: str  # a commit, where the source resolves names
    entries: tuple[Entry, ...]
    source: str


class Source(Protocol):
    def list(self, revision: str) -> Listing: ...

    def open(
        self, listing: Listing, entry: Entry, offset: int, count: int = 0
    ) -> AbstractContextManager[tuple[int, io.BufferedIOBase]]:
        """Where the answer really begins, and the bytes from there on; `count` is how many will be read, 0 is all."""
        ...


def sha256_of(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            whole.update(chunk)
    return whole.hexdigest()


def wanted(path: str) -> bool:
    return any(fnmatch.fnmatch(path, one) for one in WANTED) and not any(fnmatch.fnmatch(path, one) for one in UNWANTED)


def safe(path: str) -> str:
    """A path from outside that stays inside of the model's folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not path or path == MANIFEST:
        raise SourceError(f"the source lists a file called {path!r}, which cannot be part of a model")
    return path


class TokenStaysHome(urllib.request.HTTPRedirectHandler):
    """A hub sends us on to where its large files are: who is there is not to know the token."""

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *answer)
        if following is not None and origin(following.full_url) != origin(req.full_url):
            following.remove_header("Authorization")
        return following


def origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


WEB = urllib.request.build_opener(TokenStaysHome)


class Web:
    """HTTP with ranges, for what hub and mirror share."""

    def __init__(self, url: str, token_file: str = "") -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise SourceError(f"source.url = {url!r}: give an address that begins with https:// or http://")
        self.url = url.rstrip("/")
        self.headers = {"User-Agent": "citadel"}
        if token_file:
            self.headers["Authorization"] = f"Bearer {Path(token_file).read_text(encoding='utf-8').strip()}"

    def ask(self, path: str, offset: int, count: int) -> tuple[int, io.BufferedIOBase]:
        address = f"{self.url}/{urllib.parse.quote(path, safe='/?=&')}"
        asked = {"Range": f"bytes={offset}-{offset + count - 1 if count else ''}"} if offset or count else {}
        headers = {**self.headers, **asked}
        request = urllib.request.Request(address, headers=headers)  # noqa: S310 the scheme was checked
        try:
            answer = WEB.open(request, timeout=SILENCE_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code in (408, 425, 429) or error.code >= 500:
                raise Interrupted(f"{address} answered {error.code}") from error
            hint = "; is a token needed?" if error.code in (401, 403) else ""
            raise SourceError(f"{address} answered {error.code} {error.reason}{hint}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(f"{address}: {error}") from error
        return (offset if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0), answer

    @contextmanager
    def get(self, path: str, offset: int = 0, count: int = 0) -> Iterator[tuple[int, io.BufferedIOBase]]:
        """Where the answer begins, since not every server resumes, and the answer."""
        start, answer = self.ask(path, offset, count)
        with answer:
            yield start, answer

    def json(self, path: str) -> Any:
        with self.get(path) as (_, answer):
            try:
                return json.loads(answer.read(LISTED_MOST))
            except (OSError, http.client.HTTPException) as error:
                raise Interrupted(f"{self.url}/{path}: {error}") from error
            except ValueError:
                raise SourceError(f"{self.url}/{path} is not JSON") from None


class Hub(Web):
    """The Hugging Face hub, or a server that speaks as it does."""

    def __init__(self, url: str, repository: str, token_file: str = "") -> None:
        super().__init__(url, token_file)
        self.repository = repository

    def list(self, revision: str) -> Listing:
        commit = str(self.json(f"api/models/{self.repository}/revision/{revision}")["sha"])
        tree = self.json(f"api/models/{self.repository}/tree/{commit}?recursive=true")
        entries = tuple(
            Entry(
                path=safe(str(one["path"])),
                size=int(one.get("lfs", one)["size"]),
                sha256=str(one["lfs"]["oid"]) if "lfs" in one else "",
                git_sha1="" if "lfs" in one else str(one["oid"]),
            )
            for one in tree
            if one["type"] == "file" and wanted(str(one["path"]))
        )
        return Listing(commit, entries, f"{self.url}/{self.repository}")

    def open(
        self, listing: Listing, entry: Entry, offset: int, count: int = 0
    ) -> AbstractContextManager[tuple[int, io.BufferedIOBase]]:
        return self.get(f"{self.repository}/resolve/{listing.revision}/{entry.path}", offset, count)


def manifest_entries(manifest: Mapping[str, Any]) -> tuple[Entry, ...]:
    return tuple(
        Entry(safe(str(path)), int(one["size"]), str(one["sha256"])) for path, one in manifest["files"].items()
    )


class Mirror(Web):
    """Any web server with stored revisions below it: <url>/<model>/<revision>/citadel-manifest.json and the files."""

    def __init__(self, url: str, model: str, token_file: str = "") -> None:
        super().__init__(url, token_file)
        self.model = model

    def list(self, revision: str) -> Listing:
        manifest = self.json(f"{self.model}/{revision}/{MANIFEST}")
        return Listing(revision, manifest_entries(manifest), f"{self.url}/{self.model}/{revision}")

    def open(
        self, listing: Listing, entry: Entry, offset: int, count: int = 0
    ) -> AbstractContextManager[tuple[int, io.BufferedIOBase]]:
        return self.get(f"{self.model}/{listing.revision}/{entry.path}", offset, count)


class Directory:
    """A folder on the host: a mount, a disk that someone brought. Its manifest is believed if it has one."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise SourceError(f"source.path = {path!r}: no such directory on this host; mount it or choose another")

    def list(self, revision: str) -> Listing:
        manifest = self.path / MANIFEST
        if manifest.exists():
            entries = manifest_entries(json.loads(manifest.read_text(encoding="utf-8")))
        else:
            files = sorted(path for path in self.path.rglob("*") if path.is_file())
            # Read once for the checksum: it proves the copy, and a disk that cannot be read is found out here.
            entries = tuple(
                Entry(path.relative_to(self.path).as_posix(), path.stat().st_size, sha256_of(path))
                for path in files
                if wanted(path.relative_to(self.path).as_posix())
            )
        return Listing(revision, entries, f"directory {self.path}")

    @contextmanager
    def open(
        self, listing: Listing, entry: Entry, offset: int, count: int = 0
    ) -> Iterator[tuple[int, io.BufferedIOBase]]:
        del listing, count
        with (self.path / entry.path).open("rb") as file:
            file.seek(offset)
            yield offset, cast("io.BufferedIOBase", file)


class Archive:
    """A tar file on the host, plain or compressed, with the files at its top or in one folder."""

    def __init__(self, path: str, sha256: str = "") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SourceError(f"source.path = {path!r}: no such archive on this host")
        if sha256 and sha256_of(self.path) != sha256:
            raise SourceError(f"{self.path} is not the archive that source.sha256 names; get it again")

    def members(self, archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
        files = {one.name.removeprefix("./"): one for one in archive.getmembers() if one.isfile()}
        tops = {name.partition("/")[0] for name in files}
        if len(tops) == 1 and all("/" in name for name in files):
            files = {name.partition("/")[2]: one for name, one in files.items()}
        return {safe(name): one for name, one in files.items() if name != MANIFEST and wanted(name)}

    def list(self, revision: str) -> Listing:
        try:
            with tarfile.open(self.path) as archive:
                entries = tuple(Entry(name, one.size) for name, one in self.members(archive).items())
        except tarfile.TarError as error:
            raise SourceError(f"{self.path} is no readable tar archive: {error}") from error
        return Listing(revision, entries, f"archive {self.path}")

    @contextmanager
    def open(
        self, listing: Listing, entry: Entry, offset: int, count: int = 0
    ) -> Iterator[tuple[int, io.BufferedIOBase]]:
        del listing, count
        with tarfile.open(self.path) as archive:
            file = archive.extractfile(self.members(archive)[entry.path])
            if file is None:
                raise SourceError(f"{self.path} lost {entry.path} while it was read")
            file.seek(offset)
            yield offset, cast("io.BufferedIOBase", file)


def source_of(model: str, repository: str, revision: str, place: Mapping[str, str]) -> Source:
    """The source that a stanza or the inventory describes; `{model}` and `{revision}` in it are filled in."""
    filled = {key: str(value).replace("{model}", model).replace("{revision}", revision) for key, value in place.items()}
    kind, token = filled.get("kind", "hub"), filled.get("token_file", "")

    def needed(key: str) -> str:
        if not filled.get(key):
            raise SourceError(f"the source of {model} is of kind {kind} and has no {key}; add source.{key}")
        return filled[key]

    if kind == "hub":
        return Hub(needed("url"), repository, token)
    if kind == "mirror":
        return Mirror(needed("url"), model, token)
    if kind == "directory":
        return Directory(needed("path"))
    if kind == "archive":
        return Archive(needed("path"), filled.get("sha256", ""))
    raise SourceError(f"the source of {model} is of kind {kind!r}; known are hub, mirror, directory, archive")
