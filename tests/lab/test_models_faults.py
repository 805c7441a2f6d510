"""What breaks one model breaks it alone, is said in a sentence, and heals as far as it can by itself.

One model is hurt, phi-3-mini; hermes-2 stands for the others, which must not notice.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.lab import loopback

HURT, OTHER = "phi-3-mini", "hermes-2"
PORTS = {HURT: 11403, OTHER: 11401}
CURRENT = "/opt/citadel/current"
PATIENCE = 240.0


def unit(model: str) -> str:
    return f"citadel-llm@{model}.service"


def shown(llm: Host, model: str, key: str) -> str:
    return str(llm.run(f"systemctl show --property={key} --value {unit(model)}").stdout.strip())


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"waited {patience:.0f} s in vain: {what}"
        time.sleep(0.5)


def answers(llm: Host, model: str) -> bool:
    body = {"model": model, "prompt": "Hello", "max_tokens": 2}
    return loopback.ask(llm, f"http://127.0.0.1:{PORTS[model]}/v1/completions", body)[0] == 200


def processes(llm: Host, model: str) -> dict[str, int]:
    """The two kinds of processes of a service, by what they call themselves."""
    listing = llm.run(f"grep --files-with-matches --fixed-strings '{unit(model)}' /proc/[0-9]*/cgroup").stdout
    found = {}
    for pid in re.findall(r"/proc/(\d+)/", listing):
        name = llm.run(f"cat /proc/{pid}/comm").stdout.strip()
        if name.startswith("VLLM::Engine"):
            found["engine"] = int(pid)
    found["api"] = int(shown(llm, model, "MainPID"))
    return found


def words_since(llm: Host, model: str, cursor: str) -> str:
    return str(llm.run(f"journalctl --unit={unit(model)} --after-cursor='{cursor}' --output=cat --no-pager").stdout)


@pytest.fixture
def cursor(llm: Host) -> str:
    """Where the journal ends now, so that a test only reads what it caused."""
    text = llm.run("journalctl --lines=0 --show-cursor --no-pager").stdout
    return str(text.rpartition("-- cursor: ")[2].strip())


@pytest.fixture(autouse=True)
def others_do_not_notice(llm: Host) -> Iterator[None]:
    before = shown(llm, OTHER, "MainPID"), shown(llm, OTHER, "NRestarts")
    assert answers(llm, OTHER)
    yield
    assert (shown(llm, OTHER, "MainPID"), shown(llm, OTHER, "NRestarts")) == before
    assert answers(llm, OTHER)


@pytest.fixture(scope="class")
def stopped(llm: Host) -> Iterator[None]:
    """The model stopped for these tests, and serving again after them."""
    assert llm.run(f"systemctl stop {unit(HURT)}").rc == 0
    yield
    llm.run(f"systemctl reset-failed {unit(HURT)}; systemctl restart {unit(HURT)}")
    until(lambda: answers(llm, HURT), f"{HURT} serves again")


def refused(llm: Host, cursor: str) -> str:
    """Starts the model, and gives what the check before the start said."""
    started = llm.run(f"systemctl start {unit(HURT)}")
    assert started.rc != 0
    llm.run(f"systemctl stop {unit(HURT)}")
    said = words_since(llm, HURT, cursor)
    assert "api_server" not in said, "vLLM was started all the same"
    (sentence, *_) = [line for line in said.splitlines() if "cannot start:" in line]
    return sentence


@pytest.mark.parametrize("victim", ["engine", "api"])
def test_a_killed_process_comes_back_by_itself(llm: Host, victim: str) -> None:
    until(lambda: answers(llm, HURT), f"{HURT} serves")
    restarts = int(shown(llm, HURT, "NRestarts"))
    llm.run(f"kill -KILL {processes(llm, HURT)[victim]}")
    until(lambda: int(shown(llm, HURT, "NRestarts")) > restarts, f"the unit restarts without its {victim}", 60)
    until(lambda: answers(llm, HURT), f"{HURT} serves again")
    assert len(processes(llm, HURT)) == 2


def test_memory_beyond_the_plan_kills_it_alone(llm: Host, cursor: str) -> None:
    until(lambda: answers(llm, HURT), f"{HURT} serves")
    try:
        # less than its first process alone takes
        llm.run(f"systemctl set-property --runtime {unit(HURT)} MemoryMax=300M")
        llm.run(f"systemctl restart --no-block {unit(HURT)}")
        # by its name where control groups are unified, else by what the kernel did
        ends = ("oom-kill", "status=9/KILL", "code=killed")
        until(lambda: any(end in words_since(llm, HURT, cursor) for end in ends), "the kernel ends it", 120)
    finally:
        llm.run(f"rm -rf '/run/systemd/system.control/{unit(HURT)}.d'; systemctl daemon-reload")
        llm.run(f"systemctl reset-failed {unit(HURT)}; systemctl restart {unit(HURT)}")
    until(lambda: answers(llm, HURT), f"{HURT} serves again")


def test_a_model_that_systemd_gave_up_on_is_tried_again(llm: Host) -> None:
    until(lambda: answers(llm, HURT), f"{HURT} serves")
    limit, delay = (f"/run/systemd/system/{name}.d" for name in (unit(HURT), f"citadel-revive@{HURT}.timer"))
    try:
        llm.run_test(f"mkdir -p {limit} {delay}")
        llm.run_test("printf '[Unit]\\nStartLimitBurst=1\\n' > %s/soon.conf", limit)
        llm.run_test("printf '[Timer]\\nOnActiveSec=\\nOnActiveSec=8\\n' > %s/soon.conf", delay)
        llm.run_test("systemctl daemon-reload")
        # counted from here on, whatever was counted before the limit was another
        llm.run(f"systemctl reset-failed {unit(HURT)}; systemctl restart {unit(HURT)}")
        llm.run(f"systemctl kill --signal=KILL {unit(HURT)}")
        until(lambda: shown(llm, HURT, "ActiveState") == "failed", "systemd gives up", 60)
        until(lambda: answers(llm, HURT), f"{HURT} serves again")
    finally:
        llm.run(f"rm -rf {limit} {delay}; systemctl daemon-reload")


def settings(llm: Host) -> dict[str, str]:
    text = llm.file(f"{CURRENT}/config/models/{HURT}.env").content_string
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def model_folder(llm: Host) -> str:
    return settings(llm)["CITADEL_MODEL"]


@pytest.mark.usefixtures("stopped")
class TestRefusedStarts:
    """What the check before a start finds; vLLM is not even begun."""

    def test_a_taken_port_is_named(self, llm: Host, cursor: str) -> None:
        listen = f"import socket,time; s=socket.create_server(('127.0.0.1', {PORTS[HURT]})); time.sleep(600)"
        llm.run(f'systemd-run --unit=port-thief /usr/bin/python3 -c "{listen}"')
        try:
            until(lambda: f":{PORTS[HURT]}" in llm.run("ss -ltn").stdout, "the port is taken", 20)
            assert f"127.0.0.1:{PORTS[HURT]} cannot be had: Address already in use" in refused(llm, cursor)
        finally:
            llm.run("systemctl stop port-thief")

    def test_one_altered_byte_is_found(self, llm: Host, cursor: str) -> None:
        file = f"{model_folder(llm)}/model.safetensors"
        llm.run(f"cp --preserve=all {file} {file}.whole")
        try:
            llm.run(f"printf x | dd of={file} bs=1 seek=100000 conv=notrunc status=none")
            assert "model.safetensors was altered" in refused(llm, cursor)
        finally:
            llm.run(f"mv {file}.whole {file}")

    def test_a_missing_file_is_found(self, llm: Host, cursor: str) -> None:
        folder = model_folder(llm)
        llm.run(f"mv {folder}/config.json {folder}/config.json.away")
        try:
            assert "config.json is missing" in refused(llm, cursor)
        finally:
            llm.run(f"mv {folder}/config.json.away {folder}/config.json")

    def test_a_half_built_environment_is_found(self, llm: Host, cursor: str) -> None:
        marker = f"{settings(llm)['CITADEL_ENVIRONMENT']}/complete"
        llm.run(f"mv {marker} {marker}.away")
        try:
            assert "half built; deploy again" in refused(llm, cursor)
        finally:
            llm.run(f"mv {marker}.away {marker}")


def test_a_full_disk_is_told_before_a_download(llm: Host) -> None:
    llm.run("mkdir -p /run/small && mount -t tmpfs -o size=1M tmpfs /run/small")
    try:
        source = json.dumps({"kind": "directory", "path": model_folder(llm)})
        done = llm.run(
            "PYTHONPATH=%s/host python3 -m citadel fetch copy --revision r1 --source %s --root /run/small",
            CURRENT,
            source,
        )
        assert done.rc == 1
        assert "GB free" in done.stderr and "run again" in done.stderr
        assert not list(filter(None, llm.run("ls /run/small/copy").stdout.split()))
    finally:
        llm.run("umount /run/small")


def test_a_crash_is_told_while_it_is_waited_for(llm: Host, tmp_path: Path) -> None:
    """The wait for a model ends with the unit, not with its own patience."""
    del tmp_path
    until(lambda: answers(llm, HURT), f"{HURT} serves")
    llm.run(f"systemctl restart --no-block {unit(HURT)}")
    until(lambda: shown(llm, HURT, "SubState") == "running", "the restart began", 60)
    wait = f"PYTHONPATH={CURRENT}/host timeout 120 python3 -m citadel ready {HURT}"
    llm.run(f"(sleep 3; kill -KILL $(systemctl show --property=MainPID --value {unit(HURT)})) >/dev/null 2>&1 &")
    began = time.monotonic()
    done = llm.run(wait)
    assert done.rc == 1
    assert time.monotonic() - began < 30
    assert "died and was started again" in done.stderr or f"{unit(HURT)} is " in done.stderr
    assert "Its last words" in done.stderr
    until(lambda: answers(llm, HURT), f"{HURT} serves again")
