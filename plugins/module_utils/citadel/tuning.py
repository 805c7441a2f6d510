"""What the role `tuning` sets, as items of a declaration: the kernel's settings, and what brings them back at boot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .catalogue import format_cpus, parse_cpus
from .kinds import NO_DISKS

SYSCTL_FILE = "/etc/sysctl.d/90-citadel-llm.conf"
# after 60-block-scheduler.rules, where the distribution chooses
UDEV_FILE = "/etc/udev/rules.d/65-citadel-llm.rules"
UNIT = "citadel-tuning.service"
GOVERNOR = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
TRANSPARENT = "/sys/kernel/mm/transparent_hugepage/enabled"
INTERRUPTS = "/proc/irq/*/smp_affinity_list"
# what the kernel takes and means something else by, or refuses only when it is asked
RANGES = {"vm.swappiness": (0, 200), "vm.overcommit_memory": (0, 2), "vm.max_map_count": (65530, 2**31 - 1)}
NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[A-Za-z0-9_:*-]+)+")
NUMBERS = re.compile(r"-?\d+( -?\d+)*")
MANAGED = "Ansible managed, by the role tuning of citadel-llm"
FEWER_PAGES = "citadel_hugepages in the inventory says how many"


class TuningError(ValueError):
    """One variable, its value, and what it takes."""

    def __init__(self, variable: str, value: object, problem: str) -> None:
        super().__init__(f"{variable} = {value!r}: {problem}")


def items(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`given` is what the role's variables say, by their names without `tuning_`; nothing of it is impossible then."""
    values = settings(given)
    found = [
        *kernel(values),
        *disks(given),
        *([interrupts] if (interrupts := irq(given)) else []),
        *live(given),
    ]
    if boot := commands(given):
        found += [
            {
                **file(f"/etc/systemd/system/{UNIT}", unit(boot)),
                "then": [["systemctl", "daemon-reload"]],
            },
            {"kind": "unit", "name": UNIT, "desired": "enabled active"},
        ]
    if not given["apply"]:
        found = [one if one["kind"] == "file" else {**one, "apply": False} for one in found]
    return found


def settings(given: Mapping[str, Any]) -> dict[str, str]:
    """The kernel's settings with their values, checked."""
    found = {}
    for name, value in given["sysctl"].items():
        variable = f"tuning_sysctl['{name}']"
        text = " ".join(str(value).split())
        if not NAME.fullmatch(str(name)):
            raise TuningError("tuning_sysctl", name, "give the name of a setting, such as vm.swappiness")
        if name == "vm.nr_hugepages":
            raise TuningError(variable, value, "say it in tuning_hugepages, where the plan counts them")
        least, most = RANGES.get(name, (0, None))
        for number in text.split() if NUMBERS.fullmatch(text) else ():
            if int(number) < least or (most is not None and int(number) > most):
                raise TuningError(variable, value, f"give {least} " + (f"to {most}" if most else "or more"))
        if name in RANGES and not text.isdecimal():
            raise TuningError(variable, value, "give a whole number")
        found[name] = text
    pages = number_of("tuning_hugepages", given["hugepages"], least=-1)
    if pages >= 0:
        found["vm.nr_hugepages"] = str(pages)
    return found


def number_of(variable: str, value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)) or int(value) < least:
        raise TuningError(variable, value, f"give a whole number, {least} or more")
    return int(value)


def file(path: str, content: str) -> dict[str, Any]:
    return {"kind": "file", "name": path, "desired": "content", "content": content}


def kernel(values: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    if not values:
        return
    lines = "".join(f"{name} = {value}\n" for name, value in values.items())
    yield file(SYSCTL_FILE, f"# {MANAGED}\n{lines}")
    for name, value in values.items():
        advice = {"advice": f"{FEWER_PAGES}."} if name == "vm.nr_hugepages" else {}
        yield {"kind": "sysctl", "name": name, "desired": value, **advice}


def disks(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of every disk, or of those that are named; udev sets them again whenever a disk comes."""
    sectors = number_of("tuning_read_ahead", given["read_ahead"])
    if sectors % 8:
        raise TuningError("tuning_read_ahead", sectors, "give sectors of 512 bytes, a multiple of 8")
    # blockdev counts sectors, and sysfs KiB
    wanted = {"scheduler": given["scheduler"], "read_ahead_kb": str(sectors // 2) if sectors else ""}
    wanted = {name: value for name, value in wanted.items() if value}
    if not wanted:
        return
    match = ['ACTION=="add|change"', 'SUBSYSTEM=="block"', 'ENV{DEVTYPE}=="disk"']
    match.append(f'KERNEL=="{"|".join(given["disks"])}"' if given["disks"] else f'KERNEL!="{"|".join(NO_DISKS)}"')
    # a rule for each: what is made of several disks, or behind several paths, has no scheduler and a read-ahead
    rules = [", ".join([*match, f'ATTR{{queue/{name}}}="{value}"']) for name, value in wanted.items()]
    yield file(UDEV_FILE, f"# {MANAGED}\n" + "".join(f"{rule}\n" for rule in rules))
    for name, value in wanted.items():
        yield {"kind": "disk", "name": name, "desired": value, "disks": given["disks"]}


def irq(given: Mapping[str, Any]) -> dict[str, Any] | None:
    cpus = cpus_of(given)
    return {"kind": "irq", "name": "affinity", "desired": cpus} if cpus else None


def cpus_of(given: Mapping[str, Any]) -> str:
    try:
        return format_cpus(parse_cpus(given["irq_cpus"]))
    except ValueError as error:
        raise TuningError("tuning_irq_cpus", given["irq_cpus"], str(error)) from None


def live(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is set here now, and at boot by a unit of ours."""
    if cpus_of(given):
        # it would lead them elsewhere every ten seconds
        yield {"kind": "unit", "name": "irqbalance.service", "desired": "disabled inactive"}
    if given["governor"]:
        yield {"kind": "sysfs", "name": GOVERNOR, "desired": given["governor"]}
    if given["transparent_hugepages"]:
        yield {"kind": "sysfs", "name": TRANSPARENT, "desired": given["transparent_hugepages"]}
    for place in given["noatime"]:
        yield {"kind": "mount", "name": place, "desired": "noatime"}


def commands(given: Mapping[str, Any]) -> list[str]:
    """For a shell, each of them harmless where there is nothing to set."""

    def write(value: str, pattern: str) -> str:
        return f'for place in {pattern}; do test ! -w "$place" || echo {value} > "$place"; done'

    found = []
    if cpus := cpus_of(given):
        found.append(write(cpus, INTERRUPTS))
    if given["governor"]:
        found.append(write(given["governor"], GOVERNOR))
    if given["transparent_hugepages"]:
        found.append(write(given["transparent_hugepages"], TRANSPARENT))
    for place in given["noatime"]:
        if not re.fullmatch(r"/[\w./-]*", place):
            raise TuningError("tuning_noatime", place, "give the absolute path of a folder")
        found.append(f'! grep -q " {place} " /proc/self/mounts || mount -o remount,noatime {place}')
    return found


def unit(boot: list[str]) -> str:
    # systemd expands a dollar sign of its own
    starts = "\n".join("ExecStart=-/bin/sh -c '{}'".format(one.replace("$", "$$")) for one in boot)
    return f"""# {MANAGED}
[Unit]
Description=Settings of the kernel that neither sysctl.d nor udev bring back
After=local-fs.target remote-fs.target systemd-modules-load.service
Before=citadel-models.target

[Service]
Type=oneshot
RemainAfterExit=yes
{starts}

[Install]
WantedBy=multi-user.target
"""
