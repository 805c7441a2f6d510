"""`make check` on a machine that has never seen the project: a Debian tree with git, make and python3, and no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab import handover
from lab.settings import Lab
from lab.tree import bare_tree
from tools import toolchain
from tools.phases import REPORTS, ROOT, Journal

PACKAGES = ("ca-certificates", "git", "make", "python3")
# what a machine behind a proxy tells its programs
HANDED_ON = ("http_proxy", "https_proxy", "no_proxy")


def check(journal: Journal, lab: Lab, show: Callable[[str], str | None]) -> None:
    """In a copy of this checkout, as it stands; what it times is added to the journal's own."""
    name = "make check in a minimal tree"
    reports = REPORTS / "minimal"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    # beside the trees, where there is space for what pip and npm bring; a fresh machine has none yet
    lab.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=lab.cache, prefix="minimal-") as folder:
        work = Path(folder)
        copy_checkout(work / "checkout")
        journal.phase(name, command(lab, bare_tree(lab.cache, PACKAGES), work, reports), show=show)
    inside = json.loads((reports / "check.json").read_text())["phases"]
    journal.times.update({f"{name}: {phase}": seconds for phase, seconds in inside.items()})


def copy_checkout(target: Path) -> None:
    """A clone, with what is not committed yet."""

    def git(*words: str | Path) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout

    git("clone", "--quiet", "--no-hardlinks", ROOT, target)
    for path in filter(None, git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        (target / path).unlink(missing_ok=True)
        if (ROOT / path).exists() or (ROOT / path).is_symlink():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target / path, follow_symlinks=False)


def command(lab: Lab, tree: Path, work: Path, reports: Path) -> list[str | Path]:
    """The tree's files change in memory only; the checkout, and what is downloaded, lie on the disk."""
    settings = handover.pip_settings(toolchain.program("python"))
    pip = work / "pip.conf"
    pip.write_text(handover.pip_configuration(settings))
    names = work / "resolv.conf"
    names.write_text(handover.nameservers())
    downloads = lab.cache / "downloads" / "minimal"
    for shared in ("apt/partial", "uv", "npm"):
        (downloads / shared).mkdir(parents=True, exist_ok=True)
    binds = [
        f"--bind={work / 'checkout'}:/checkout",
        f"--bind={reports}:/checkout/reports",
        f"--bind={downloads / 'apt'}:/var/cache/apt/archives",
        f"--bind={downloads / 'uv'}:/root/.cache/uv",
        f"--bind={downloads / 'npm'}:/root/.npm",
        f"--bind-ro={pip}:/etc/pip.conf",
        f"--bind-ro={names}:/etc/resolv.conf",
        *(f"--bind-ro={folder}" for folder in handover.local_folders(settings)),
    ]
    if handover.CERTIFICATES.is_file():
        binds.append(f"--bind-ro={handover.CERTIFICATES}")
    scratch = work / "tmp"
    scratch.mkdir(mode=0o1777)
    binds.append(f"--bind={scratch}:/tmp")
    return [
        # its /tmp lies on the disk: a tenth of the memory is less than tests of a disk expect
        "env",
        "SYSTEMD_NSPAWN_TMPFS_TMP=0",
        "systemd-nspawn",
        "--quiet",
        f"--directory={tree}",
        "--volatile=overlay",
        f"--machine={lab.prefix}-minimal",
        "--console=pipe",
        "--as-pid2",
        "--register=no",
        "--keep-unit",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        *binds,
        *(f"--setenv={name}={os.environ[name]}" for name in HANDED_ON if name in os.environ),
        "--chdir=/checkout",
        "make",
        "check",
    ]
