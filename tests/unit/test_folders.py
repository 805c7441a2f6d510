"""Folders are made as they are wanted, only where they are otherwise, and check mode tells that and no more."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from citadel.folders import Folder, FolderError, bring_about

ME, MINE = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name


def folder(path: Path, mode: str = "0750", **said: str) -> Folder:
    return Folder.of({"path": str(path), "mode": mode, "owner": ME, **said}, {ME: MINE})


def test_what_is_missing_is_made_and_then_left_alone(tmp_path: Path) -> None:
    wanted = [folder(tmp_path / "a/b", "0700"), folder(tmp_path / "a")]
    before, after = bring_about(wanted, act=True)
    assert before == [f"{tmp_path}/a is not there", f"{tmp_path}/a/b is not there"]
    assert after == [f"{tmp_path}/a {ME}:{MINE} 0750", f"{tmp_path}/a/b {ME}:{MINE} 0700"]
    assert [one.found() for one in wanted] == wanted
    assert bring_about(wanted, act=True) == ([], [])


def test_check_mode_tells_the_same_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    wanted = [folder(tmp_path / "a"), folder(tmp_path / "b"), folder(tmp_path / "c", owner="nobody-yet")]
    before, after = bring_about(wanted, act=False)
    assert before == [f"{tmp_path}/a {ME}:{MINE} 0755", f"{tmp_path}/b is not there", f"{tmp_path}/c is not there"]
    assert after[2] == f"{tmp_path}/c nobody-yet:nobody-yet 0750"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_a_link_to_a_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").symlink_to("disk")
    bring_about([folder(tmp_path / "models", "0711")], act=True)
    assert (tmp_path / "models").is_symlink()
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o711


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"file is there and is no folder: move it away"):
        bring_about([folder(tmp_path / "file")], act=False)
    with pytest.raises(FolderError, match=r"something above it is no folder"):
        bring_about([folder(tmp_path / "file/below")], act=True)
    with pytest.raises(FolderError, match=r"nobody-yet.*make that account first"):
        bring_about([folder(tmp_path / "x", owner="nobody-yet")], act=True)
    for mode in ("rwx", "0o755", "", "789"):
        with pytest.raises(FolderError, match="octal digits"):
            folder(tmp_path / "x", mode)
    with pytest.raises(FolderError, match="absolute path"):
        Folder.of({"path": "opt", "mode": "0755", "owner": ME}, {})
    with pytest.raises(FolderError, match="has no owner: name one"):
        Folder.of({"path": "/opt", "mode": "0755"}, {})
