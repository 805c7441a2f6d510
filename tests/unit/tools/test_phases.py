"""How long work is told: in the log everything, on the screen the phase, in a failure one paragraph."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import phases, testing
from tools.deployment import for_people
from tools.phases import Failure, Journal

ANSIBLE_FAILURE = """
PLAY [Prepare the LLM servers] *****

TASK [host : Packages are installed] *****
Saturday 21 November 2026
[ERROR]: Task failed: Module failed: No package matching 'nonsense' is available:
look for its name with apt-cache search
Origin: roles/host/tasks/main.yml:37:3

37 - name: Packages are installed
fatal: [llm-01]: FAILED! =>
    changed: false
"""


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Journal:
    monkeypatch.setattr(phases, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(phases, "ROOT", tmp_path)
    return Journal("deploy")


def test_a_failed_task_is_told_with_host_reason_and_log(journal: Journal) -> None:
    command = [sys.executable, "-c", f"print({ANSIBLE_FAILURE!r}); raise SystemExit(2)"]
    with pytest.raises(Failure) as failure:
        journal.phase("deploy", command)
    told = str(failure.value)
    assert "the task 'host : Packages are installed' failed on llm-01: " in told
    assert "No package matching 'nonsense' is available:\n    look for its name with apt-cache search\n" in told
    assert "Origin" not in told
    assert str(journal.log.name) in told
    assert "run the same command again" in told


SEVERAL_HOSTS = """
TASK [host : Look] *****
[ERROR]: Task failed: Failed to connect to the host via ssh: No route to host
Origin: x
fatal: [llm-02]: UNREACHABLE! =>
TASK [targets : Look] *****
[ERROR]: Task failed: it is not there
Origin: x
fatal: [metrics-01]: UNREACHABLE! =>
...ignoring
TASK [release : Stage] *****
[ERROR]: Task failed: a first reason
Origin: x
fatal: [llm-03]: FAILED! =>
TASK [Every LLM server did what was asked] *****
[ERROR]: Task failed: Action failed: the model gave no answer
Origin: x
fatal: [llm-03]: FAILED! =>
PLAY RECAP *****
llm-01       : ok=9    changed=1    unreachable=0    failed=0    skipped=0    rescued=0    ignored=0
llm-02       : ok=1    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0
llm-03       : ok=9    changed=0    unreachable=0    failed=1    skipped=0    rescued=1    ignored=0
metrics-01   : ok=9    changed=0    unreachable=0    failed=0    skipped=0    rescued=0    ignored=1
"""


def test_every_host_that_was_left_behind_is_named_with_its_own_reason(journal: Journal) -> None:
    command = [sys.executable, "-c", f"print({SEVERAL_HOSTS!r}); raise SystemExit(2)"]
    with pytest.raises(Failure) as told:
        journal.phase("deploy", command)
    said = str(told.value)
    assert "the task 'host : Look' failed on llm-02: Failed to connect to the host via ssh: No route to host" in said
    assert "and the task 'Every LLM server did what was asked' failed on llm-03: the model gave no answer" in said
    assert "metrics-01" not in said
    assert "a first reason" not in said


def test_a_failed_command_is_told_with_its_last_words(journal: Journal) -> None:
    with pytest.raises(Failure, match="ended with status 3, and its last words were:\n    no such thing"):
        journal.phase("look", [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"])


def test_the_log_has_every_line_and_the_report_every_phase(
    journal: Journal, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    journal.phase("count", [sys.executable, "-c", "print('one'); print('| two')"], show=for_people)
    journal.finish()
    assert "one\n| two\n" in journal.log.read_text()
    shown = capsys.readouterr().out
    assert "    two\n" in shown
    assert "one" not in shown.replace("done", "")
    assert list(json.loads((tmp_path / "reports/deploy.json").read_text())["phases"]) == ["count"]


def test_ending_a_phase_ends_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "PATIENCE", 0.5)
    script = "sleep 300 & echo $!; wait"
    process = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    child = os.pidfd_open(int(process.stdout.readline()))
    phases.end(process)
    assert process.returncode is not None
    assert select.select([child], [], [], 30)[0], "the child outlived its phase"
    os.close(child)


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("======= 9 passed in 5.03s =======", "======= 9 passed in 5.03s ======="),
        ('        - "===== 1 failed, 2 passed in 1.0s ====="', "===== 1 failed, 2 passed in 1.0s ====="),
        ("SKIPPED [1] tests/x.py:3: node is not installed", "SKIPPED [1] tests/x.py:3: node is not installed"),
        ("tests/lab/test_hosts.py .....", None),
    ],
)
def test_what_pytest_says_at_its_end_is_shown(line: str, verdict: str | None) -> None:
    assert testing.verdict(line) == verdict


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("    | Release 0002 is live.", "Release 0002 is live."),
        # how Ansible writes a message of one line
        ("    msg: '| Release 0002 is live, nothing to do.'", "Release 0002 is live, nothing to do."),
        ('    msg: "| It\'s live."', "It's live."),
        ("    msg: |-", None),
        ("ok: [llm-01]", None),
    ],
)
def test_what_roles_say_to_people_is_shown(line: str, said: str | None) -> None:
    assert for_people(line) == said


def python(words: str) -> list[str]:
    return [sys.executable, "-c", words]


def test_what_runs_beside_the_rest_has_a_log_of_its_own(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    with journal.beside("hosts", lambda aside: aside.phase("hosts", python("print('of the hosts')"))):
        journal.phase("check", python("print('of the check')"))
    assert set(journal.times) == {"hosts", "check"}
    logs = {path.name.endswith("-hosts.log"): path.read_text() for path in journal.log.parent.glob("*.log")}
    assert "of the hosts" in logs[True] and "of the check" not in logs[True]
    assert "of the check" in logs[False] and "of the hosts" not in logs[False]


FOREVER = "import time; print('begun', flush=True); time.sleep(300)"


@pytest.mark.parametrize("aside", [True, False])
def test_what_fails_ends_what_runs_beside_it_and_is_what_is_told(journal: Journal, *, aside: bool) -> None:
    begun = time.monotonic()
    fails, lasts = python("raise SystemExit('broken')"), python(FOREVER)

    def beside(other: Journal) -> None:
        other.phase("one", fails if aside else lasts)
        other.phase("never", python("open('never', 'w')"))

    with pytest.raises(Failure, match="broken"), journal.beside("hosts", beside):
        journal.phase("other", lasts if aside else fails)
        journal.phase("never", python("open('never', 'w')"))
    assert time.monotonic() - begun < 60
    assert not (journal.log.parent.parent / "never").exists()


def test_a_person_who_interrupts_ends_both(journal: Journal) -> None:
    with pytest.raises(KeyboardInterrupt), journal.beside("hosts", lambda aside: aside.phase("one", python(FOREVER))):
        raise KeyboardInterrupt
