"""Folders with their owners and modes, all of them in one look: most deployments find every one as it shall be."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class FolderError(ValueError):
    """A folder that can't be made, in a sentence."""


@dataclass(frozen=True)
class Folder:
    path: Path
    owner: str
    group: str
    mode: int

    @classmethod
    def of(cls, given: Mapping[str, Any], groups: Mapping[str, str]) -> Folder:
        """An owner has a group of the same name, unless `groups` or the folder itself names another."""
        path, mode, owner = (str(given.get(key, "")) for key in ("path", "mode", "owner"))
        if not owner:
            raise FolderError(f"{path} has no owner: name one")
        if not path.startswith("/"):
            raise FolderError(f"{path!r} is no place for a folder: give an absolute path")
        if not mode.isdecimal() or set(mode) - set("01234567"):
            raise FolderError(f'{path}: mode = {given.get("mode")!r}: give it as text in octal digits, such as "0755"')
        return cls(Path(path), owner, str(given.get("group") or groups.get(owner, owner)), int(mode, 8))

    def __str__(self) -> str:
        return f"{self.path} {self.owner}:{self.group} {self.mode:04o}"

    def found(self) -> Folder | None:
        """What is there; a link that leads to a folder is as good as one."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise FolderError(f"{self.path} cannot be made, since something above it is no folder") from None
        if not self.path.is_dir():
            raise FolderError(f"{self.path} is there and is no folder: move it away")
        owner, group = (
            _name(lambda: pwd.getpwuid(status.st_uid).pw_name, status.st_uid),
            _name(lambda: grp.getgrgid(status.st_gid).gr_name, status.st_gid),
        )
        return Folder(self.path, owner, group, status.st_mode & 0o7777)

    def make(self) -> None:
        try:
            owner, group = pwd.getpwnam(self.owner).pw_uid, grp.getgrnam(self.group).gr_gid
        except KeyError as error:
            raise FolderError(f"{self.path} cannot be given away ({error.args[0]}): make that account first") from None
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.chown(self.path, owner, group)
        self.path.chmod(self.mode)


def bring_about(wanted: list[Folder], act: bool) -> tuple[list[str], list[str]]:
    """What was otherwise than wanted, before and after; without `act`, only told."""
    before, after = [], []
    for folder in sorted(wanted, key=lambda one: one.path):
        found = folder.found()
        if found != folder:
            before.append(str(found or f"{folder.path} is not there"))
            after.append(str(folder))
            if act:
                folder.make()
    return before, after


def _name(look: Callable[[], str], number: int) -> str:
    try:
        return look()
    except KeyError:
        return str(number)
