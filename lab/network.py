"""The lab's network: one bridge, one nftables table of its own. Taking both away leaves the machine as it was."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from lab.settings import ESTATE, Lab, LabError
from lab.shell import lines, run, succeeds

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# what it was before the first lab; the last one puts it back
FORWARDING_BEFORE = Path("/run/citadel-lab.ip_forward")


def rules(lab: Lab) -> str:
    """Lab hosts reach the package sources through this machine; the estate's addresses are refused and counted."""
    return f"""
table ip {lab.table} {{
    chain estate_from_lab {{
        type filter hook forward priority -10; policy accept;
        ip saddr {lab.network} ip daddr {ESTATE} counter reject
    }}
    chain estate_from_controller {{
        type filter hook output priority -10; policy accept;
        ip daddr {ESTATE} counter
    }}
    chain way_out {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {lab.network} ip daddr != {lab.network} masquerade
    }}
}}
"""


def refuse_taken_range(lab: Lab) -> None:
    """An address range that something else on this machine uses would cut that off, or us."""
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all")):
        if route.get("dev") == lab.bridge or route["dst"] == "default":
            continue
        if ipaddress.ip_network(route["dst"], strict=False).overlaps(lab.network):
            raise LabError(
                f"The lab's range {lab.network} is taken: this machine already routes {route['dst']} through "
                f"{route.get('dev', 'another route')}. Set LAB_NETWORK to the first three numbers of a free range, "
                "like 10.77.41."
            )


def up(lab: Lab) -> None:
    """Make bridge and rules as they should be."""
    if not succeeds("ip", "link", "show", lab.bridge):
        run("ip", "link", "add", lab.bridge, "type", "bridge")
    if not any(f"{lab.gateway}/24" in line for line in lines("ip", "-o", "-4", "addr", "show", lab.bridge)):
        run("ip", "addr", "add", f"{lab.gateway}/24", "dev", lab.bridge)
    run("ip", "link", "set", lab.bridge, "up")
    if not succeeds("nft", "list", "table", "ip", lab.table):
        run("nft", "-f", "-", stdin=rules(lab))
    # A firewall that drops forwarded packets by default (docker, ufw) would cut the lab off from the package sources.
    if succeeds("iptables", "-S", "FORWARD") and "-P FORWARD DROP" in run("iptables", "-S", "FORWARD"):
        for direction in ("-i", "-o"):
            rule = ["FORWARD", direction, lab.bridge, "-j", "ACCEPT"]
            if not succeeds("iptables", "-C", *rule):
                run("iptables", "-I", *rule)
    if not FORWARDING_BEFORE.exists():
        FORWARDING_BEFORE.write_text(FORWARDING.read_text())
    FORWARDING.write_text("1\n")


def down(lab: Lab) -> None:
    if succeeds("iptables", "-S", "FORWARD"):
        for direction in ("-i", "-o"):
            rule = ["FORWARD", direction, lab.bridge, "-j", "ACCEPT"]
            while succeeds("iptables", "-C", *rule):
                run("iptables", "-D", *rule)
    if succeeds("nft", "list", "table", "ip", lab.table):
        run("nft", "delete", "table", "ip", lab.table)
    if succeeds("ip", "link", "show", lab.bridge):
        run("ip", "link", "delete", lab.bridge)
    others = succeeds("nft", "--version") and any("citadel_lab_" in table for table in lines("nft", "list", "tables"))
    if FORWARDING_BEFORE.exists() and not others:
        FORWARDING.write_text(FORWARDING_BEFORE.read_text())
        FORWARDING_BEFORE.unlink()


def packets_to_estate(lab: Lab) -> dict[str, int]:
    """How many packets tried to reach the real estate, from the lab's hosts and from this machine."""
    listing = json.loads(run("nft", "-j", "list", "table", "ip", lab.table))["nftables"]
    counted: dict[str, int] = {}
    for entry in listing:
        rule = entry.get("rule")
        if rule and rule["chain"].startswith("estate_"):
            counted[rule["chain"]] = sum(part["counter"]["packets"] for part in rule["expr"] if "counter" in part)
    return counted
