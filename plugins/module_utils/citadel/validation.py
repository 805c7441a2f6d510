"""Looks at a host before anything is touched: what was found, what is needed, what follows, and what to do about it."""

from __future__ import annotations

import math
import mmap
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fitness import Found, Wanted, objections
from .kinds import CannotError, Host, NotHereError
from .topology import GIB, nearest_existing, read_nodes
from .variants import Processor

GOOD, WARNING, FAILURE = "ok", "warning", "failure"
PATIENCE = 2.0
MEASURED_SECONDS = 0.5
BLOCK = 4 * 2**20
EXPORTER = re.compile(r"node[_-]exporter")
BLOCKS = ("system", "processor", "memory", "storage", "network")


@dataclass(frozen=True)
class Check:
    block: str
    name: str
    found: str
    needed: str = ""  # at least / recommended
    verdict: str = GOOD
    advice: str = ""


@dataclass(frozen=True)
class Thresholds:
    """What is recommended beside what Wanted refuses; below any of them is a warning."""

    cores: int = 32
    memory_gib: int = 256
    kernel: str = "6.8"
    system_gb: int = 2000
    models_gb: int = 4000
    read_mb: int = 3500
    write_mb: int = 3000
    network_mbit: int = 1000

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Thresholds:
        unknown = given.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"host_recommended.{sorted(unknown)[0]}: there is no such figure; there are {known}")
        for key, value in given.items():
            if key != "kernel" and (isinstance(value, bool) or not str(value).isdecimal()):
                raise ValueError(f"host_recommended.{key} = {value!r}: give a whole number, 0 or more")
        figures: dict[str, Any] = {key: value if key == "kernel" else int(value) for key, value in given.items()}
        return cls(**figures)


@dataclass(frozen=True)
class Asked:
    name: str
    wanted: Wanted
    thresholds: Thresholds
    models: Path
    ports: Mapping[str, int]  # what listens there -> port
    neighbours: Mapping[str, str]  # who -> host:port
    reached_as: str = ""


def checks(host: Host, asked: Asked) -> list[Check]:
    """Every check, whatever the others found."""
    found = Found.here(asked.wanted, host.root)
    return [
        *of_system(host, found, asked),
        *of_processor(host, found, asked),
        *of_memory(found, asked),
        *of_storage(host, asked),
        *of_network(host, asked),
    ]


def of_system(host: Host, found: Found, asked: Asked) -> Iterator[Check]:
    """What refuses a host at its deployment stands here in the same words."""
    said = objections(found, asked.wanted, asked.reached_as)
    named = [one for one in said if not re.match(r"has [\d.]+ (cores|GiB)", one)]
    told = f"{found.distribution} {found.version}".strip() or "unknown"
    needed = "Debian 12 / Ubuntu 24.04"
    yield Check("system", "distribution and accounts", told, needed, FAILURE if named else GOOD, " ".join(named))
    release = os.uname().release
    least = asked.thresholds.kernel
    yield below(
        "system",
        "kernel",
        release,
        f"- / {least}",
        bad=numbers(release) < numbers(least),
        advice="install a newer kernel",
    )
    yield of_clock(host)
    for name in dict.fromkeys((socket.gethostname(), asked.name)):
        yield of_name(name)


def of_clock(host: Host) -> Check:
    advice = "install and enable systemd-timesyncd or chrony: keys, logs and certificates go by the clock"
    try:
        told = host.ask("timedatectl", "show", "--property=NTPSynchronized", "--value").strip()
    except (NotHereError, CannotError) as error:
        told = str(error)
    return below(
        "system", "clock", "synchronised" if told == "yes" else "not synchronised", "", bad=told != "yes", advice=advice
    )


def of_name(name: str) -> Check:
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Check("system", "name", f"{name} is unknown", "", WARNING, "a deployment writes it to /etc/hosts")
    return Check("system", "name", f"{name} is {address}")


def of_processor(host: Host, found: Found, asked: Asked) -> Iterator[Check]:
    cpuinfo = host.inside("/proc/cpuinfo").read_text(encoding="utf-8")
    processor = Processor.of_cpuinfo(cpuinfo)
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    best = "int8 of a mixture of experts needs AMX, int4 needs AVX512: the plan says which variants that leaves"
    yield Check(
        "processor",
        "instruction sets",
        f"{processor}{f' ({model[1]})' if model else ''}",
        "AVX2 / AMX",
        GOOD if processor.amx else WARNING if processor.avx2 else FAILURE,
        "" if processor.amx else best if processor.avx2 else "vLLM needs AVX2: use another machine",
    )
    nodes = read_nodes(host.inside("/sys/devices/system"), found.memory, os.sched_getaffinity(0))
    physical = sum(len(node.cpus) for node in nodes)
    least, recommended = asked.wanted.cores, asked.thresholds.cores
    few = [one for one in objections(found, asked.wanted) if re.match(r"has \d+ cores", one)]
    advice = few[0] if few else "models get fewer cores than they wish; `make capacity` shows what fits"
    yield Check(
        "processor",
        "cores",
        f"{physical} cores, {found.cores} threads",
        f"{least} / {recommended}",
        FAILURE if few else WARNING if physical < recommended else GOOD,
        advice if few or physical < recommended else "",
    )
    yield Check("processor", "NUMA nodes", str(len(nodes)))


def of_memory(found: Found, asked: Asked) -> Iterator[Check]:
    little = [one for one in objections(found, asked.wanted) if re.match(r"has [\d.]+ GiB", one)]
    # firmware and kernel keep a share, as fitness has it
    below_wish = found.memory < asked.thresholds.memory_gib * GIB * 0.97
    advice = little[0] if little else "models get smaller variants than bf16; `make capacity` shows which"
    yield Check(
        "memory",
        "memory",
        f"{found.memory / GIB:.1f} GiB",
        f"{asked.wanted.memory_gib} / {asked.thresholds.memory_gib} GiB",
        FAILURE if little else WARNING if below_wish else GOOD,
        advice if little or below_wish else "",
    )


def of_storage(host: Host, asked: Asked) -> Iterator[Check]:
    names = disks(host)
    yield below(
        "storage",
        "disks",
        ", ".join(names) or "none of its own",
        "",
        bad=not names,
        advice="a container does not see them",
    )
    wanted = asked.thresholds
    places = {
        "system": (host.inside("/"), wanted.system_gb),
        "models": (host.inside(str(asked.models)), wanted.models_gb),
    }
    for name, (path, size) in places.items():
        there = nearest_existing(path)
        disk = shutil.disk_usage(there)
        told = f"{disk.total / 1e9:.0f} GB, {disk.free / 1e9:.0f} free, at {there}"
        advice = f"mount a larger file system on {path}: the plan refuses models that do not fit"
        yield below("storage", f"size for {name}", told, f"- / {size} GB", bad=disk.total < size * 0.9e9, advice=advice)
    there = nearest_existing(host.inside(str(asked.models)))
    advice = "models load at the speed of the disk: NVMe reads in a minute what a slow disk takes ten for"
    for name, speed, least in zip(("write", "read"), measured(there), (wanted.write_mb, wanted.read_mb), strict=True):
        told = "not measured: no direct access" if math.isnan(speed) else f"{speed:.0f} MB/s"
        # what could not be measured is not less than anything
        yield below("storage", f"{name} speed of models", told, f"- / {least} MB/s", bad=speed < least, advice=advice)


def disks(host: Host) -> list[str]:
    """Each with its type and size; a partition or a loop device is none."""
    found = []
    for device in sorted(host.inside("/sys/block").glob("*/device")):
        block = device.parent
        size = int((block / "size").read_text()) * 512
        rotates = (block / "queue/rotational").read_text().strip() == "1"
        kind = (
            "NVMe"
            if block.name.startswith("nvme")
            else "virtual"
            if block.name[0] in "vx"
            else "HDD"
            if rotates
            else "SSD"
        )
        if size:
            found.append(f"{block.name} ({kind}, {size / 1e9:.0f} GB)")
    return found


def measured(folder: Path, seconds: float = MEASURED_SECONDS) -> tuple[float, float]:
    """MB/s past the page cache, of a file without a name, which is gone in the end; nan where there is no way past."""
    nothing = (math.nan, math.nan)
    if not hasattr(os, "O_DIRECT") or shutil.disk_usage(folder).free < 4 * GIB:
        return nothing
    with mmap.mmap(-1, BLOCK) as block:  # aligned, as direct access needs it
        block.write(os.urandom(BLOCK))
        try:
            descriptor, name = tempfile.mkstemp(dir=folder, prefix=".citadel-")
            Path(name).unlink()
        except OSError:
            return nothing
        try:
            with open(f"/proc/self/fd/{descriptor}", "r+b", buffering=0, opener=direct) as file:
                written = timed(lambda: file.write(block), seconds)
                file.seek(0)
                return written, timed(lambda: file.readinto(block), seconds)
        except OSError:
            return nothing
        finally:
            os.close(descriptor)


def direct(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_DIRECT)


def timed(move: Callable[[], int | None], seconds: float) -> float:
    begun, moved = time.monotonic(), 0
    while (took := time.monotonic() - begun) < seconds:
        count = move()
        if not count:
            break
        moved += count
    took = time.monotonic() - begun
    return moved / 1e6 / took


def of_network(host: Host, asked: Asked) -> Iterator[Check]:
    # what has no device is a bridge or a cable within the machine; a container has nothing else
    folders = list(host.inside("/sys/class/net").glob("*"))
    folders = [one for one in folders if (one / "device").exists()] or [one for one in folders if one.name != "lo"]
    speeds = {one.name: speed for one in folders if (speed := speed_of(one / "speed"))}
    best = max(speeds.values(), default=0)
    told = ", ".join(f"{name} {speed} Mbit/s" for name, speed in sorted(speeds.items())) or "none that tells its speed"
    least = asked.thresholds.network_mbit
    advice = "models come over the network once; answers are small: slow, and no reason to wait"
    yield below("network", "interfaces", told, f"- / {least} Mbit/s", bad=best < least, advice=advice)
    listening = listeners(host)
    for name, port in asked.ports.items():
        yield of_port(name, port, listening)
    with ThreadPoolExecutor(max_workers=16) as pool:
        answers = pool.map(answered, asked.neighbours.values())
        for (who, address), trouble in zip(asked.neighbours.items(), answers, strict=True):
            advice = "it is joined when it is there; the models serve without it"
            yield below("network", who, f"{address} {trouble or 'answers'}", "", bad=bool(trouble), advice=advice)


def speed_of(path: Path) -> int:
    """Virtual interfaces have none, or refuse to tell it."""
    try:
        return max(int(path.read_text()), 0)
    except (OSError, ValueError):
        return 0


def listeners(host: Host) -> dict[int, set[str]]:
    """Who listens on which port: programs with their units."""
    return {
        port: {f"{program} ({unit_of(host, pid)})" for program, pid in found} for port, found in holders(host).items()
    }


def holders(host: Host) -> dict[int, set[tuple[str, str]]]:
    """Programs and processes by the port that they listen on."""
    try:
        told = host.ask("ss", "-Hlntp")
    except (NotHereError, CannotError):
        return {}
    found: dict[int, set[tuple[str, str]]] = {}
    for line in told.splitlines():
        port = line.split()[3].rpartition(":")[2]
        found.setdefault(int(port), set()).update(re.findall(r'\("([^"]+)",pid=(\d+)', line))
    return found


def unit_of(host: Host, pid: str) -> str:
    try:
        group = host.inside(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return f"process {pid}"
    units = re.findall(r"([^/\s]+\.(?:service|socket|scope))", group)
    return units[-1] if units else f"process {pid}"


def of_port(name: str, port: int, listening: Mapping[int, set[str]]) -> Check:
    label = f"port {port}, {name}"
    if port not in listening:
        return Check("network", label, "free")
    owners = sorted(listening[port])
    # a socket that systemd holds for our gateway is held by process 1 as well
    ours = [one for one in owners if "citadel-" in one or one == "systemd (init.scope)"]
    if ours:
        return Check("network", label, f"ours: {', '.join(ours)}")
    # the host's own, which the role `node` takes over or leaves as it is
    if name == "node" and owners and all(EXPORTER.search(one) for one in owners):
        return Check("network", label, f"a node exporter: {', '.join(owners)}")
    by = ", ".join(owners) or "a program that this user may not see"
    return Check("network", label, f"taken by {by}", "free", FAILURE, "stop that program, or give ours another port")


def answered(address: str) -> str:
    """Empty if somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except TimeoutError:
        return f"gives no answer within {PATIENCE:.0f} s"
    except ConnectionRefusedError:
        return "is refused: the host is there, and nothing listens"
    except OSError as error:
        return f"cannot be reached: {error.strerror or error}"
    return ""


def below(block: str, name: str, found: str, needed: str, *, bad: bool, advice: str) -> Check:
    """A warning where it is less than recommended."""
    return Check(block, name, found, needed, WARNING if bad else GOOD, advice if bad else "")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def table(found: Sequence[Check]) -> list[str]:
    """Blocks of lines, and a sentence in the end."""
    titles = Check("", "check", "found", "needed", "verdict")
    width = [
        min(max(len(getattr(one, key)) for one in (titles, *found)), 44)
        for key in ("verdict", "name", "found", "needed")
    ]
    lines = [row(titles, width)]
    for block in BLOCKS:
        for number, one in enumerate(one for one in found if one.block == block):
            lines += [*([block] if number == 0 else []), row(one, width)]
            lines += [f"    {'':{width[0]}}{one.advice}"] if one.advice else []
    bad, doubtful = (sum(one.verdict == verdict for one in found) for verdict in (FAILURE, WARNING))
    if bad:
        return [*lines, f"This host cannot carry the product: {bad} of {len(found)} checks failed, {doubtful} warn."]
    return [*lines, f"This host can carry the product: {len(found)} checks, {doubtful} of them warn."]


def row(one: Check, width: Sequence[int]) -> str:
    cells = (one.verdict, one.name, one.found, one.needed)
    return "  " + "  ".join(cell.ljust(size) for cell, size in zip(cells, width, strict=True)).rstrip()
