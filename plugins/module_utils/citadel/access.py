"""Who may reach an LLM server, by profile: rules of its firewall and its sshd, and what would shut the operator out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PROFILES = ("development", "production")
ROOT_LOGINS = ("no", "prohibit-password")
TABLE = "citadel"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# what a host needs to be found, to find others and to be told why a packet did not arrive
ICMP = "echo-request, destination-unreachable, time-exceeded, parameter-problem"
ICMPV6 = f"{ICMP}, packet-too-big, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query"
HEADER = (
    "# citadel-llm: who may reach this server. The role `access` writes it; a change by hand is found and undone.\n"
)


class AccessError(ValueError):
    """Access that can't be meant: the name, its value, what is allowed."""


@dataclass(frozen=True)
class Opening:
    """A port that others than the host itself may reach."""

    port: int
    sources: tuple[Network, ...]
    why: str


@dataclass(frozen=True)
class Operator:
    """Whoever changes the host now, as its sshd knows them."""

    user: str
    address: str
    port: int  # on their side: another connection has another one
    ssh_port: int

    @property
    def connection(self) -> str:
        return f"{self.address} {self.port}"


@dataclass(frozen=True)
class Policy:
    profile: str
    root_login: str
    ssh_port: int
    management: tuple[Network, ...]
    openings: tuple[Opening, ...]

    @property
    def closed(self) -> bool:
        return self.profile == "production"

    @classmethod
    def of(cls, given: Mapping[str, Any], contract: Mapping[str, Any]) -> Policy:
        profile = str(given["profile"])
        if profile not in PROFILES:
            raise AccessError(f"citadel_profile = {profile!r}: choose one of {', '.join(PROFILES)}")
        root_login = str(given["root_login"])
        if root_login not in ROOT_LOGINS:
            raise AccessError(f"access_root_login = {root_login!r}: choose one of {', '.join(ROOT_LOGINS)}")
        if profile == "production" and root_login != "no":
            raise AccessError(f"access_root_login = {root_login!r}: in production root never comes in by ssh; give no")
        lists = {name: networks(f"access_{name}", given[name]) for name in ("management", "clients", "metrics")}
        if profile == "production" and not lists["management"]:
            raise AccessError(
                "access_management = []: production lets nobody else in on ssh; name the addresses or networks that "
                "you manage this server from"
            )
        if any(network.prefixlen == 0 for network in lists["management"]):
            raise AccessError(
                f"access_management = {given['management']!r}: that is everybody; name the addresses or networks that "
                "you manage this server from"
            )
        ssh_port = number("access_ssh_port", given["ssh_port"])
        owners = {int(port): name for name, port in contract["ports"].items()}
        if ssh_port in owners:
            raise AccessError(f"access_ssh_port = {ssh_port}: the contract gives that port to {owners[ssh_port]}")
        return cls(
            profile,
            root_login,
            ssh_port,
            lists["management"],
            tuple(openings(given, contract, lists, ssh_port)) if profile == "production" else (),
        )

    @classmethod
    def loaded(cls, value: Mapping[str, Any]) -> Policy:
        """From `as_dict`, which was checked where the inventory is."""
        return cls(
            value["profile"],
            value["root_login"],
            int(value["ssh_port"]),
            networks("management", value["management"]),
            tuple(
                Opening(int(one["port"]), networks("sources", one["sources"]), one["why"]) for one in value["openings"]
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        doors = [
            {"port": one.port, "sources": [str(source) for source in one.sources], "why": one.why}
            for one in self.openings
        ]
        return {
            "profile": self.profile,
            "root_login": self.root_login,
            "ssh_port": self.ssh_port,
            "management": [str(one) for one in self.management],
            "openings": doors,
        }


def openings(
    given: Mapping[str, Any], contract: Mapping[str, Any], lists: Mapping[str, tuple[Network, ...]], ssh_port: int
) -> Iterator[Opening]:
    """Every door of the contract that is not on loopback, and for whom it is."""
    ports = {name: int(port) for name, port in contract["ports"].items()}
    management, clients, metrics = lists["management"], lists["clients"], lists["metrics"]
    yield Opening(ssh_port, management, "ssh")
    yield Opening(ports["api"], united(management, clients), "api")
    yield Opening(ports["export"], metrics, "export")
    yield Opening(ports["node"], metrics, "node")
    if str(given.get("side_address") or "") not in LOOPBACK:
        yield Opening(ports["management"], management, "management")
        yield Opening(ports["health"], united(management, metrics), "health")
    if str(given.get("models_address") or LOOPBACK[0]) not in LOOPBACK:
        allowed = networks("models_settings.clients", str(given.get("models_clients") or "").replace(",", " ").split())
        for model in contract["models"].values():
            for instance in model["instances"]:
                yield Opening(int(instance["port"]), allowed, str(instance["name"]))


def networks(name: str, given: Any) -> tuple[Network, ...]:
    """Addresses and networks as networks, none inside of another."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise AccessError(f"{name} = {given!r}: give a list of addresses and networks")
    return united([network(name, one) for one in given])


def network(name: str, given: Any) -> Network:
    text = str(given).strip()
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        wider = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise AccessError(
            f"{name} = {given!r}: give an address such as 192.168.10.5 or a network such as 192.168.10.0/24; a name "
            "of a host will not do"
        ) from None
    raise AccessError(
        f"{name} = {given!r}: that is an address inside of a network; say {wider} or {text.split('/')[0]}"
    )


def united(*lists: Iterable[Network]) -> tuple[Network, ...]:
    """One network at most for each address: nft takes no set whose parts overlap."""
    every = [one for part in lists for one in part]
    four = [one for one in every if isinstance(one, ipaddress.IPv4Network)]
    six = [one for one in every if isinstance(one, ipaddress.IPv6Network)]
    return (*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six))


def number(name: str, given: Any) -> int:
    if isinstance(given, bool) or not str(given).isdecimal() or not 0 < int(given) < 65536:
        raise AccessError(f"{name} = {given!r}: give a port, 1 to 65535")
    return int(given)


def of_estate(addresses: Iterable[Any]) -> list[str]:
    """The networks of 256 addresses that these servers stand in. What is a name says nothing of its network."""
    found: set[Network] = set()
    for one in addresses:
        try:
            address = ipaddress.ip_address(str(one))
        except ValueError:
            continue
        found.add(ipaddress.ip_network(f"{address}/{24 if address.version == 4 else 64}", strict=False))
    return sorted(map(str, found))


def ruleset(policy: Policy) -> str:
    """One transaction of nft that makes our table what it should be; no other table is named in it."""
    rules = [line for opening in policy.openings for line in rules_of(opening)]
    return "\n".join(
        [
            HEADER.rstrip(),
            f"table inet {TABLE}",
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            "\tchain input {",
            "\t\ttype filter hook input priority filter; policy drop;",
            '\t\tiifname "lo" accept',
            "\t\tct state established,related accept",
            "\t\tct state invalid drop",
            f"\t\ticmp type {{ {ICMP} }} accept",
            f"\t\ticmpv6 type {{ {ICMPV6} }} accept",
            '\t\tudp sport 67 udp dport 68 accept comment "the address, where it comes by DHCP"',
            '\t\tip6 saddr fe80::/10 udp sport 547 udp dport 546 accept comment "the same, of IPv6"',
            *(f"\t\t{rule}" for rule in rules),
            "\t}",
            "}",
            "",
        ]
    )


def rules_of(opening: Opening) -> Iterator[str]:
    for family, version in (("ip", 4), ("ip6", 6)):
        sources = ", ".join(str(one) for one in opening.sources if one.version == version)
        if sources:
            yield f'{family} saddr {{ {sources} }} tcp dport {opening.port} accept comment "{opening.why}"'


def sshd_values(policy: Policy) -> dict[str, str]:
    """What sshd shall do, as `sshd -T` names it."""
    passwords = {"passwordauthentication": "no", "kbdinteractiveauthentication": "no"}
    return {
        # as `sshd -T` still calls a login by key alone
        "permitrootlogin": policy.root_login.replace("prohibit-", "without-"),
        "pubkeyauthentication": "yes",
        **(passwords if policy.closed else {"passwordauthentication": "yes"}),
        "maxauthtries": "3",
        "clientaliveinterval": "300",
        "clientalivecountmax": "2",
    }


def sshd_drop_in(policy: Policy) -> str:
    """Keywords of sshd_config know no case."""
    return HEADER + "".join(f"{name} {value}\n" for name, value in sshd_values(policy).items())


def effective(told: str) -> dict[str, str]:
    """What `sshd -T` says; of a keyword with several lines the first."""
    found: dict[str, str] = {}
    for line in told.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name.lower(), value.strip())
    return found


def objections(policy: Policy, operator: Operator | None, has_key: bool) -> list[str]:
    """Why this access would shut out whoever is about to set it; said of the host's name."""
    if operator is None:
        return []
    said = []
    if operator.user == "root" and policy.root_login == "no":
        said.append(
            "is reached as root, whom sshd would refuse from now on: make a user with your key and sudo that asks for "
            "no password, and name it in CITADEL_SSH_USER or as ansible_user. Nothing was changed."
        )
    if not policy.closed:
        return said
    address = ipaddress.ip_address(operator.address)
    if not any(address in one for one in policy.management if one.version == address.version):
        said.append(
            f"is reached from {address}, and access_management has {', '.join(map(str, policy.management))}: that "
            "would shut you out. Add your address, or come from one of these. Nothing was changed."
        )
    if operator.ssh_port != policy.ssh_port:
        said.append(
            f"is reached on port {operator.ssh_port}, and access_ssh_port is {policy.ssh_port}: that would shut you "
            "out. Name the port that sshd listens on. Nothing was changed."
        )
    if operator.user != "root" and not has_key:
        said.append(
            f"has no key for {operator.user}, and production takes no passwords: put yours there first (ssh-copy-id). "
            "Nothing was changed."
        )
    return said
