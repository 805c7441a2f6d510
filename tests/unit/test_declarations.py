"""What roles set: told in check mode, set, read back, declared, found by drift, and put back byte for byte."""

from __future__ import annotations

import argparse
import grp
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest

from citadel import declarations
from citadel import drift as verb
from citadel.declarations import DeclarationError, bring_about, declared_units, drift, item_of
from citadel.drift import table
from citadel.kinds import KINDS, CannotError, Host, Item, NotHereError, chosen
from citadel.release.installed import look
from citadel.release.layout import Layout
from citadel.release.transaction import Terms, activate
from tests.unit.release.world import World, release_files

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
GOVERNOR = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"


def put(root: Path, path: str, text: str) -> Path:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


class Machine(Host):
    """A host whose commands are answered by a table, and noted."""

    def __init__(self, root: Path, **answers: str) -> None:
        super().__init__(root)
        self.answers, self.done = answers, []  # type: tuple[dict[str, str], list[str]]

    def _run(self, command: Any) -> str:
        words = " ".join(command)
        self.done.append(words)
        if command[0] not in self.answers:
            raise NotHereError(f"{command[0]} is not installed")
        answer = self.answers[command[0]]
        if answer.startswith("!"):
            raise CannotError(answer[1:])
        return answer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "/proc/sys/vm/swappiness", "60\n")
    put(tmp_path, "/proc/sys/vm/nr_hugepages", "0\n")
    put(tmp_path, "/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n")
    put(tmp_path, "/proc/meminfo", "MemTotal: 4194304 kB\nHugepagesize: 2048 kB\n")
    put(tmp_path, "/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    for cpu in range(2):
        put(tmp_path, GOVERNOR.replace("*", str(cpu)), "powersave\n")
        put(tmp_path, GOVERNOR.replace("*", str(cpu)).replace("_gov", "_available_gov") + "s", "performance powersave")
    put(tmp_path, "/sys/block/vda/queue/scheduler", "none [mq-deadline] kyber\n")
    put(tmp_path, "/sys/block/nvme0n1/queue/scheduler", "none\n")
    put(tmp_path, "/sys/block/loop0/queue/scheduler", "[none] mq-deadline\n")
    put(tmp_path, "/proc/irq/24/smp_affinity_list", "0-3\n")
    put(tmp_path, "/proc/irq/25/smp_affinity_list", "2\n").chmod(0o444)
    put(tmp_path, "/proc/self/mountinfo", "36 35 8:1 / /opt/models rw,relatime shared:1 - ext4 /dev/vdb rw\n")
    return tmp_path


def items(*given: dict[str, Any]) -> list[Item]:
    return [item_of(one) for one in given]


SWAPPINESS = {"kind": "sysctl", "name": "vm.swappiness", "desired": 1}
FILE = {"kind": "file", "name": "/etc/sysctl.d/60-x.conf", "desired": "content", "content": "vm.swappiness=1\n", **ME}


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    ours = root / declarations.PLACE
    return {
        str(path.relative_to(root)): (path.read_text() if path.is_file() else "folder", path.stat().st_mode)
        for path in root.rglob("*")
        if path != ours and ours not in path.parents and path not in ours.parents
    }


def test_a_setting_goes_its_whole_way(root: Path) -> None:
    wanted = items(FILE, SWAPPINESS)
    fresh = snapshot(root)
    told = bring_about("one", wanted, act=False, host=Host(root))
    assert told.before == ["file /etc/sysctl.d/60-x.conf: absent", "sysctl vm.swappiness: 60"]
    assert told.after[1] == "sysctl vm.swappiness: 1"
    assert snapshot(root) == fresh and not (root / "var").exists(), "check mode touches nothing"

    done = bring_about("one", wanted, act=True, host=Host(root))
    assert (done.before, done.after) == (told.before, told.after)
    assert (root / "proc/sys/vm/swappiness").read_text() == "1\n"
    assert not bring_about("one", wanted, act=True, host=Host(root)).changed
    assert not bring_about("one", wanted, act=False, host=Host(root)).changed
    assert {one.state for one in drift(Host(root))} == {"as declared"}

    undone = bring_about("one", [], act=True, host=Host(root))
    assert undone.changed and snapshot(root) == fresh, "undo puts back every byte, mode and folder"
    assert not list((root / declarations.PLACE).rglob("*.json"))
    assert not bring_about("one", [], act=True, host=Host(root)).changed


def test_what_is_altered_by_hand_is_found_with_its_owner_and_set_right(root: Path) -> None:
    wanted = items(FILE, SWAPPINESS)
    bring_about("tuning", wanted, act=True, host=Host(root))
    put(root, "/proc/sys/vm/swappiness", "30\n")
    put(root, "/etc/sysctl.d/99-other.conf", "# ours\nvm.swappiness = 30\n")
    put(root, "/etc/sysctl.d/60-x.conf", "vm.swappiness=2\n")
    file, value = drift(Host(root))
    assert (value.owner, value.item, value.desired, value.found) == ("tuning", "sysctl vm.swappiness", "1", "30")
    assert value.cause == "/etc/sysctl.d/99-other.conf sets it to that"
    assert file.state == "drifted" and file.cause.startswith("it was changed at 20")
    lines = table([file, value])
    assert lines[0].split() == ["item", "desired", "found", "owner"]
    assert lines[-1] == "2 of 2 items drifted (tuning)"
    assert bring_about("tuning", wanted, act=True, host=Host(root)).changed
    (root / "etc/sysctl.d/99-other.conf").unlink()
    bring_about("tuning", [], act=True, host=Host(root))
    assert (root / "proc/sys/vm/swappiness").read_text() == "60\n", "what was there first, not what was set by hand"


def test_without_a_file_that_says_so_a_value_was_set_since_the_boot(root: Path) -> None:
    bring_about("one", items(SWAPPINESS), act=True, host=Host(root))
    put(root, "/proc/sys/vm/swappiness", "30\n")
    [found] = drift(Host(root))
    assert "somebody or some program has set it since the last boot" in found.cause


def test_what_a_role_no_longer_wants_is_put_back(root: Path) -> None:
    bring_about("one", items(SWAPPINESS, FILE), act=True, host=Host(root))
    result = bring_about("one", items(FILE), act=True, host=Host(root))
    assert result.after == ["sysctl vm.swappiness: as it was before"]
    assert (root / "proc/sys/vm/swappiness").read_text() == "60\n"
    assert [one.item for one in drift(Host(root))] == ["file /etc/sysctl.d/60-x.conf"]


def test_owners_do_not_meet(root: Path) -> None:
    bring_about("one", items(SWAPPINESS), act=True, host=Host(root))
    bring_about("two", items(FILE), act=True, host=Host(root))
    bring_about("two", [], act=True, host=Host(root))
    assert [one.owner for one in drift(Host(root))] == ["one"]


def test_fewer_hugepages_than_asked_for_is_a_failure_that_says_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS["sysctl"]
    real = type(kind).read

    def read(self: Any, host: Host, item: Item) -> Any:
        return "800" if real(self, host, item) == "1024" else real(self, host, item)

    monkeypatch.setattr(type(kind), "read", read)
    compact = put(root, "/proc/sys/vm/compact_memory", "")
    advice = "Then deploy again."
    pages = {"kind": "sysctl", "name": "vm.nr_hugepages", "desired": 1024, "advice": advice}
    with pytest.raises(DeclarationError) as failure:
        bring_about("tuning", items(pages, SWAPPINESS), act=True, host=Host(root))
    assert str(failure.value) == (
        "tuning: sysctl vm.nr_hugepages shall be 1024 and is 800: the kernel found no more unbroken memory: boot the "
        "host anew, whose memory is whole then, or ask for fewer. Then deploy again."
    )
    assert compact.read_text() == "1\n", "memory is compacted before the kernel is believed"
    assert (root / "proc/sys/vm/swappiness").read_text() == "1\n", "the others are set all the same"
    assert [one.state for one in drift(Host(root))] == ["drifted", "as declared"]
    bring_about("tuning", [], act=True, host=Host(root))
    assert (root / "proc/sys/vm/nr_hugepages").read_text() == "0\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "sysctl", "name": "vm.nr_hugepages", "desired": -5}, "give a number of pages, 0 or more"),
        ({"kind": "sysctl", "name": "vm.nr_hugepages", "desired": 2048}, "that is 4.0 GiB, and the host has 4.0: ask"),
        ({"kind": "sysfs", "name": GOVERNOR, "desired": "fast"}, "takes performance, powersave: choose one of them"),
        ({"kind": "disk", "name": "scheduler", "desired": "bfq"}, "takes none, mq-deadline, kyber: choose one of them"),
        ({"kind": "file", "name": "etc/x", "desired": "content", "content": ""}, "give an absolute path"),
        ({**FILE, "mode": "rw"}, "mode = 'rw': give it as text in octal digits"),
        ({"kind": "unit", "name": "a.service", "desired": "running"}, "give `enabled`, `disabled`, `masked` or `-`"),
        ({"kind": "command", "name": "x", "desired": "y"}, "say in `read` which command tells it"),
    ],
)
def test_what_is_impossible_is_refused_before_anything_changes(root: Path, given: dict[str, Any], said: str) -> None:
    before = snapshot(root)
    with pytest.raises(DeclarationError, match="tuning: ") as failure:
        bring_about("tuning", items(SWAPPINESS, given), act=True, host=Host(root))
    assert said in str(failure.value) and given["name"] in str(failure.value)
    assert snapshot(root) == before and not (root / "var").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "sysctrl", "name": "a", "desired": 1}, "there is no kind 'sysctrl'; there are sysctl, sysfs"),
        ({"kind": "sysctl", "name": "a"}, "sysctl a: it has no `desired`"),
        ({**SWAPPINESS, "then": []}, "it has no option then; there are advice, apply"),
    ],
)
def test_an_item_is_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        item_of(given)


def test_an_item_is_given_once(root: Path) -> None:
    with pytest.raises(DeclarationError, match=r"sysctl vm.swappiness is there twice"):
        bring_about("one", items(SWAPPINESS, SWAPPINESS), act=False, host=Host(root))


@pytest.mark.parametrize(
    ("given", "before", "after"),
    [
        ({"kind": "sysctl", "name": "net.ipv4.tcp_rmem", "desired": "4096 131072 16777216"}, "4096 131072 6291456", ""),
        ({"kind": "sysfs", "name": GOVERNOR, "desired": "performance"}, "powersave", ""),
        ({"kind": "sysfs", "name": "/sys/kernel/mm/transparent_hugepage/enabled", "desired": "always"}, "madvise", ""),
        ({"kind": "disk", "name": "scheduler", "desired": "kyber"}, "mq-deadline", ""),
        ({"kind": "disk", "name": "scheduler", "desired": "mq-deadline", "disks": ["loop0"]}, "none", ""),
        ({"kind": "irq", "name": "affinity", "desired": "0-1"}, "0-3", ""),
        ({**FILE, "mode": "0600"}, "absent", "da7f98cc"),
    ],
)
def test_every_kind_reads_sets_and_puts_back(root: Path, given: dict[str, Any], before: str, after: str) -> None:
    fresh = snapshot(root)
    result = bring_about("one", items(given), act=True, host=Host(root))
    name = f"{given['kind']} {given['name']}"
    assert result.before == [f"{name}: {before}"]
    assert result.after[0].startswith(f"{name}: {after or given['desired']}")
    assert not bring_about("one", items(given), act=True, host=Host(root)).changed
    bring_about("one", [], act=True, host=Host(root))
    # the kernel's own list of choices is no file that one writes whole
    assert fresh.keys() == snapshot(root).keys()
    assert {path: chosen(text) for path, (text, _) in snapshot(root).items()} == {
        path: chosen(text) for path, (text, _) in fresh.items()
    }


def test_what_a_file_was_comes_back_with_its_mode(root: Path) -> None:
    file = put(root, "/etc/sysctl.d/60-x.conf", "an operator's\n")
    file.chmod(0o640)
    bring_about("one", items(FILE), act=True, host=Host(root))
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    kept = root / declarations.PLACE / "before/one.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    bring_about("one", [], act=True, host=Host(root))
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("an operator's\n", 0o640)


def test_a_declaration_has_no_content(root: Path) -> None:
    bring_about("one", items({**FILE, "content": "secret"}), act=True, host=Host(root))
    assert "secret" not in (root / declarations.PLACE / "declared/one.json").read_text()
    assert [one.state for one in drift(Host(root))] == ["as declared"]


def test_a_file_that_its_program_refuses_does_not_come_to_its_place(root: Path) -> None:
    machine = Machine(root, sshd="!bad option on line 1", systemctl="")
    given = {**FILE, "validate": ["sshd", "-t", "-f", "%s"], "then": [["systemctl", "reload", "ssh"]]}
    with pytest.raises(DeclarationError, match=r"shall be .* and is absent: bad option on line 1$"):
        bring_about("access", items(given), act=True, host=machine)
    assert not (root / "etc/sysctl.d/60-x.conf").exists()
    assert [words.rsplit("/", 1)[0].split()[:3] for words in machine.done] == [["sshd", "-t", "-f"]]


def test_what_follows_a_change_is_done_once_and_in_the_end(root: Path) -> None:
    machine = Machine(root, systemctl="")
    given = [{**FILE, "name": f"/etc/x/{n}", "then": [["systemctl", "reload", "x"]]} for n in "ab"]
    bring_about("one", items(*given), act=True, host=machine)
    bring_about("one", items(*given), act=True, host=machine)
    assert machine.done == ["systemctl reload x"]
    bring_about("one", [], act=True, host=machine)
    assert machine.done == ["systemctl reload x"] * 2
    assert not (root / "etc/x").exists(), "a folder that came with it goes with it"


def test_a_command_is_asked_once_for_all_that_it_tells(root: Path) -> None:
    machine = Machine(root, sshd="port 22\npermitrootlogin no\nallowusers a\nallowusers b\n")
    ask = {"kind": "command", "read": ["sshd", "-T"]}
    wanted = items(
        {**ask, "name": "root", "word": "permitrootlogin", "desired": "no"},
        {**ask, "name": "users", "word": "allowusers", "desired": "a, b"},
    )
    assert bring_about("access", wanted, act=True, host=machine).after == ["access: declares 2 items"]
    assert machine.done == ["sshd -T"]
    machine.answers["sshd"] = "permitrootlogin yes\n"
    machine.told.clear()
    assert [one.found for one in drift(machine)] == ["yes", ""]
    with pytest.raises(DeclarationError, match="access: command root shall be no and is yes"):
        bring_about("access", wanted, act=True, host=machine)


class Systemd(Machine):
    """One unit, in whatever state it was brought to."""

    def __init__(self, root: Path, enabled: str, active: str, load: str = "loaded") -> None:
        super().__init__(root)
        self.enabled, self.active, self.load = enabled, active, load

    def _run(self, command: Any) -> str:
        self.done.append(" ".join(command))
        match command[1]:
            case "enable" | "disable":
                self.enabled = f"{command[1]}d"
            case "start" | "stop":
                self.active = "active" if command[1] == "start" else "inactive"
            case "daemon-reload" if self.load == "not-found":
                self.load, self.enabled = "loaded", "disabled"
        return (
            f"LoadState={self.load}\nUnitFileState={self.enabled}\nActiveState={self.active}\nNeedDaemonReload=no\n"
            "StateChangeTimestamp=Wed 2026-01-07 10:00:00 UTC\n"
        )


@pytest.mark.parametrize(
    ("was", "desired"),
    [
        (("disabled", "inactive"), "enabled active"),
        (("enabled", "active"), "disabled inactive"),
        (("enabled", "inactive"), "- active"),
        (("disabled", "active"), "enabled -"),
    ],
)
def test_a_unit_is_brought_about_and_back(root: Path, was: tuple[str, str], desired: str) -> None:
    systemd = Systemd(root, *was)
    wanted = items({"kind": "unit", "name": "x.timer", "desired": desired})
    bring_about("one", wanted, act=True, host=systemd)
    now = zip(desired.split(), (systemd.enabled, systemd.active), was, strict=True)
    assert all(found == (one if one != "-" else before) for one, found, before in now)
    systemd.done.clear()
    assert not bring_about("one", wanted, act=True, host=systemd).changed
    bring_about("one", [], act=True, host=systemd)
    assert (systemd.enabled, systemd.active) == was


def test_a_unit_that_died_is_drift_and_says_where_to_look(root: Path) -> None:
    systemd = Systemd(root, "enabled", "active")
    bring_about("one", items({"kind": "unit", "name": "x.timer", "desired": "enabled active"}), act=True, host=systemd)
    systemd.active = "failed"
    systemd.told.clear()
    [found] = drift(systemd)
    assert (found.state, found.found) == ("drifted", "enabled failed")
    assert found.cause.endswith("2026-01-07 10:00:00 UTC; `journalctl -u x.timer` tells why")


def test_systemd_is_told_of_a_unit_whose_file_has_just_come(root: Path) -> None:
    systemd = Systemd(root, "", "inactive", load="not-found")
    wanted = items({"kind": "unit", "name": "x.service", "desired": "enabled active"})
    assert bring_about("one", wanted, act=False, host=systemd).before == ["unit x.service: not-there inactive"]
    bring_about("one", wanted, act=True, host=systemd)
    assert [words.split()[1] for words in systemd.done if " show " not in words] == ["daemon-reload", "enable", "start"]


class Mounts(Machine):
    def _run(self, command: Any) -> str:
        self.done.append(" ".join(command))
        options = ",".join(one for one in command[2].split(",")[1:] if one not in {"strictatime", "atime"})
        put(self.root, "/proc/self/mountinfo", f"36 35 8:1 / /opt/models {options} - ext4 /dev/vdb rw\n")
        return ""


def test_a_mount_option_is_set_and_the_old_ones_come_back(root: Path) -> None:
    mounts = Mounts(root)
    wanted = items({"kind": "mount", "name": "/opt/models", "desired": "noatime"})
    assert bring_about("one", wanted, act=True, host=mounts).before == ["mount /opt/models: rw,relatime"]
    bring_about("one", [], act=True, host=mounts)
    assert mounts.done == ["mount -o remount,noatime /opt/models", "mount -o remount,atime,rw,relatime /opt/models"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "sysctl", "name": "vm.none", "desired": 1}, "this kernel, or this host's network namespace, has no"),
        ({"kind": "sysfs", "name": "/sys/none*", "desired": 1}, "this kernel or this machine has no such thing"),
        ({"kind": "disk", "name": "scheduler", "desired": "none", "disks": ["sdz"]}, "there is no disk sdz"),
        ({"kind": "mount", "name": "/srv", "desired": "noatime"}, "nothing of its own is mounted there: mount /srv"),
        ({"kind": "command", "name": "x", "desired": "y", "read": ["sshd", "-T"]}, "sshd is not installed"),
        (
            {**SWAPPINESS, "apply": False},
            "left as it is, since here it is only compared: sysctl vm.swappiness (60, not 1)",
        ),
    ],
)
def test_what_this_host_has_not_is_said_and_gone_on(root: Path, given: dict[str, Any], said: str) -> None:
    machine = Machine(root)
    result = bring_about("one", items(given, FILE), act=True, host=machine)
    [note] = result.notes
    assert said in note
    assert (root / "etc/sysctl.d/60-x.conf").exists()
    assert not bring_about("one", items(given, FILE), act=True, host=machine).changed
    assert [one.state for one in drift(machine)] == ["left", "as declared"]
    assert table(drift(machine)) == ["1 items are as declared (one); 1 are not this host's to set"]
    bring_about("one", [], act=True, host=machine)
    assert (root / "proc/sys/vm/swappiness").read_text() == "60\n"


def test_what_is_read_only_belongs_to_somebody_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: "swappiness" not in str(path))
    result = bring_about("one", items(SWAPPINESS), act=True, host=Host(root))
    assert result.notes == [
        "left as it is, since it is read-only here and belongs to the machine that this host runs on: "
        "sysctl vm.swappiness (60, not 1)"
    ]
    assert (root / "proc/sys/vm/swappiness").read_text() == "60\n"
    put(root, "/proc/sys/vm/swappiness", "61\n")
    assert not bring_about("one", items(SWAPPINESS), act=True, host=Host(root)).changed


def test_what_is_not_this_hosts_to_set_is_not_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    given = {"kind": "disk", "name": "scheduler", "desired": "bfq"}
    [note] = bring_about("one", items(given), act=True, host=Host(root)).notes
    assert "read-only here" in note and "disk scheduler (mq-deadline, not bfq)" in note


def test_the_verb_of_the_host(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verb, "Host", lambda: Host(root))
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args([])) == 0
    assert capsys.readouterr().out == "Nothing is declared on this host yet: a deployment does that.\n"
    bring_about("one", items(SWAPPINESS), act=True, host=Host(root))
    assert verb.run(parser.parse_args([])) == 0
    put(root, "/proc/sys/vm/swappiness", "2")
    assert verb.run(parser.parse_args(["--json"])) == 1
    [found] = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (found["owner"], found["item"], found["state"]) == ("one", "sysctl vm.swappiness", "drifted")


def test_a_unit_that_a_role_brought_is_known(root: Path) -> None:
    unit = {**FILE, "name": "/etc/systemd/system/citadel-tuning.service"}
    bring_about("tuning", items(unit), act=True, host=Host(root))
    put(root, "/etc/systemd/system/citadel-stranger.service", "")
    assert declared_units(root) == {"citadel-tuning.service"}
    told = look(Layout(root), None)
    assert told.kept == ("citadel-stranger.service is not of a release: it stays",)


def test_a_release_that_was_altered_is_drift(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert not verb.findings(Host(tmp_path))
    manifest = world.stage(release_files(alpha="a1"))
    assert activate(world.host(), manifest.id, Terms("tester")).good
    [found] = verb.findings(Host(tmp_path))
    assert (found.owner, found.state) == ("release", "as declared")
    (world.layout.release(manifest.id) / "config/models/alpha.yml").write_text("by hand")
    (world.layout.units / "citadel-llm.target").unlink()
    told = {(one.item.split()[0], one.found) for one in verb.findings(Host(tmp_path))}
    assert ("release", "config/models/alpha.yml was changed") in told
    assert ("units", "citadel-llm.target is gone: it is put back") in told
    world.layout.current.unlink()
    world.layout.current.symlink_to("releases/nowhere")
    [found] = verb.findings(Host(tmp_path))
    assert found.state == "drifted"


def test_what_was_set_last_is_put_back_first(root: Path) -> None:
    """A unit is stopped and disabled while its file is still there."""
    systemd = Systemd(root, "disabled", "inactive")
    file = {**FILE, "name": "/etc/systemd/system/x.service", "then": [["systemctl", "daemon-reload"]]}
    unit = {"kind": "unit", "name": "x.service", "desired": "enabled active"}
    bring_about("one", items(file, unit), act=True, host=systemd)
    there: list[bool] = []
    run = systemd._run

    def watched(command: Any) -> str:
        there.append((root / "etc/systemd/system/x.service").exists()) if command[1] in {"stop", "disable"} else None
        return run(command)

    systemd._run = watched  # type: ignore[method-assign]
    bring_about("one", [], act=True, host=systemd)
    assert there == [True, True] and not (root / "etc/systemd/system/x.service").exists()


def test_the_kernels_default_of_a_mount_comes_back_by_its_name(root: Path) -> None:
    """The kernel shows strictatime by showing nothing."""
    put(root, "/proc/self/mountinfo", "36 35 8:1 / /opt/models rw - ext4 /dev/vdb rw\n")
    mounts = Mounts(root)
    bring_about("one", items({"kind": "mount", "name": "/opt/models", "desired": "noatime"}), act=True, host=mounts)
    bring_about("one", [], act=True, host=mounts)
    assert mounts.done[-1] == "mount -o remount,atime,rw,strictatime /opt/models"


def test_what_a_command_told_is_asked_again_after_an_act(root: Path) -> None:
    machine = Machine(root, sshd="port 22", systemctl="")
    machine.ask("sshd", "-T")
    machine.ask("sshd", "-T")
    machine.act("systemctl", "reload", "ssh")
    machine.ask("sshd", "-T")
    assert machine.done == ["sshd -T", "systemctl reload ssh", "sshd -T"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (SWAPPINESS, "sysctl vm.swappiness could not be put back: it was 60 and is 1"),
        (
            {"kind": "mount", "name": "/opt/models", "desired": "noatime"},
            "mount /opt/models could not be put back: it was rw,relatime and is noatime",
        ),
    ],
)
def test_an_undo_is_read_back_too(
    root: Path, given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = Mounts(root)
    bring_about("one", items(given), act=True, host=mounts)
    monkeypatch.setattr("citadel.kinds.write_value", lambda path, value: None)
    monkeypatch.setattr(mounts, "_run", lambda command: "")
    with pytest.raises(DeclarationError) as failure:
        bring_about("one", [], act=True, host=mounts)
    assert str(failure.value) == said
    assert (root / declarations.PLACE / "before/one.json").exists(), "it can be tried again"
