"""A key for the proofs of one transaction, where the gateway serves nobody without one: revoked after it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from .compiled import gateway_paths
from .failure import FailedError
from .layout import Layout
from .manifest import Manifest
from .services import GATEWAY_TEMPLATE, environment_of

NAME = "release-proof"
TIER = "enterprise"  # a busy day must not fail a proof
DAYS = "0.05"  # should the transaction be killed, the key dies by itself

Run = Callable[[list[str], str, dict[str, str]], subprocess.CompletedProcess[str]]


def _run(command: list[str], user: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As the gateway's own user: a key file that root wrote would be lost to it."""
    return subprocess.run(
        command, user=user or None, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


class Credential:
    def __init__(self, layout: Layout, run: Run = _run) -> None:
        self._layout = layout
        self._run = run
        self._manifest: Manifest | None = None
        self._id = ""
        self.secret = ""

    def make(self, manifest: Manifest) -> None:
        self._manifest = manifest
        done = self._keys("create", NAME, "--tier", TIER, "--days", DAYS)
        if done.returncode or not done.stdout.strip():
            raise FailedError(f"No key could be made for the proof: {done.stderr.strip()}")
        self.secret = done.stdout.strip()
        # ck_<id>_<secret>
        self._id = self.secret.split("_")[1]

    def revoke(self) -> None:
        if self._id:
            self._keys("revoke", self._id)
            self._id = self.secret = ""

    def _keys(self, act: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        if self._manifest is None:
            raise FailedError("No release was chosen whose gateway could make a key.")
        release = self._layout.release(self._manifest.id)
        unit = (release / "units" / GATEWAY_TEMPLATE).read_text(encoding="utf-8")
        python = self._layout.inside(self._manifest.environments["gateway"]) / "bin/python"
        command = [
            str(python),
            "-B",
            "-P",
            "-m",
            "citadel_gateway",
            "keys",
            act,
            "--config",
            str(_configuration(release)),
        ]
        return self._run([*command, *arguments], environment_of(unit).get("User", ""), gateway_paths(release))


def _configuration(release: Path) -> Path:
    return release / "config/gateway.yml"
