"""The gateway's path is compiled when a release is staged, once for each source and environment."""

from __future__ import annotations

from pathlib import Path

from citadel.release.manifest import tampering
from tests.unit.release.world import World, release_files

ENVIRONMENT = "/opt/citadel/envs/gateway-1"
SOURCE = {"gateway/citadel_gateway/walk.py": "async def walk() -> None: ...\n"}
GOOD = (
    '#!/bin/sh\nfor folder; do :; done\nmkdir -p "$folder/citadel_gateway" && touch "$folder/citadel_gateway/walk.so"\n'
)
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


def test_what_was_compiled_is_looked_at_and_not_inherited_once_it_was_changed(world: World) -> None:
    first = world.stage(release_files(alpha="a1") | SOURCE, environments=environment(world, GOOD))
    compiled(world, first.id).chmod(0o644)
    compiled(world, first.id).write_bytes(b"altered")
    assert tampering(world.layout.release(first.id), first) == ["compiled/ was changed"]
    second = world.stage(release_files(alpha="a2") | SOURCE, environments=environment(world, GOOD))
    assert compiled(world, second.id).read_bytes() == b""


def test_what_lies_in_the_current_folder_is_not_what_compiles(world: World) -> None:
    words = '#!/bin/sh\necho "$@" > "$0.words"; pwd > "$0.folder"\n'
    environments = environment(world, words + GOOD.partition("\n")[2])
    world.stage(release_files(alpha="a1") | SOURCE, environments=environments)
    programs = world.layout.inside(ENVIRONMENT) / "bin"
    assert " -P " in (programs / "python.words").read_text()
    assert (programs / "python.folder").read_text() == "/\n"
