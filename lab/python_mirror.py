"""This machine's own CPython as a mirror that uv installs from: the lab's hosts need not have that version."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lab.settings import LabError

INSIDE = "/srv/python"
# What a server never imports, and what belongs to this machine alone.
UNWANTED = {"__pycache__", "dist-packages", "idlelib", "site-packages", "test", "tests", "tkinter", "turtledemo"}
# named into the digest: a change of how the archive is made is another archive
RECIPE = b"1"


def version() -> str:
    return platform.python_version()


def headers() -> Path:
    """Where Python.h is; the gateway is compiled against it on the host."""
    return Path(sysconfig.get_path("include", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))


def files() -> Iterator[tuple[str, bytes, bool]]:
    """Path below `python/`, content, and whether it is executable."""
    short = f"python{sys.version_info.major}.{sys.version_info.minor}"
    launcher = (Path(sys.base_prefix) / "bin" / short).read_bytes()
    library = f"lib{short}.so.1.0"
    if library.encode() in launcher:
        folder = Path(sysconfig.get_config_var("LIBDIR"))
        launcher = beside_itself(launcher, str(folder))
        yield f"lib/{library}", (folder / library).read_bytes(), True
    yield f"bin/{short}", launcher, True
    standard = Path(os.__file__).parent
    for path in sorted(standard.rglob("*")):
        inside = path.relative_to(standard)
        unwanted = UNWANTED.intersection(inside.parts) or inside.parts[0].startswith("config-")
        if not unwanted and path.is_file():
            yield f"lib/{short}/{inside}", path.read_bytes(), False
    # Debian's pyconfig.h only leads to the one of the architecture, which a compiler would look for in /usr/include
    own = headers().parent / str(sysconfig.get_config_var("MULTIARCH")) / short / "pyconfig.h"
    for path in sorted(headers().rglob("*.h")):
        source = own if path.name == own.name and own.is_file() else path
        yield f"include/{short}/{path.relative_to(headers())}", source.read_bytes(), False


def beside_itself(launcher: bytes, folder: str) -> bytes:
    """The program with its library looked for in ../lib instead of in a folder of this machine."""
    old, new = f"{folder}\0".encode(), b"$ORIGIN/../lib\0"
    if launcher.count(old) != 1 or len(new) > len(old):
        raise LabError(
            f"The lab's hosts get this machine's Python, and {sys.base_prefix} keeps its library where the copy cannot "
            "find it: run the lab with another Python, such as Debian's own (make PYTHON=/usr/bin/python3 …)."
        )
    return launcher.replace(old, new.ljust(len(old), b"\0"))


def archive(content: list[tuple[str, bytes, bool]]) -> bytes:
    """The same files give the same bytes: no times, no owners, one order."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=6) as stream,
        tarfile.open(fileobj=stream, mode="w") as tar,
    ):
        for name, data, executable in content:
            entry = tarfile.TarInfo(f"python/{name}")
            entry.size, entry.mode = len(data), 0o755 if executable else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


@cache
def mirror(root: Path) -> Path:
    """A folder with the archive and uv's list of downloads, made once for this Python and kept below `root`."""
    if not (headers() / "Python.h").is_file():
        raise LabError(
            f"The lab's hosts get this machine's Python, and {headers()} has no Python.h, which the gateway is "
            "compiled against: apt-get install python3-dev."
        )
    content = list(files())
    digest = hashlib.sha256(RECIPE + version().encode())
    for name, data, _ in content:
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    target = root / "python" / digest.hexdigest()[:16]
    if target.is_dir():
        return target
    building = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    packed, name = archive(content), f"cpython-{version()}.tar.gz"
    (building / name).write_bytes(packed)
    (building / "downloads.json").write_text(json.dumps(downloads(name, hashlib.sha256(packed).hexdigest()), indent=1))
    if target.is_dir():  # another lab was faster
        shutil.rmtree(building)
    else:
        building.rename(target)
    return target


def downloads(name: str, sha256: str) -> dict[str, dict[str, object]]:
    """What uv reads with --python-downloads-json-url."""
    major, minor, patch = sys.version_info[:3]
    return {
        f"cpython-{version()}-linux-{platform.machine()}-gnu": {
            "name": "cpython",
            "arch": {"family": platform.machine(), "variant": None},
            "os": "linux",
            "libc": "gnu",
            "major": major,
            "minor": minor,
            "patch": patch,
            "prerelease": "",
            "url": f"file://{INSIDE}/{name}",
            "sha256": sha256,
            "variant": None,
            "build": None,
        }
    }


def variables(root: Path) -> dict[str, str]:
    """For inventory/lab: which Python the hosts get, and from where; made before several of them ask at once."""
    mirror(root)
    return {"lab_python": version(), "lab_python_downloads": f"file://{INSIDE}/downloads.json"}
