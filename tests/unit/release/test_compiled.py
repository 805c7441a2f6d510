"""The gateway's path is compiled when a release is staged, once for each source and environment on a host."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from citadel.release.compiled import KEPT
from citadel.release.manifest import tampering
from citadel.release.transaction import Terms, activate
from tests.unit.release.world import World, release_files

ENVIRONMENT = "/opt/citadel/envs/gateway-1"
SOURCE = {"gateway/citadel_gateway/walk.py": "async def walk() -> None: ...\n"}
GOOD = (
    '#!/bin/sh\nfor folder; do :; done\nmkdir -p "$folder/citadel_gateway" && touch "$folder/citadel_gateway/walk.so"\n'
)
# what also judges a configuration, and finds it good
CONTENT = '#!/bin/sh\ncase "$*" in *check-config*) exit 0 ;; esac\n'
BAD = '#!/bin/sh\necho "walk.py:1: error: Name is not defined" >&2\nexit 1\n'


def environment(world: World, python: str) -> dict[str, str]:
    """An environment with a compiler."""
    programs = world.layout.inside(ENVIRONMENT) / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name, text in (("python", python), ("mypyc", "")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {"gateway": ENVIRONMENT}


def compiled(world: World, name: str) -> Path:
    return world.layout.release(name) / "compiled" / "citadel_gateway" / "walk.so"


def test_a_release_has_its_path_compiled(world: World) -> None:
    manifest = world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, GOOD))
    assert compiled(world, manifest.id).is_file()
    assert tampering(world.layout.release(manifest.id), manifest) == []


def test_another_release_of_the_same_source_takes_it_over(world: World) -> None:
    world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, GOOD))
    second = world.stage(release_files(alpha="a2") | SOURCE, environments=environment(world, BAD))
    assert compiled(world, second.id).is_file()


def test_another_source_is_compiled_anew(world: World) -> None:
    world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, GOOD))
    changed = {path: text + "# changed\n" for path, text in SOURCE.items()}
    told: list[str] = []
    manifest = world.stage(release_files(alpha="a1") | changed, tell=told.append, environments=environment(world, BAD))
    [line] = told
    assert "runs from its source" in line and "could not be compiled" in line and "walk.py:1: error:" in line
    assert not compiled(world, manifest.id).exists()
    assert [path.name for path in world.layout.releases.iterdir() if path.name.startswith(".")] == []


def test_without_a_compiler_the_source_runs(world: World) -> None:
    environments = environment(world, BAD)
    (world.layout.inside(ENVIRONMENT) / "bin" / "mypyc").unlink()
    manifest = world.stage(release_files(alpha="a1") | SOURCE, environments=environments)
    assert not (world.layout.release(manifest.id) / "compiled").exists()


def kept(world: World) -> list[Path]:
    return sorted(path for path in world.layout.compiled.iterdir() if not path.name.startswith("."))


def test_it_is_kept_when_every_release_with_it_is_gone(world: World) -> None:
    first = world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, GOOD))
    shutil.rmtree(world.layout.release(first.id))
    second = world.stage(release_files(alpha="a2") | SOURCE, environments=environment(world, BAD))
    assert compiled(world, second.id).is_file()
    assert len(kept(world)) == 1


@pytest.mark.parametrize("harm", ["altered", "lost", "added", "undigested"])
def test_what_was_kept_and_is_harmed_is_made_anew(world: World, harm: str) -> None:
    world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, GOOD))
    [entry] = kept(world)
    file = entry / "compiled/citadel_gateway/walk.so"
    match harm:
        case "altered":
            file.write_bytes(b"altered")
        case "lost":
            file.unlink()
        case "added":
            file.with_name("other.so").touch()
        case _:
            (entry / "compiled.json").write_text("{")
    second = world.stage(release_files(alpha="a2") | SOURCE, environments=environment(world, GOOD))
    assert compiled(world, second.id).read_bytes() == b""
    assert [path.name for path in (entry / "compiled/citadel_gateway").iterdir()] == ["walk.so"]
    assert tampering(world.layout.release(second.id), second) == []


def test_another_environment_or_another_python_is_another_result(world: World) -> None:
    environments = environment(world, GOOD)
    world.stage(release_files(alpha="a1") | SOURCE, environments=environments)
    (world.layout.inside(ENVIRONMENT) / "pyvenv.cfg").write_text("version = 3.12.4\n")
    world.stage(release_files(alpha="a2") | SOURCE, environments=environments)
    assert len(kept(world)) == 2


def test_only_the_latest_results_stay(world: World) -> None:
    environments = environment(world, GOOD)
    for number in range(KEPT + 2):
        changed = {path: f"{text}# {number}\n" for path, text in SOURCE.items()}
        world.stage(release_files(alpha=f"a{number}") | changed, environments=environments)
        for age, entry in enumerate(reversed(kept(world))):
            os.utime(entry, (entry.stat().st_mtime - 10 * age - 10,) * 2)
    assert len(kept(world)) == KEPT


def test_no_room_to_keep_it_is_no_reason_to_fail(world: World) -> None:
    world.layout.compiled.parent.mkdir(parents=True)
    world.layout.compiled.write_text("no folder")
    manifest = world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, GOOD))
    assert compiled(world, manifest.id).is_file()


@pytest.mark.parametrize(("python", "said"), [(GOOD, "compiled"), (BAD, "could not be compiled")])
def test_the_report_says_what_the_gateway_runs_as(world: World, python: str, said: str) -> None:
    manifest = world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, CONTENT + python))
    outcome = activate(world.host(), manifest.id, Terms("tester"))
    [line] = [line for line in Path(outcome.report).read_text().splitlines() if line.startswith("| gateway |")]
    assert said in line


def test_what_lies_in_the_current_folder_is_not_what_compiles(world: World) -> None:
    words = '#!/bin/sh\necho "$@" > "$0.words"; pwd > "$0.folder"\n'
    environments = environment(world, words + GOOD.partition("\n")[2])
    world.stage(release_files(alpha="a1") | SOURCE, environments=environments)
    programs = world.layout.inside(ENVIRONMENT) / "bin"
    assert " -P " in (programs / "python.words").read_text()
    assert (programs / "python.folder").read_text() == "/\n"
