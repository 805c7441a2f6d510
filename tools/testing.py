"""Verbs that judge: `check` needs nothing but Python, `test` adds the lab."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from lab import preflight
from lab.settings import Lab, LabError
from tools import toolchain
from tools.phases import ROOT, Failure, Journal, say

# what pytest says at its end, and why it passed over something
VERDICT = re.compile(r"(=+ .*(?:passed|failed|error).* =+|SKIPPED \[.*)$")


def verdict(line: str) -> str | None:
    found = VERDICT.search(line.rstrip(" '\""))
    return found[1] if found else None


def shell_scripts() -> list[str]:
    listed = subprocess.run(
        ["git", "grep", "--untracked", "-lE", "^#!.*\\b(ba)?sh$"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    return [name for name in listed if not name.endswith((".md", ".j2"))]


def cheap_checks(journal: Journal) -> None:
    environment = toolchain.environment()

    def run(name: str, *command: str) -> None:
        journal.phase(name, [toolchain.program(command[0]), *command[1:]], environment, verdict)

    run("ruff", "ruff", "check", ".")
    run("mypy", "mypy", "lab", "tools", "plugins", "gateway/src", "tests")
    run("yamllint", "yamllint", "--strict", ".")
    run("ansible-lint", "ansible-lint", "--offline", "--strict")
    scripts = shell_scripts()
    if scripts:
        journal.phase("shellcheck", ["shellcheck", *scripts])
    run("tests without a lab", "pytest", "tests/unit", "tests/render", "tests/gateway", "tests/chaos/gateway")


def check() -> None:
    toolchain.require_python()
    journal = Journal("check")
    toolchain.packages(journal, toolchain.TEST_PROGRAMS)
    toolchain.python_tools(journal)
    cheap_checks(journal)
    journal.finish()


def beside(lab: Lab) -> Lab:
    """The tests' own lab: whoever plays with the demo meanwhile is not disturbed."""
    third = int(lab.network.network_address.packed[2]) + 1
    return Lab.named(f"{lab.prefix[:9]}t", f"{lab.network.network_address.exploded.rsplit('.', 2)[0]}.{third % 256}")


def test() -> None:
    toolchain.require_python()
    root = os.geteuid() == 0
    journal = Journal("test")
    try:
        lab = beside(Lab.from_environment())
        if root:
            # what would end the run in an hour ends it now
            preflight.room(lab)
        toolchain.packages(journal, {**toolchain.TEST_PROGRAMS, **(toolchain.LAB_PROGRAMS if root else {})})
        toolchain.python_tools(journal)
        cheap_checks(journal)
        as_deployed(journal)
        if root:
            with preflight.only_one(lab):
                preflight.check(lab)
                on_the_lab(journal, lab)
        else:
            say("  SKIPPED: the tests on the lab, because hosts can only be booted by root (run `sudo make test`)")
    except LabError as error:
        raise Failure(str(error)) from None
    journal.finish()


def as_deployed(journal: Journal) -> None:
    """The gateway's tests once more, on the compiled path that a release has."""
    compiled = toolchain.compiled(journal, toolchain.program("python"))
    tests: list[str | Path] = [toolchain.program("pytest"), f"--override-ini=pythonpath={compiled} ."]
    tests += ["tests/gateway", "tests/chaos/gateway"]
    paths = {**toolchain.environment(), "PYTHONPATH": f"{compiled}:{ROOT}"}
    journal.phase("tests of the compiled gateway", tests, paths, verdict)


def on_the_lab(journal: Journal, lab: Lab) -> None:
    environment = toolchain.environment()
    hosts: list[str | Path] = [toolchain.program("pytest"), "tests/chaos/environment"]
    hosts += ["tests/chaos/lab", "tests/chaos/release"]
    journal.phase("tests on hosts without models", hosts, environment, verdict)
    own = {"LAB_PREFIX": lab.prefix, "LAB_NETWORK": str(lab.network.network_address).rpartition(".")[0]}
    journal.phase("molecule test", [toolchain.program("molecule"), "test"], {**environment, **own}, verdict)
