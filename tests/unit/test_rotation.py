"""Twenty rotations by the real logrotate, with the file that the role `logs` brings, while whoever writes goes on: each
line is there once."""

from __future__ import annotations

import contextlib
import grp
import gzip
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from tools import programs

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "roles/logs/templates/etc/logrotate.d/citadel-llm.j2"
ROTATIONS = 20

GATEWAY = """
import asyncio, signal, sys
from citadel_gateway.logs import JsonLog

async def write(path):
    log, over, number = JsonLog(path, lambda lines: sys.exit("lines were dropped"), pause=0.001), asyncio.Event(), 0
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    while not over.is_set():
        for _ in range(20):
            log.write({"line": number})
            number += 1
        await asyncio.sleep(0.001)
    log.close()
    print(number)

asyncio.run(write(sys.argv[1] + "/access.log"))
"""
# a journal that never ends, and says when it does how many lines it had
JOURNAL = """#!{python}
import json, signal, sys
signal.signal(signal.SIGTERM, lambda *_: globals().update(over=True))
over, number = False, 0
while not over:
    unit = "citadel-llm@phi.service" if number % 2 else "citadel-gateway@1.service"
    entry = dict(_SYSTEMD_UNIT=unit, PRIORITY="3", MESSAGE=f"line: {{number}}.", __CURSOR=f"c{{number}}",
                 __REALTIME_TIMESTAMP="1700000000000000")
    sys.stdout.write(json.dumps(entry) + "\\n")
    sys.stdout.flush()
    number += 1
open("{count}", "w").write(str(number))
"""


def rendered(folder: Path, **said: object) -> str:
    settings = {
        "ansible_managed": "Ansible managed",
        "logs_directory": folder,
        "logs_user": pwd.getpwuid(os.getuid()).pw_name,
        "logs_group": grp.getgrgid(os.getgid()).gr_name,
        "logs_size": "100M",
        "logs_kept": 30,
        "logs_reload": "citadel-gateway.service",
    }
    return (
        jinja2.Environment(undefined=jinja2.StrictUndefined)
        .from_string(TEMPLATE.read_text())
        .render({**settings, **said})
    )


class Logs:
    """A folder of logs, and logrotate for it with a state of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place / "logs"
        self.folder.mkdir(mode=0o750)

    def rotate(self, *options: str, **said: object) -> None:
        configuration = self.place / "rotate.conf"
        configuration.write_text(rendered(self.folder, **said))
        configuration.chmod(0o644)
        command = [programs.find("logrotate") or "logrotate", "--state", self.place / "state", *options, configuration]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def rotate_while_they_grow(self, *names: str) -> None:
        for _ in range(ROTATIONS):
            limit = time.monotonic() + 20
            while not all((self.folder / name).exists() and (self.folder / name).stat().st_size for name in names):
                assert time.monotonic() < limit, "nobody writes"
                time.sleep(0.001)
            self.rotate("--force")

    def numbers(self, name: str) -> Iterator[int]:
        for path in self.folder.glob(f"{name}*"):
            text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
            for line in text.splitlines():
                found = re.search(r'line"?: ?(\d+)[.}]', line)
                assert found, f"{path} has {line!r}"
                yield int(found[1])


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


@contextlib.contextmanager
def started(*command: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    found = {**os.environ, "PYTHONPATH": f"{ROOT}/gateway/src:{ROOT}/plugins/module_utils", **environment}
    writer = subprocess.Popen([str(word) for word in command], env=found, stdout=subprocess.PIPE, text=True)
    try:
        yield writer
    finally:
        writer.kill()
        writer.communicate()


def test_of_the_gateways_log(logs: Logs) -> None:
    with started(sys.executable, "-c", GATEWAY, logs.folder) as writer:
        logs.rotate_while_they_grow("access.log")
        writer.terminate()
        written = int(writer.communicate(timeout=20)[0])
    assert sorted(logs.numbers("access.log")) == list(range(written))
    assert len(list(logs.folder.glob("access.log.*"))) == ROTATIONS
    assert all(path.stat().st_mode & 0o777 == 0o640 for path in logs.folder.iterdir())


def test_of_the_journals_as_files(logs: Logs) -> None:
    folder, count = logs.place / "bin", logs.place / "count"
    folder.mkdir()
    (folder / "journalctl").write_text(JOURNAL.format(python=sys.executable, count=count))
    (folder / "journalctl").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    with started(sys.executable, "-m", "citadel", "logs", logs.folder, PATH=path) as follower:
        logs.rotate_while_they_grow("phi.log", "error.log")
        follower.terminate()
        assert follower.wait(60) == 0
    found = [*logs.numbers("phi.log"), *logs.numbers("error.log")]
    assert sorted(found) == list(range(int(count.read_text())))
    assert len(list(logs.folder.glob("phi.log.*"))) == ROTATIONS


def test_of_the_health_monitors_log(logs: Logs) -> None:
    from citadel.status import append

    for number in range(ROTATIONS):
        append(logs.folder / "health-monitor.log", f"line: {number}.\n")
        logs.rotate("--force")
    assert sorted(logs.numbers("health-monitor.log")) == list(range(ROTATIONS))


def test_a_day_a_size_and_a_number_decide(logs: Logs) -> None:
    log = logs.folder / "access.log"
    log.write_text("a" * 2000)
    logs.rotate(logs_size="1k")
    assert not log.exists() and (logs.folder / "access.log.1").stat().st_size == 2000
    log.write_text("b")
    logs.rotate(logs_size="1k")
    assert log.exists(), "today's, and it is small"
    state = logs.place / "state"
    state.write_text(re.sub(r"\d{4}-\d+-\d+-", "2020-1-1-", state.read_text()))
    logs.rotate(logs_size="1k")
    assert not log.exists(), "it was rotated days ago"
    for _ in range(5):
        log.write_text("c")
        logs.rotate("--force", logs_kept=3)
    assert sorted(path.name for path in logs.folder.iterdir()) == ["access.log.1", "access.log.2.gz", "access.log.3.gz"]


def test_names_that_lead_to_a_log_are_left(logs: Logs) -> None:
    (logs.folder / "access.log").write_text(json.dumps({"line": 1}))
    (logs.folder / "api-gateway.log").symlink_to("access.log")
    logs.rotate("--force")
    assert (logs.folder / "api-gateway.log").is_symlink()
    assert sorted(path.name for path in logs.folder.iterdir()) == ["access.log.1", "api-gateway.log"]
