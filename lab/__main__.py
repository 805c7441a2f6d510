"""`python3 -m lab up|down|status|address`: the estate as real systemd hosts on this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from lab import handover, network, preflight
from lab.machine import Machine, refuse_foreign
from lab.settings import Lab, LabError
from lab.tree import tree


def up(lab: Lab) -> bool:
    """Bring every host to where ssh answers; True if anything had to be done for it."""
    preflight.check(lab)
    standing = lab.record.exists() and all(Machine(lab, host).leader for host in lab.hosts)
    if standing:
        handover.ssh_settings(lab)
        return False
    lab.directory.mkdir(parents=True, exist_ok=True)
    # recorded before it is changed, so that `down` knows the way back even from a run that was cut off
    lab.record.write_text(json.dumps({"network": str(lab.network), "hosts": [host.name for host in lab.hosts]}))
    network.up(lab)
    handover.key(lab)
    handover.variables(lab)
    handover.tiny_models(lab)
    machines = [Machine(lab, host) for host in lab.hosts]

    def bring_up(machine: Machine) -> None:
        host = machine.host
        machine.start(
            tree(lab, host.packages, host.suite),
            handover.binds(lab, host),
            lambda root: handover.settle(lab, host, root),
        )
        machine.await_boot()

    with ThreadPoolExecutor(len(machines)) as pool:
        for outcome in [pool.submit(bring_up, machine) for machine in machines]:
            outcome.result()
    handover.ssh_settings(lab)
    return True


def down(lab: Lab) -> bool:
    """Remove every trace of the lab; True if there was one."""
    refuse_foreign(lab)
    existed = lab.directory.exists()
    with ThreadPoolExecutor(len(lab.hosts)) as pool:
        list(pool.map(lambda host: Machine(lab, host).remove(), lab.hosts))
    network.down(lab)
    for folder in (lab.sockets, lab.directory):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another lab's stands beside it, or nothing was there
            folder.parent.rmdir()
    return existed


def status(lab: Lab) -> str:
    rows = [f"lab {lab.prefix} on {lab.network}"]
    for host in lab.hosts:
        machine = Machine(lab, host)
        state = f"up, process {machine.pid}" if machine.leader else "down"
        rows.append(f"  {host.name:<11} {lab.address(host):<14} {state}")
    return "\n".join(rows)


def address(lab: Lab, name: str) -> str:
    found = next((host for host in lab.hosts if host.name == name), None)
    if found is None:
        raise LabError(f"The lab {lab.prefix!r} has no host {name!r}: it has {', '.join(h.name for h in lab.hosts)}.")
    return lab.address(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    parser.add_argument("verb", choices=["check", "up", "down", "status", "address", "packets"])
    parser.add_argument("host", nargs="?", default="llm-01", help="whose address")
    asked = parser.parse_args()
    verb = asked.verb
    try:
        lab = Lab.from_environment()
        if verb == "check":
            preflight.check(lab)
        elif verb == "status":
            print(status(lab))
        elif verb == "address":
            print(address(lab, asked.host))
        elif verb == "packets":
            print(json.dumps(network.packets_to_estate(lab)))
        else:
            print("changed" if (up if verb == "up" else down)(lab) else "unchanged")
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
