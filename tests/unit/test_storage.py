"""What the role `storage` declares, and what it refuses: a disk with data, one that is mounted elsewhere, caches larger
than the memory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from citadel import kinds, storage
from citadel.declarations import DeclarationError, bring_about, item_of
from citadel.kinds import Host, Item

DISK = "/dev/disk/by-id/nvme-one"
MOUNTINFO = "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"


def declared(mounts: Any = (), caches: Any = None, space: Any = None) -> list[dict[str, Any]]:
    return storage.items(mounts, caches or {}, "/opt/cache", space or {})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for place, text in {"proc/meminfo": "MemTotal: 16777216 kB\n", "proc/self/mountinfo": MOUNTINFO}.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    return Host(tmp_path)


def mounted(host: Host, *lines: str) -> None:
    host.inside("/proc/self/mountinfo").write_text(MOUNTINFO + "".join(f"{line}\n" for line in lines))


def problem(host: Host, said: dict[str, Any]) -> str:
    item = item_of(said)
    return kinds.KINDS[item.kind].problem(host, item)


def test_a_disk_is_a_file_system_a_unit_and_what_is_mounted() -> None:
    found = declared([{"path": "/opt/models", "device": DISK, "format": True, "large_files": True}])
    assert [(one["kind"], one["name"]) for one in found] == [
        ("filesystem", DISK),
        ("file", "/etc/systemd/system/opt-models.mount"),
        ("unit", "opt-models.mount"),
        ("mounted", "/opt/models"),
    ]
    assert found[0]["large_files"] and found[3]["desired"] == "noatime,nodiratime"
    assert f"What={DISK}\nWhere=/opt/models\nType=auto\nOptions=noatime,nodiratime\n" in found[1]["content"]
    assert declared([{"path": "/opt/models", "device": DISK}])[0]["kind"] == "file", "nothing is formatted unasked"


def test_what_contains_others_is_mounted_first() -> None:
    mounts = [{"path": f"/opt{end}", "device": f"{DISK}{n}"} for n, end in enumerate(("/cache/deep", "/cache", ""))]
    found = declared(mounts, {"model_cache": 1})
    places = [one["name"] for one in found if one["kind"] == "mounted"]
    assert places == ["/opt", "/opt/cache", "/opt/cache/deep", "/opt/cache/model_cache"]


def test_caches_in_memory_know_of_each_other() -> None:
    found = declared(caches={"model_cache": 32, "temp-cache": 0.5})
    assert [one["memory"] for one in found if one["kind"] == "mounted"] == [32.5 * 2**30] * 2
    assert found[2]["desired"] == "size=33554432k,nosuid,nodev,noatime,nodiratime"
    assert found[3]["name"] == "/etc/systemd/system/opt-cache-temp\\x2dcache.mount"
    assert storage.gib({"model_cache": 32, "temp-cache": 0.5}) == 32.5
    assert storage.places({"model_cache": 32}, "/opt/cache") == {"/opt/cache/model_cache": "/tmp/model_cache"}


@pytest.mark.parametrize("path", ["/opt/cache/a-b_c.d", "/srv/x"])
def test_a_mount_unit_is_called_as_systemd_calls_it(path: str) -> None:
    told = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", path], capture_output=True, text=True, check=True
    )
    assert kinds.Mounted().unit(Item("mounted", path, "")) == told.stdout.strip()


@pytest.mark.parametrize(
    ("mounts", "caches", "space", "said"),
    [
        ([{"path": "opt", "device": DISK}], {}, {}, "storage_mounts: 'opt' is no place: give an absolute path"),
        ([{"path": "/opt/../etc", "device": DISK}], {}, {}, "'/opt/../etc' is no place"),
        ([{"path": "/", "device": DISK}], {}, {}, "storage_mounts: '/' is no place"),
        ([{"path": "/opt", "device": "tmpfs"}], {}, {}, "/opt has device = 'tmpfs': give a disk or a partition"),
        ([{"path": "/opt", "device": DISK, "options": "a b"}], {}, {}, "/opt has options = 'a b': give a list such as"),
        ([{"path": "/opt", "device": DISK, "fstype": "xfs"}], {}, {}, "/opt has 'fstype'; known are device, format"),
        ([{"path": "/opt", "device": DISK}] * 2, {}, {}, "two of them have the same path"),
        ([], {"model_cache": 0}, {}, "storage_tmpfs.model_cache = 0: give a size in GiB, more than 0"),
        ([], {"model_cache": "many"}, {}, "storage_tmpfs.model_cache = 'many': give a size in GiB"),
        ([], {"../x": 1}, {}, "storage_tmpfs: '../x' is no name"),
        ([], {}, {"/opt": -1}, "storage_space./opt = -1: give a size in GiB"),
    ],
)
def test_what_can_not_be_meant(mounts: Any, caches: Any, space: Any, said: str) -> None:
    with pytest.raises(storage.StorageError) as refused:
        declared(mounts, caches, space)
    assert said in str(refused.value)


def test_caches_larger_than_the_memory_are_refused(host: Host) -> None:
    assert problem(host, declared(caches={"model_cache": 8, "api_cache": 7})[2]) == ""
    said = problem(host, declared(caches={"model_cache": 8, "api_cache": 8})[2])
    assert said == "with the other caches it is 16.0 GiB, and the host has 16.0 GiB of memory: ask for less"


def test_a_disk_that_is_mounted_elsewhere_is_refused(host: Host) -> None:
    wanted = declared([{"path": "/opt/models", "device": "/dev/vdx"}])[-1]
    host.inside("/dev").mkdir()
    assert problem(host, wanted) == ""
    mounted(host, f"30 22 8:1 / /home rw - ext4 {host.inside('/dev/vdx')} rw")
    assert problem(host, wanted) == "/dev/vdx is mounted at /home: unmount it there, or name another"


def test_nothing_is_hidden_by_a_mount(host: Host) -> None:
    wanted = declared([{"path": "/opt/models", "device": "/dev/vdx"}])[-1]
    host.inside("/opt/models").mkdir(parents=True)
    assert problem(host, wanted) == ""
    (host.inside("/opt/models") / "phi").mkdir()
    assert "the folder has something in it (phi), which nobody could see then" in problem(host, wanted)
    mounted(host, "30 22 8:1 / /opt/models rw - xfs /dev/other rw")
    assert problem(host, wanted).startswith("/dev/other is mounted there by somebody else")
    mounted(host, f"30 22 8:1 / /opt/models rw - ext4 {host.inside('/dev/vdx')} rw")
    assert problem(host, wanted) == "", "it is the one"


def test_options_are_read_back_from_the_kernel(host: Host) -> None:
    wanted = item_of(declared(caches={"model_cache": 1})[2])
    read = kinds.KINDS["mounted"].read
    assert read(host, wanted) == "not mounted"
    line = "30 22 0:40 / /opt/cache/model_cache rw,nosuid,nodev,noatime,nodiratime - tmpfs none rw,size={}k"
    mounted(host, line.format(2**20))
    assert read(host, wanted) == wanted.desired
    mounted(host, line.format(2**19))
    assert "size=524288k" in read(host, wanted) != wanted.desired


def test_room_that_is_short_is_told_and_waited_for_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    items = [item_of(one) for one in declared(space={"/opt/models": 10**6, "/opt": 0.001})]
    result = bring_about("storage", items, act=True, host=host)
    [note] = result.notes
    assert "since the file system that it lies on has " in note and note.endswith("space /opt/models")
    assert not bring_about("storage", items, act=True, host=host).changed
    assert kinds.KINDS["space"].read(host, items[1]) == "0.001 GiB"


def test_what_runs_on_it_keeps_a_mount(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is put back: a unit file that is gone while its mount stays would surprise at a boot."""
    asked: list[tuple[str, ...]] = []
    states = {"citadel-llm@phi.service": "active\n", "old.service": "inactive\n"}

    def run(self: Host, command: Any) -> str:
        asked.append(tuple(command))
        if "--property=RequiredBy" in command:
            return " ".join(states) + "\n"
        return states.get(command[-1], "")

    monkeypatch.setattr(Host, "_run", run)
    wanted = item_of(declared(caches={"model_cache": 1})[2])
    line = "30 22 0:40 / /opt/cache/model_cache rw,nosuid,nodev,noatime,nodiratime - tmpfs none rw,size=1048576k"

    def mounts(self: Host, *command: str) -> None:
        asked.append(command)
        mounted(host, *([line] if "reload-or-restart" in command else []))

    monkeypatch.setattr(Host, "act", mounts)
    assert bring_about("storage", [wanted], act=True, host=host).changed
    with pytest.raises(DeclarationError) as refused:
        bring_about("storage", [], act=True, host=host)
    assert "stays: citadel-llm@phi.service would end with it: stop that first" in str(refused.value)
    assert ("systemctl", "stop", "opt-cache-model_cache.mount") not in asked
    states["citadel-llm@phi.service"] = "inactive\n"
    host.told.clear()
    bring_about("storage", [], act=True, host=host)
    assert asked[-1] == ("systemctl", "stop", "opt-cache-model_cache.mount")


@pytest.fixture
def device(tmp_path: Path) -> Any:
    """A disk that is a file."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be had here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_only_an_empty_disk_gets_a_file_system(device: str) -> None:
    kind, host = kinds.KINDS["filesystem"], Host()
    item = Item("filesystem", device, "ext4", {"large_files": True})
    assert (kind.problem(host, item), kind.read(host, item)) == ("", "nothing")
    kind.set(host, item)
    assert kind.read(host, item) == "ext4"
    assert kind.problem(host, item) == "", "it has one by now, which is left"
    with pytest.raises(kinds.CannotError, match="it has data by now"):
        kind.set(host, item)
    subprocess.run(["mkswap", device], check=True, capture_output=True)
    assert kind.problem(host, item).startswith("it has data (swap): whoever is sure that nobody needs it")


def test_what_is_no_disk_gets_no_file_system(host: Host) -> None:
    item = Item("filesystem", "/dev/vdx", "ext4")
    kind = kinds.KINDS["filesystem"]
    assert kind.problem(host, item) == "there is no such device: `lsblk` tells which there are"
    host.inside("/dev").mkdir()
    host.inside("/dev/vdx").write_text("a file")
    assert kind.problem(host, item).startswith("it is no block device: give a disk or a partition")
    assert kind.problem(host, Item("filesystem", "/dev/vdx", "zfs")) == "what is made is ext4"
