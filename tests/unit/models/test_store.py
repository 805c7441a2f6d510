"""The store against a real HTTP server that cuts connections, serves wrong bytes, is slow, or does not resume."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from citadel import fetch, sources, store
from citadel.sources import SourceError, source_of
from citadel.store import StoreError
from tests.unit.models.hub import COMMIT, Answer, Hub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def get(hub: Hub, root: Path, revision: str = "main", lines: list[str] | None = None) -> Path:
    source = source_of("phi", "o/n", revision, {"kind": "hub", "url": hub.url})
    tell = (lines if lines is not None else []).append
    return fetch.fetch("phi", source, revision, root, tell)[0]


def same(one: Path, other: Path) -> bool:
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_fetches_verifies_and_records(hub: Hub, root: Path) -> None:
    lines: list[str] = []
    target = get(hub, root, lines=lines)
    assert same(hub.folder, target)
    manifest = store.verify(target, deep=True)
    assert manifest["revision"] == COMMIT
    assert sorted(path.name for path in target.parent.iterdir()) == ["main"]
    assert any("100%" in line for line in lines)


def test_goes_on_where_the_connection_was_cut(hub: Hub, root: Path) -> None:
    hub.cut_after = 500_000
    target = get(hub, root)
    assert same(hub.folder, target)
    assert len(hub.offsets) > 3
    assert hub.offsets == sorted(set(hub.offsets)), "every request began where the one before had ended"


def test_a_run_that_was_stopped_is_resumed_by_the_next(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.cut_after, hub.cuts_left = 1_000_000, 1
    monkeypatch.setattr(fetch, "ATTEMPTS", 0)
    with pytest.raises(SourceError, match="run again"):
        get(hub, root)
    assert not (root / "phi" / "main").exists(), "a half model has no name"
    monkeypatch.undo()
    get(hub, root)
    assert hub.offsets[-1] >= 1_000_000


def test_a_server_that_does_not_resume_is_read_from_the_start(hub: Hub, root: Path) -> None:
    hub.cut_after, hub.cuts_left, hub.ranges = 1_000_000, 2, False
    assert same(hub.folder, get(hub, root))


def test_wrong_bytes_are_fetched_once_more(hub: Hub, root: Path) -> None:
    hub.wrong = 1
    assert same(hub.folder, get(hub, root))


def test_wrong_bytes_twice_are_refused_and_never_named(hub: Hub, root: Path) -> None:
    hub.wrong = 2
    with pytest.raises(SourceError, match=r"model\.safetensors came twice with contents that its checksum denies"):
        get(hub, root)
    assert not (root / "phi" / "main").exists()


def test_small_files_are_checked_by_their_git_name(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Answer.entry

    def lie(self: Answer, path: Path) -> dict[str, Any]:
        found = right(self, path)
        return {**found, "oid": "f" * 40} if path.name == "config.json" else found

    monkeypatch.setattr(Answer, "entry", lie)
    with pytest.raises(SourceError, match=r"config\.json came twice"):
        get(hub, root)


def test_a_busy_server_is_asked_again(hub: Hub, root: Path) -> None:
    hub.fail = 3
    assert same(hub.folder, get(hub, root))


def test_a_server_that_falls_silent_is_left_and_asked_again(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SILENCE_SECONDS", 0.1)
    hub.pause = 0.3
    with pytest.raises(SourceError, match=r"given up after 5 attempts without a byte"):
        get(hub, root)


def test_a_slow_server_is_waited_for_and_progress_is_shown(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "REPORT_SECONDS", 0.05)
    hub.pause = 0.01
    lines: list[str] = []
    files: list[dict[str, Any]] = []

    def tell(line: str) -> None:
        lines.append(line)
        files.append(json.loads((root / "phi" / ".main.progress").read_text()))

    fetch.fetch("phi", source_of("phi", "o/n", "main", {"kind": "hub", "url": hub.url}), "main", root, tell)
    done = [one["done"] for one in files]
    assert done == sorted(done)
    assert done[-1] == files[-1]["total"]
    shares = [int(line.split("%")[0].split()[-1]) for line in lines]
    assert shares == sorted(shares)
    assert len(shares) > 5
    assert shares[-1] == 100


@pytest.fixture
def elsewhere(hub: Hub) -> Iterator[Hub]:
    """The server that has the hub's large files, as its network for deliveries is."""
    server = Hub(hub.folder)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("away", [True, False])
def test_a_token_is_not_sent_on_to_another_host(
    hub: Hub, elsewhere: Hub, root: Path, tmp_path: Path, away: bool
) -> None:
    hub.sends_on_to = elsewhere.url if away else hub.url
    (tmp_path / "token").write_text("secret\n")
    place = {"kind": "hub", "url": hub.url, "token_file": str(tmp_path / "token")}
    target, _ = fetch.fetch("phi", source_of("phi", "o/n", "main", place), "main", root)
    assert same(hub.folder, target)
    assert hub.credentials == {"Bearer secret"}
    assert elsewhere.credentials == ({None} if away else set())


def test_a_revision_that_is_not_there(hub: Hub, root: Path) -> None:
    source = source_of("phi", "o/other", "main", {"kind": "hub", "url": hub.url})
    with pytest.raises(SourceError, match="answered 404"):
        fetch.fetch("phi", source, "main", root)


def test_a_hub_that_is_away(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    source = source_of("phi", "o/n", "main", {"kind": "hub", "url": "http://127.0.0.1:9"})
    with pytest.raises(sources.Interrupted, match=r"127\.0\.0\.1:9"):
        fetch.fetch("phi", source, "main", root)


def test_a_full_disk_is_known_before(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"free 0\.3 GB, then run again"):
        get(hub, root)
    assert not any("resolve" in path for path in hub.requests), "nothing was downloaded"


def test_two_revisions_stand_beside_each_other(hub: Hub, root: Path) -> None:
    one, two = get(hub, root, "r1"), get(hub, root, "r2")
    assert one != two
    assert store.digest_of(store.verify(one, deep=True)) == store.digest_of(store.verify(two, deep=True))


def test_a_stored_revision_is_a_mirror_for_others(hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.folder = get(hub, root)
    source = source_of("phi", "", "r1", {"kind": "mirror", "url": f"{hub.url}/mirror"})
    target, manifest = fetch.fetch("phi", source, "r1", tmp_path / "other")
    assert (target / "config.json").read_bytes() == (hub.folder / "config.json").read_bytes()
    assert store.digest_of(manifest) == store.digest_of(store.read_manifest(hub.folder))


@pytest.mark.parametrize("top", ["", "model-1/"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_an_archive_with_or_without_a_top_folder(tiny: Path, tmp_path: Path, top: str, suffix: str) -> None:
    archive = tmp_path / f"model.{suffix}"
    with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as tar:
        for path in (tiny / "hermes-2").iterdir():
            tar.add(path, f"{top}{path.name}")
    source = source_of("hermes-2", "", "r1", {"kind": "archive", "path": str(archive)})
    target, _ = fetch.fetch("hermes-2", source, "r1", tmp_path / "models")
    assert same(tiny / "hermes-2", target)


def test_an_archive_cannot_write_outside(tmp_path: Path, tiny: Path) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tiny / "hermes-2" / "config.json", "../config.json")
        tar.add(tiny / "hermes-2" / "model.safetensors", "model.safetensors")
    source = source_of("bad", "", "r1", {"kind": "archive", "path": str(archive)})
    with pytest.raises(SourceError, match="cannot be part of a model"):
        fetch.fetch("bad", source, "r1", tmp_path / "models")


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "some.tar"
    archive.write_bytes(b"x")
    with pytest.raises(SourceError, match=r"source\.sha256"):
        source_of("some", "", "r1", {"kind": "archive", "path": str(archive), "sha256": "0" * 64})


def test_a_directory_is_copied_and_proven(tiny: Path, root: Path) -> None:
    source = source_of("hermes-2", "", "r1", {"kind": "directory", "path": str(tiny / "{model}")})
    target, _ = fetch.fetch("hermes-2", source, "r1", root)
    assert same(tiny / "hermes-2", target)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"kind": "directory"}, "has no path"),
        ({"kind": "directory", "path": "/nowhere"}, "no such directory"),
        ({"kind": "archive", "path": "/nowhere.tar"}, "no such archive"),
        ({"kind": "mirror"}, "has no url"),
        ({"kind": "hub", "url": "file:///etc"}, "https://"),
    ],
)
def test_a_source_that_says_too_little(place: dict[str, str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        source_of("phi", "o/n", "main", place)


def test_a_folder_without_a_configuration_is_no_model(tiny: Path, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    shutil.copy(tiny / "hermes-2" / "model.safetensors", folder)
    source = source_of("odd", "", "r1", {"kind": "directory", "path": str(folder)})
    with pytest.raises(SourceError, match=r"no config\.json"):
        fetch.fetch("odd", source, "r1", root)


class TestTrust:
    """What is in the store is only believed as far as it was looked at."""

    @pytest.fixture
    def stored(self, tiny: Path, root: Path) -> Path:
        source = source_of("hermes-2", "", "r1", {"kind": "directory", "path": str(tiny / "hermes-2")})
        return fetch.fetch("hermes-2", source, "r1", root)[0]

    def alter(self, path: Path) -> None:
        path.chmod(0o644)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def test_one_flipped_bit_is_found_without_asking_for_a_deep_look(self, stored: Path) -> None:
        self.alter(stored / "model.safetensors")
        with pytest.raises(StoreError, match=r"model\.safetensors was altered"):
            store.verify(stored, deep=False)

    def test_one_that_hides_its_time_is_found_by_a_deep_look(self, stored: Path) -> None:
        path = stored / "model.safetensors"
        status = path.stat()
        self.alter(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        store.verify(stored, deep=False)
        with pytest.raises(StoreError, match="was altered"):
            store.verify(stored, deep=True)

    def test_a_restored_copy_is_read_and_trusted(self, stored: Path, tmp_path: Path) -> None:
        copy = tmp_path / "restored"
        shutil.copytree(stored, copy, copy_function=shutil.copyfile)
        store.verify(copy, deep=False)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", sources.MANIFEST])
    def test_a_missing_file_is_named(self, stored: Path, name: str) -> None:
        (stored / name).unlink()
        with pytest.raises(StoreError, match=name):
            store.verify(stored, deep=False)

    @pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
    def test_a_torn_manifest_is_not_believed(self, stored: Path, text: str) -> None:
        (stored / sources.MANIFEST).chmod(0o644)
        (stored / sources.MANIFEST).write_text(text)
        with pytest.raises(StoreError, match="deploy again, which fetches it anew"):
            store.verify(stored, deep=False)
