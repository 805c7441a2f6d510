"""The gateway and all of it as systemctl shows and steers them: what people type does what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from citadel.release.installed import Ours, present
from citadel.release.probe import Connection
from lab.machine import wait
from tests.chaos.release.box.content import content, early
from tests.chaos.release.conftest import Box, Client

MODELS: dict[str, dict[str, Any]] = {"alpha": {}, "beta": {}}
NAMES = ("citadel-gateway", "citadel-llm-gateway")


@pytest.fixture
def live(box: Box) -> str:
    box.clear()
    manifest = box.stage(content(MODELS))
    outcome = box.activate(manifest.id)
    assert outcome["outcome"] == "committed", outcome
    wait(lambda: state(box, "citadel-gateway") == "active", 20, show(box, "citadel-gateway"))
    return manifest.id


def systemctl(box: Box, *arguments: str) -> str:
    done = box.run("systemctl", *arguments, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def state(box: Box, unit: str) -> str:
    return box.run("systemctl", "is-active", unit, check=False).stdout.strip()


def show(box: Box, *units: str) -> str:
    return box.run("systemctl", "status", "--no-pager", *units, check=False).stdout


def answers(box: Box, model: str = "alpha") -> bool:
    try:
        with Connection(8000, host=box.address) as connection:
            status, _ = connection.ask("/v1/chat/completions", {"model": model, "messages": []})
            return status == 200
    except Exception:
        return False


def listens(box: Box) -> bool:
    tables = [Path(f"/proc/{box.machine.leader}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    return any(":1F40 " in line and " 0A " in line for table in tables for line in table.splitlines())


def process(box: Box, unit: str) -> str:
    return systemctl(box, "show", "--property=MainPID", "--value", unit).strip()


@pytest.mark.parametrize("name", NAMES)
def test_what_people_ask_about_the_gateway(box: Box, live: str, name: str) -> None:
    assert state(box, name) == "active"
    assert systemctl(box, "is-enabled", name).strip() in {"enabled", "alias"}
    pid = process(box, f"citadel-gateway@{live}.service")
    wait(lambda: f"release {live} serves, process {pid}, health: healthy" in show(box, name), 20, show(box, name))
    assert "Active: active (running)" in show(box, name)
    systemctl(box, "reload", name)
    said = "reads its configuration anew"
    wait(lambda: said in show(box, name), 10, f"not in the status: {show(box, name)}")
    told = box.run("journalctl", "-u", f"{name}.service", "-o", "cat", "--no-pager").stdout
    assert said in told
    assert process(box, f"citadel-gateway@{live}.service") == pid, "a reload is no restart"


@pytest.mark.parametrize("name", NAMES)
def test_stop_closes_the_port_and_start_opens_it(box: Box, live: str, name: str) -> None:
    systemctl(box, "stop", name)
    assert state(box, name) == "inactive"
    assert state(box, f"citadel-gateway@{live}.service") == "inactive", "it goes on under another name"
    wait(lambda: not listens(box), 5, f"the port is still open: {show(box, 'citadel-gateway-api.socket')}")
    assert not answers(box)
    assert state(box, "citadel-llm@alpha.service") == "active", "the models are not the gateway"
    systemctl(box, "start", name)
    assert state(box, name) == "active" and answers(box), "the start has returned, and nobody answers"


@pytest.mark.parametrize("name", NAMES)
def test_restart_refuses_nobody(box: Box, live: str, name: str, client: Callable[..., Client]) -> None:
    before = process(box, f"citadel-gateway@{live}.service")
    with client("alpha", "beta") as asking:
        systemctl(box, "restart", name)
        assert state(box, name) == "active"
        assert process(box, f"citadel-gateway@{live}.service") not in {before, "0"}
        assert answers(box)
    assert asking.wrong == []


def test_stop_waits_for_the_last_request(box: Box, live: str) -> None:
    with Connection(8000, host=box.address) as connection:
        body = {"model": "alpha", "stream": True, "max_tokens": 20, "messages": []}
        connection._http.request("POST", "/v1/chat/completions", json.dumps(body))
        wait(lambda: state(box, f"citadel-gateway@{live}.service") == "active", 5, "")
        systemctl(box, "stop", "citadel-gateway")
        assert b"[DONE]" in connection._http.getresponse().read()
    assert state(box, f"citadel-gateway@{live}.service") == "inactive"


def test_the_target_is_everything(box: Box, live: str) -> None:
    units = [f"citadel-gateway@{live}.service", "citadel-llm@alpha.service", "citadel-llm@beta.service"]
    before = [process(box, unit) for unit in units]
    systemctl(box, "restart", "citadel-llm.target")
    wait(lambda: not {*before, "0"} & {process(box, unit) for unit in units}, 20, show(box, *units))
    wait(lambda: answers(box, "alpha") and answers(box, "beta"), 20, show(box, *units))
    systemctl(box, "stop", "citadel-llm.target")
    wait(lambda: {state(box, unit) for unit in units} == {"inactive"}, 20, show(box, *units))
    wait(lambda: not listens(box), 5, "the port is still open")
    systemctl(box, "start", "citadel-llm.target")
    wait(lambda: answers(box, "alpha") and answers(box, "beta"), 20, show(box, *units))
    assert state(box, "citadel-gateway") == "active"


def test_the_models_have_a_target_of_their_own(box: Box, live: str) -> None:
    gateway = process(box, f"citadel-gateway@{live}.service")
    systemctl(box, "stop", "citadel-models.target")
    wait(lambda: state(box, "citadel-llm@alpha.service") == "inactive", 20, show(box, "citadel-llm@alpha.service"))
    assert process(box, f"citadel-gateway@{live}.service") == gateway
    systemctl(box, "start", "citadel-models.target")
    wait(lambda: answers(box), 20, "no answer")
    systemctl(box, "reload", "citadel-llm@alpha")


def test_it_is_honest_where_no_gateway_runs(box: Box, live: str) -> None:
    systemctl(box, "stop", f"citadel-gateway@{live}.service")
    wait(lambda: state(box, "citadel-gateway") == "failed", 20, show(box, "citadel-gateway"))
    assert "No gateway runs" in show(box, "citadel-gateway")
    systemctl(box, "start", "citadel-gateway")
    assert answers(box)


def test_the_face_may_die_and_nobody_notices(box: Box, live: str, client: Callable[..., Client]) -> None:
    gateway = process(box, f"citadel-gateway@{live}.service")
    with client("alpha") as asking:
        systemctl(box, "kill", "--signal=KILL", "--kill-whom=main", "citadel-gateway")
        wait(lambda: state(box, "citadel-gateway") == "failed", 10, show(box, "citadel-gateway"))
        assert process(box, f"citadel-gateway@{live}.service") == gateway
        new = box.stage(content(MODELS, {"colour": "green"})).id
        assert box.activate(new)["outcome"] == "committed"
        wait(lambda: state(box, "citadel-gateway") == "active", 10, show(box, "citadel-gateway"))
    assert asking.wrong == []


def test_what_was_disabled_stays_away_at_boot_and_a_deployment_brings_it_back(box: Box, live: str) -> None:
    systemctl(box, "disable", "citadel-gateway")
    box.pull_the_plug()
    box.start()
    wait(lambda: state(box, "citadel-llm@alpha.service") == "active", 20, show(box, "citadel-llm@alpha.service"))
    assert state(box, "citadel-gateway") == "inactive" and not listens(box)
    outcome = box.activate(live)
    assert outcome["outcome"] == "committed" and any("disable" in line for line in outcome["plan"]["healed"]), outcome
    wait(lambda: state(box, "citadel-gateway") == "active" and answers(box), 20, show(box, "citadel-gateway"))
    box.pull_the_plug()
    box.start()
    wait(lambda: answers(box), 30, show(box, "citadel-gateway"))


def test_systemctl_edit_survives_and_a_hand_made_change_is_healed(box: Box, live: str) -> None:
    units = box.layout.units
    override = "[Service]\nNice=5\n"
    editor = f"#!/bin/sh\nprintf '{override}' > \"$1\"\n"
    (box.layout.root / "srv/box/editor").write_text(editor)
    (box.layout.root / "srv/box/editor").chmod(0o755)
    edit = "SYSTEMD_EDITOR=/srv/box/editor systemctl edit citadel-llm@beta.service"
    box.run("script", "--quiet", "--return", "--command", edit, "/dev/null")  # it wants a terminal
    assert (units / "citadel-llm@beta.service.d/override.conf").read_text().strip() == override.strip()
    template = units / "citadel-llm@.service"
    right = template.read_text()
    template.write_text(right.replace("RestartSec=1", "RestartSec=7"))
    outcome = box.activate(live)
    assert outcome["outcome"] == "committed", outcome
    assert [line for line in outcome["plan"]["healed"] if "citadel-llm@.service was altered by hand" in line]
    assert [line for line in outcome["plan"]["kept"] if "override.conf" in line]
    assert template.read_text() == right
    assert "RestartSec=7" in (box.layout.state / "altered/citadel-llm@.service").read_text()
    new = box.stage(content({"alpha": {}})).id
    assert box.activate(new)["outcome"] == "committed"
    assert (units / "citadel-llm@beta.service.d/override.conf").read_text().strip() == override.strip()
    assert not (units / "citadel-llm@beta.service.d/plan.conf").exists()


def as_before(box: Box) -> None:
    """The units as links into the live release, as an earlier version of the program left them."""
    for path in present(box.layout):
        if path.is_symlink() or path.parent.name.endswith(".wants"):
            continue
        inside = path.relative_to(box.layout.units)
        if "gateway@" in path.name:
            target = f"/opt/citadel/releases/{box.live}/units/citadel-gateway@.service"
        else:
            target = f"/opt/citadel/current/units/{inside}"
        if inside.parent.name:
            box.run("sh", "-c", f"cd /etc/systemd/system; rm -r {inside.parent}; ln -s {target.rpartition('/')[0]} .")
        else:
            box.run("ln", "-sf", target, f"/etc/systemd/system/{inside}")
    systemctl(box, "daemon-reload")


def test_a_host_with_linked_units_is_taken_over_and_can_go_back(box: Box, client: Callable[..., Client]) -> None:
    box.clear()
    old = box.stage(early(content(MODELS))).id
    assert box.activate(old)["outcome"] == "committed"
    as_before(box)
    box.pull_the_plug()
    box.start()
    wait(lambda: answers(box), 30, show(box, "citadel-gateway-api.socket", f"citadel-gateway@{old}"))
    with client("alpha", "beta") as asking:
        new = box.stage(content(MODELS)).id
        outcome = box.activate(new)
        assert outcome["outcome"] == "committed", outcome
        assert outcome["plan"]["healed"] == [] and outcome["plan"]["kept"] == [], outcome["plan"]
        wait(lambda: state(box, "citadel-gateway") == "active", 20, show(box, "citadel-gateway"))
        # but for that of the gateway before, which stays for as long as that one drains
        assert [link for link in links(box) if link != f"citadel-gateway@{old}.service"] == []
        back = box.end(box.begin(old))
        assert back["outcome"] == "committed", back
        wait(lambda: set(box.units()) >= {f"citadel-gateway@{old}.service"}, 10, str(box.units()))
        assert box.activate(new)["outcome"] == "committed"
    assert asking.wrong == []
    assert links(box) == []
    wait(lambda: state(box, "citadel-gateway") == "active", 20, show(box, "citadel-gateway"))


def links(box: Box) -> list[str]:
    """What of ours still leads into a release."""
    there = Ours(box.layout).there()
    return [path.name for path in there if path.is_symlink() and str(path.readlink()).startswith("/opt/")]
