"""What a deployment leaves on a real host: an immutable release that is live, proven, and ready to be recovered."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

HOME = "/opt/citadel"
CITADEL = f"cd / && PYTHONPATH={HOME}/state/engine python3 -B -m citadel release"


@pytest.fixture(scope="module")
def live(llm: Host) -> str:
    return str(llm.check_output(f"basename $(readlink {HOME}/current)"))


def test_the_live_release_is_what_its_manifest_says(llm: Host, live: str) -> None:
    assert llm.check_output(f"{CITADEL} verify {live}") == f"{live} is what its manifest says."


def test_the_live_release_is_proven(llm: Host, live: str) -> None:
    releases = json.loads(llm.check_output(f"{CITADEL} list --json"))
    [entry] = [entry for entry in releases if entry["live"]]
    assert (entry["id"], entry["state"]) == (live, "good")
    assert entry["proof"] > 0


def test_what_runs_is_what_the_release_says(llm: Host, live: str) -> None:
    manifest = json.loads(llm.file(f"{HOME}/current/manifest.json").content_string)
    for service in manifest["services"]:
        unit = service["unit"].replace("gateway@.", f"gateway@{live}.")
        pid = llm.check_output(f"systemctl show --property=MainPID --value '{unit}'")
        if service["kind"] == "gateway" and pid == "0":
            continue  # an equal gateway that an earlier release started
        assert f"CITADEL_DIGEST={service['digest']}" in llm.file(f"/proc/{pid}/environ").content_string


def test_units_are_the_releases_own_as_files(llm: Host) -> None:
    """Files, so that a boot finds them whatever is mounted when; the only link is the gateway's other name."""
    folder = "/etc/systemd/system"
    roles = "cat /var/lib/citadel/declared/*.json | jq -r '.[] | select(.kind == \"file\").name'"
    declared = llm.check_output(roles).splitlines()
    listed = llm.check_output(f"find {folder} -maxdepth 1 -name 'citadel-*' -type f -printf '%f\\n'").splitlines()
    ours = [name for name in listed if not name.startswith("citadel-gateway@") and f"{folder}/{name}" not in declared]
    assert f"{folder}/citadel-tuning.service" in declared
    assert {"citadel-llm@.service", "citadel-gateway.service", "citadel-llm.target"} <= set(ours)
    for name in ours:
        assert llm.run(f"cmp {folder}/{name} {HOME}/current/units/{name}").rc == 0, name
    links = llm.check_output(f"find {folder} -maxdepth 1 -name 'citadel-*' -type l -printf '%f\\n'").splitlines()
    assert [name for name in links if not name.startswith("citadel-gateway@")] == ["citadel-llm-gateway.service"]
    assert llm.check_output(f"find {folder} -name 'citadel-*' -xtype l") == ""


def test_the_documents_paths_lead_to_the_live_release(llm: Host, live: str) -> None:
    for path in ("env", "llm-server", "scripts", "docs", ".env"):
        assert f"/releases/{live}" in llm.check_output(f"readlink -f {HOME}/{path}")
    # copies, so that an archive holds them
    differing = f"diff -r {HOME}/current/config {HOME}/config | grep -v '^Only in {HOME}/config' || true"
    assert llm.check_output(differing) == ""


def test_nobody_but_root_can_change_what_root_runs(llm: Host) -> None:
    assert llm.check_output(f"find {HOME}/releases {HOME}/state ! -user root") == ""
    # what Python compiles for root beside the files is root's too, as the line above has shown
    assert llm.check_output(f"find {HOME}/releases -type f -perm /222 ! -name '*.pyc'") == ""


def test_recovery_is_armed_and_had_nothing_to_do(llm: Host) -> None:
    assert llm.check_output("systemctl is-enabled citadel-recover.service") in {"enabled", "linked"}
    assert not llm.file(f"{HOME}/state/transaction.jsonl").exists
    assert llm.check_output("systemd-analyze verify citadel-recover.service 2>&1 | grep -i cycle || true") == ""


def test_there_is_a_report_of_the_deployment(llm: Host, live: str) -> None:
    reports = llm.check_output(f"ls {HOME}/state/reports/*{live}.md").splitlines()
    text = llm.file(reports[-1]).content_string
    assert f"# {live}: committed" in text and "## Proof" in text
