"""Verbs that judge: `check` needs nothing but Python, `test` adds the lab."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from lab import preflight
from lab.settings import Lab, LabError
from tools import minimal, toolchain
from tools.phases import ROOT, Failure, Journal, say

# what pytest says at its end, why it passed over something, and what passed at the second try only
VERDICT = re.compile(r"(=+ .*(?:passed|failed|error).* =+|(?:SKIPPED \[|RERUN ).*)$")
# Tests measure by the clock on machines that others use too. One that failed is tried once more and named; whatever
# passes at the second try only is a defect to mend, and no reason to stop somebody else's work.
RERUN = "--reruns=1"
WITHOUT_A_LAB = ("tests/unit", "tests/render", "tests/gateway", "tests/companion", "tests/chaos/gateway")


def verdict(line: str) -> str | None:
    found = VERDICT.search(line.rstrip(" '\""))
    return found[1] if found else None


def done_or_verdict(line: str) -> str | None:
    """What a verb within a verb says: its phases when they are over, and the verdicts."""
    return line.strip() if " … done in " in line else verdict(line)


def shell_scripts() -> list[str]:
    listed = subprocess.run(
        ["git", "grep", "--untracked", "-lE", "^#!.*\\b(ba)?sh$"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    # that line may also stand in a text of theirs
    return [name for name in listed if not name.endswith((".md", ".j2", ".py"))]


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
    run("tests without a lab", "pytest", RERUN, *WITHOUT_A_LAB)


def check() -> None:
    journal = Journal("check")
    toolchain.python_tools(journal)
    cheap_checks(journal)
    journal.finish()


def test() -> None:
    root = os.geteuid() == 0
    journal = Journal("test")
    try:
        # whoever plays with the demo meanwhile is not disturbed
        lab = Lab.from_environment().beside("t")
        if root:
            # what would end the run in an hour ends it now
            preflight.room(lab)
        toolchain.python_tools(journal, "test" if root else "check")
        if not root:
            cheap_checks(journal)
            as_deployed(journal)
            say("  SKIPPED: the tests on the lab, because hosts can only be booted by root (run `sudo make test`)")
        else:
            with preflight.only_one(lab):
                preflight.check(lab)
                # hosts wait for systemd more than they compute
                with journal.beside("hosts", on_hosts):
                    # a person's `make check`, where nothing but its own list has brought anything
                    minimal.check(journal, lab, done_or_verdict)
                    as_deployed(journal)
                on_the_lab(journal, lab)
    except LabError as error:
        raise Failure(str(error)) from None
    journal.finish()


def fuzz() -> None:
    """Strange requests for as long as SECONDS says, at simulated models or at the gateway at ADDRESS, with KEY."""
    toolchain.python_tools(Journal("fuzz"))
    said = {
        "--seconds": os.environ.get("SECONDS"),
        "--address": os.environ.get("ADDRESS"),
        "--key": os.environ.get("KEY"),
    }
    options = [word for name, value in said.items() if value for word in (name, value)]
    if toolchain.run_python("-m", "tests.fuzz", *options).wait():
        raise Failure("An innocent client was hurt, or an answer did not help; the requests stand above.")


def prove_alerts() -> None:
    """Faults on the lab that stands, each followed to a message and to its end; nothing may be told before."""
    hurt_the_lab("prove-alerts", "tests.proof", "--health", os.environ.get("SECONDS") or "60")


def prove_usage() -> None:
    """Faults of companion and database on the lab that stands; afterwards each request is kept once."""
    hurt_the_lab("prove-usage", "tests.proof.usage")


def hurt_the_lab(verb: str, *module: str) -> None:
    toolchain.python_tools(Journal(verb))
    lab = Lab.from_environment()
    if not lab.record.is_file():
        raise Failure("There is no lab to hurt: run `make demo` first.")
    try:
        with preflight.only_one(lab):
            failed = toolchain.run_python("-m", *module).wait()
    except LabError as error:
        raise Failure(str(error)) from None
    if failed:
        raise Failure("What should have been so was not; it is named above.")


def as_deployed(journal: Journal) -> None:
    """The gateway's tests once more, on the compiled path that a release has."""
    compiled = toolchain.compiled(journal, toolchain.program("python"))
    # the companion beside it stays as it is
    tests: list[str | Path] = [toolchain.program("pytest"), RERUN]
    tests += [f"--override-ini=pythonpath={compiled} gateway/src .", "tests/gateway", "tests/chaos/gateway"]
    paths = {**toolchain.environment(), "PYTHONPATH": f"{compiled}:{ROOT / 'gateway/src'}:{ROOT}"}
    journal.phase("tests of the compiled gateway", tests, paths, verdict)


def on_hosts(journal: Journal) -> None:
    hosts: list[str | Path] = [toolchain.program("pytest"), RERUN, "tests/chaos/environment"]
    hosts += ["tests/chaos/lab", "tests/chaos/release"]
    journal.phase("tests on hosts without models", hosts, toolchain.environment(), verdict)


def on_the_lab(journal: Journal, lab: Lab) -> None:
    # molecule names the place of its state after the checkout's last folder, and another's may have the same name
    own = {**lab.settings, "MOLECULE_EPHEMERAL_DIRECTORY": str(ROOT / ".cache" / "molecule" / lab.prefix)}
    environment = {**toolchain.environment(), **own}
    journal.phase("molecule test", [toolchain.program("molecule"), "test"], environment, verdict)
