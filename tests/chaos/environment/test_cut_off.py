"""The role `environment` on this machine, with tiny packages: killed at task after task, the next run heals it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import python_mirror
from lab.settings import LabError, cache_directory

ROOT = Path(__file__).resolve().parents[3]
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  roles: [environment]
"""
# each is killed where it begins, and from what it leaves the next run starts
POINTS = (
    "Fetch it",
    "Declare it whole",
    "Fetch Python",
    "Python has its name",
    "Write down what goes into it",
    "Install the packages",
    "Declare the environment whole",
)


def wheel(folder: Path, name: str, files: dict[str, str]) -> str:
    """A package of our own, and the line that pins it."""
    info = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for inside, text in {**content, f"{info}/RECORD": record}.items():
            entry = zipfile.ZipInfo(inside)
            entry.external_attr = (0o100755 if "/scripts/" in inside else 0o100644) << 16
            packed.writestr(entry, text)
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Host:
    """A folder that stands for a server, and the playbook that builds an environment in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        real = Path(sys.executable).with_name("uv")
        uv = wheel(self.wheels, "uv", {"uv-1.0.data/scripts/uv": f'#!/bin/sh\nexec {real} "$@"\n'})
        try:
            mirror = python_mirror.mirror(cache_directory())
        except LabError as error:
            pytest.skip(str(error))
        entries = json.loads((mirror / "downloads.json").read_text())
        for entry in entries.values():
            entry["url"] = f"file://{mirror / Path(entry['url']).name}"
        (folder / "downloads.json").write_text(json.dumps(entries))
        self.environment = folder / "envs" / "tiny-0123"
        self.variables = {
            "environment_root": str(folder / "envs"),
            "environment_path": str(self.environment),
            "environment_requirements": wheel(
                self.wheels, "tiny", {"tiny/__init__.py": "", "tiny/more.py": "WHOLE = True\n"}
            ),
            "environment_import": "tiny.more",
            "environment_python": python_mirror.version(),
            "environment_python_root": str(folder / "python"),
            "environment_python_downloads": f"file://{folder / 'downloads.json'}",
            "environment_uv_root": str(folder / "uv"),
            "environment_uv_requirements": uv,
            "environment_wheelhouse": str(self.wheels),
            "environment_package_cache": str(folder / "cache"),
        }
        for name in ("envs", "python", "uv"):
            (folder / name).mkdir()
        (folder / "play.yml").write_text(PLAY)

    def start(self, **changed: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                "-i",
                "localhost,",
                self.folder / "play.yml",
                "-e",
                json.dumps({**self.variables, **changed}),
            ],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, **changed: str) -> str:
        process = self.start(**changed)
        said, _ = process.communicate(timeout=600)
        return f"{process.returncode}: {said}"

    def killed_at(self, task: str) -> None:
        process = self.start()
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(f"TASK [environment : {task}]"):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return
        process.wait()
        pytest.fail(f"the run ended before {task!r}: {''.join(said[-40:])}")

    def imports(self) -> bool:
        done = subprocess.run(
            [self.environment / "bin/python", "-c", "import tiny.more as m; assert m.WHOLE"], check=False
        )
        return done.returncode == 0


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    yield Host(tmp_path_factory.mktemp("host"))


def test_one_run_after_another_is_killed_and_the_next_goes_through(host: Host) -> None:
    for point in POINTS:
        host.killed_at(point)
    assert not (host.environment / "complete").exists()
    assert host.run().startswith("0:")
    assert (host.environment / "complete").exists()
    assert host.imports()


def test_a_half_installed_package_is_installed_anew(host: Host) -> None:
    """What a power cut leaves: the package's list of files is there, and one of its files is empty."""
    [module] = host.environment.glob("lib/python*/site-packages/tiny/more.py")
    module.unlink()
    module.write_text("")
    shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)
    (host.environment / "complete").unlink()
    assert not host.imports()
    assert host.run().startswith("0:")
    assert host.imports()


def test_what_is_whole_is_only_looked_at(host: Host) -> None:
    said = host.run()
    assert "changed=0" in said
    assert "Install the packages" not in said


def test_an_archive_with_another_hash_is_refused(host: Host) -> None:
    """And the Python that was there before stays."""
    entries = json.loads((host.folder / "downloads.json").read_text())
    for entry in entries.values():
        entry["sha256"] = "0" * 64
    false = host.folder / "false.json"
    false.write_text(json.dumps(entries))
    place = {"environment_python_downloads": f"file://{false}", "environment_python_root": str(host.folder / "other")}
    said = host.run(**place, environment_path=str(host.folder / "envs" / "other"))
    assert said.startswith("2:")
    assert "with another checksum than the one it must have" in " ".join(said.split())
    assert not (host.folder / "envs" / "other").exists()
    assert host.imports()


def test_no_python_to_be_had_is_one_sentence(host: Host) -> None:
    place = {"environment_python": "3.11.18", "environment_python_downloads": ""}
    said = host.run(
        **place, environment_python_mirror="file:///nowhere", environment_path=str(host.folder / "envs" / "other")
    )
    assert said.startswith("2:")
    assert "can get no Python 3.11.18 from file:///nowhere" in " ".join(said.split())
    assert "name a mirror or a folder in citadel_python_mirror" in " ".join(said.split())
    assert not (host.folder / "envs" / "other").exists()
