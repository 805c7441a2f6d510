"""The lab's Python: this machine's own as an archive that uv accepts and that runs wherever it is put."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lab import python_mirror
from lab.settings import LabError


@pytest.fixture(autouse=True)
def own_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with headers, also where python3-dev is not installed; and nothing remembered from before."""
    folder = tmp_path / "include" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir(parents=True)
    for name in ("Python.h", "pyconfig.h"):
        (folder / name).write_text(f"/* {name} */\n")
    monkeypatch.setattr(python_mirror, "headers", lambda: folder)
    python_mirror.mirror.cache_clear()
    return folder


@pytest.fixture
def tiny_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not matter what is packed."""
    monkeypatch.setattr(
        python_mirror,
        "files",
        lambda: iter([("bin/python", python_mirror.headers().joinpath("Python.h").read_bytes(), True)]),
    )


def test_the_archive_is_a_python_that_knows_where_it_lies(tmp_path: Path) -> None:
    folder = python_mirror.mirror(tmp_path / "cache")
    [(key, entry)] = json.loads((folder / "downloads.json").read_text()).items()
    archive = folder / Path(entry["url"]).name
    assert key.startswith(f"cpython-{python_mirror.version()}-linux-")
    assert entry["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert archive.stat().st_size < 30e6
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "moved")
    names = {path.relative_to(tmp_path / "moved").as_posix() for path in (tmp_path / "moved").rglob("*")}
    short = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert f"python/include/{short}/Python.h" in names
    assert not [name for name in names if "site-packages/" in name or "__pycache__" in name or "/test/" in name]
    told = subprocess.run(
        [
            tmp_path / "moved/python/bin" / short,
            "-c",
            "import sys, ssl, sqlite3; print(sys.prefix); import os; print(os.__file__)",
        ],
        env={},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert told == [f"{tmp_path}/moved/python", f"{tmp_path}/moved/python/lib/{short}/os.py"]
    maps = "import sys; print([l.split()[-1] for l in open('/proc/self/maps') if 'libpython' in l])"
    loaded = subprocess.run(
        [tmp_path / "moved/python/bin" / short, "-c", maps], env={}, capture_output=True, text=True, check=True
    ).stdout
    assert sys.base_prefix not in loaded, "it still runs on this machine's library"


@pytest.mark.usefixtures("tiny_python")
def test_the_same_python_is_the_same_archive(tmp_path: Path) -> None:
    one = python_mirror.mirror(tmp_path / "one")
    two = python_mirror.mirror(tmp_path / "two")
    assert one.name == two.name
    assert (one / "downloads.json").read_bytes() == (two / "downloads.json").read_bytes()


@pytest.mark.usefixtures("tiny_python")
def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = python_mirror.mirror(tmp_path)
    python_mirror.mirror.cache_clear()
    monkeypatch.setattr(python_mirror, "archive", lambda content: pytest.fail("packed a second time"))
    assert python_mirror.mirror(tmp_path) == first


@pytest.mark.usefixtures("tiny_python")
def test_other_headers_are_another_archive(tmp_path: Path, own_headers: Path) -> None:
    first = python_mirror.mirror(tmp_path)
    python_mirror.mirror.cache_clear()
    (own_headers / "Python.h").write_text("/* another */\n")
    assert python_mirror.mirror(tmp_path) != first


def test_a_machine_without_headers_is_told_what_to_install(tmp_path: Path, own_headers: Path) -> None:
    (own_headers / "Python.h").unlink()
    with pytest.raises(LabError, match=r"no Python\.h.*apt-get install python3-dev"):
        python_mirror.mirror(tmp_path)


def test_a_library_that_cannot_be_moved_is_refused() -> None:
    with pytest.raises(LabError, match="run the lab with another Python"):
        python_mirror.beside_itself(b"\x7fELF no path in here", "/opt/python/lib")
    moved = python_mirror.beside_itself(b"..\0/opt/python/lib\0..", "/opt/python/lib")
    assert moved == b"..\0$ORIGIN/../lib\0\0.."
