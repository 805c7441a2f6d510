"""Who may reach a server: rules that open what the contract has and nothing else, and sentences before a lock-out."""

from __future__ import annotations

import grp
import hashlib
import ipaddress
import itertools
import os
import pwd
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from citadel import access, access_host, access_revert, kinds
from citadel.access import AccessError, Operator, Policy
from citadel.access_host import ChangeError, Host
from citadel.declarations import drift
from citadel.kinds import CannotError

CONTRACT: dict[str, Any] = {
    "ports": {"api": 8000, "management": 8002, "health": 8080, "export": 9090, "node": 9100},
    "models": {"phi": {"instances": [{"name": "phi-1", "port": 11403}, {"name": "phi-2", "port": 11503}]}},
}
GIVEN: dict[str, Any] = {
    "profile": "production",
    "root_login": "no",
    "ssh_port": 22,
    "management": ["10.0.0.1"],
    "clients": ["10.0.1.0/24", "fd00::/64"],
    "metrics": ["10.0.0.37"],
    "side_address": "127.0.0.1",
    "models_address": "127.0.0.1",
    "models_clients": "",
}
RULE = re.compile(r'^\t\t(?:ip6?) saddr \{ (.+) \} tcp dport (\d+) accept comment "(\S+)"$', re.M)
OPERATOR = Operator("admin", "10.0.0.1", 4000, 22)


def policy(**said: Any) -> Policy:
    return Policy.of({**GIVEN, **said}, CONTRACT)


def opened(rules: str) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for sources, port, _ in RULE.findall(rules):
        found.setdefault(int(port), set()).update(sources.split(", "))
    return found


def test_production_opens_each_door_for_whom_it_is() -> None:
    assert opened(access.ruleset(policy())) == {
        22: {"10.0.0.1/32"},
        8000: {"10.0.0.1/32", "10.0.1.0/24", "fd00::/64"},
        9090: {"10.0.0.37/32"},
        9100: {"10.0.0.37/32"},
    }


@pytest.mark.parametrize("side", ["", "10.0.0.29", "127.0.0.1"])
@pytest.mark.parametrize("models", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("lists", [*itertools.product([[], ["10.0.0.0/8"]], [[], ["fd00::1", "10.0.0.37"]])])
def test_every_open_port_belongs_to_the_contract(side: str, models: str, lists: tuple[list[str], list[str]]) -> None:
    clients, metrics = lists
    rules = access.ruleset(
        policy(side_address=side, models_address=models, models_clients="10.0.2.0/24", clients=clients, metrics=metrics)
    )
    contract = {22, *CONTRACT["ports"].values(), 11403, 11503}
    given = {*clients, *metrics, "10.0.0.1", "10.0.2.0/24"}
    allowed = [ipaddress.ip_network(one) for one in given]
    for port, sources in opened(rules).items():
        assert port in contract
        for source in map(ipaddress.ip_network, sources):
            assert any(source.version == one.version and source.subnet_of(one) for one in allowed)  # type: ignore[arg-type]
    assert {8002, 8080} <= opened(rules).keys() or side == "127.0.0.1"
    assert {11403, 11503} <= opened(rules).keys() or models == "127.0.0.1"
    # nothing is accepted but what was looked at above, and what stands here
    accepted = [line.strip() for line in rules.splitlines() if "accept" in line and not RULE.match(line)]
    assert [line.split()[0] for line in accepted] == ["iifname", "ct", "icmp", "icmpv6", "udp", "ip6"]
    assert "policy drop" in rules and re.findall(r"table (\S+ \S+)", rules) == ["inet citadel"] * 3


def test_development_has_no_firewall_and_takes_passwords() -> None:
    loose = policy(profile="development", management=[], root_login="prohibit-password")
    assert loose.openings == () and not loose.closed
    assert access.sshd_drop_in(loose).splitlines()[1:] == [
        "permitrootlogin without-password",
        "pubkeyauthentication yes",
        "passwordauthentication yes",
        "maxauthtries 3",
        "clientaliveinterval 300",
        "clientalivecountmax 2",
    ]


def test_a_policy_reaches_the_host_as_it_is() -> None:
    for one in (policy(side_address=""), policy(profile="development")):
        assert Policy.loaded(one.as_dict()) == one


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"profile": "moon"}, "citadel_profile = 'moon': choose one of development, production"),
        ({"management": []}, r"access_management = \[\]: production lets nobody else in on ssh; name"),
        ({"management": "10.0.0.1"}, "access_management = '10.0.0.1': give a list of addresses"),
        ({"management": ["0.0.0.0/0"]}, r"access_management = \['0.0.0.0/0'\]: that is everybody"),
        ({"clients": ["10.0.0.300"]}, "access_clients = '10.0.0.300': give an address such as"),
        ({"clients": ["10.0.1.7/24"]}, "access_clients = '10.0.1.7/24': .* say 10.0.1.0/24 or 10.0.1.7"),
        ({"metrics": ["hx-metrics"]}, "access_metrics = 'hx-metrics': .* a name of a host will not do"),
        ({"ssh_port": "ssh"}, "access_ssh_port = 'ssh': give a port, 1 to 65535"),
        ({"ssh_port": 8000}, "access_ssh_port = 8000: the contract gives that port to api"),
        ({"root_login": "yes"}, "access_root_login = 'yes': choose one of no, prohibit-password"),
        ({"root_login": "prohibit-password"}, "in production root never comes in by ssh; give no"),
        (
            {"models_address": "0.0.0.0", "models_clients": "everybody"},
            "models_settings.clients = 'everybody': give an address",
        ),
    ],
)
def test_what_cannot_be_meant_is_told(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AccessError, match=sentence):
        policy(**said)


def test_networks_of_the_estate() -> None:
    servers = ["192.168.10.29", "192.168.10.28", "some-name", "fd00::1"]
    assert access.of_estate(servers) == ["192.168.10.0/24", "fd00::/64"]


@pytest.mark.parametrize(
    ("operator", "has_key", "sentences"),
    [
        (OPERATOR, True, []),
        (None, False, []),
        (
            Operator("admin", "10.0.9.9", 1, 22),
            True,
            ["is reached from 10.0.9.9, and access_management has 10.0.0.1/32"],
        ),
        (Operator("admin", "fd00::9", 1, 22), True, ["is reached from fd00::9"]),
        (Operator("root", "10.0.0.1", 1, 22), True, ["is reached as root, whom sshd would refuse from now on"]),
        (Operator("admin", "10.0.0.1", 1, 2222), True, ["is reached on port 2222, and access_ssh_port is 22"]),
        (OPERATOR, False, ["has no key for admin, and production takes no passwords"]),
    ],
)
def test_who_would_be_shut_out_is_told_first(operator: Operator | None, has_key: bool, sentences: list[str]) -> None:
    said = access.objections(policy(), operator, has_key)
    assert len(said) == len(sentences)
    for sentence, beginning in zip(said, sentences, strict=True):
        assert sentence.startswith(beginning) and sentence.endswith("Nothing was changed.")


def test_development_refuses_root_only_where_it_is_not_who_comes() -> None:
    for root_login, count in (("prohibit-password", 0), ("no", 1)):
        loose = policy(profile="development", root_login=root_login)
        assert len(access.objections(loose, Operator("root", "10.9.9.9", 1, 2222), False)) == count


def test_the_operator_is_who_sshd_let_in(tmp_path: Path) -> None:
    def process(number: int, parent: int, **environment: str) -> None:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "status").write_text(f"Name:\tx\nPPid:\t{parent}\n")
        told = "\0".join(f"{key}={value}" for key, value in environment.items())
        (tmp_path / str(number) / "environ").write_text(told)

    process(30, 20, SUDO_USER="admin", USER="root")
    process(20, 10, SSH_CONNECTION="::ffff:10.0.0.1 4000 ::ffff:10.0.0.29 22", USER="admin")
    process(40, 1)
    assert access_host.operator(tmp_path, 30) == OPERATOR
    assert access_host.operator(tmp_path, 40) is None


class World(kinds.Host):
    """A host whose programs remember what they were asked, and do as sshd, nft and systemd do."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []
        self.kernel, self.broken, self.timer = "", "", False
        self.deaf = False  # an sshd that reads no drop-ins

    def text(self, path: str) -> str:
        place = self.inside(path)
        return place.read_text() if place.exists() else ""

    def listing(self) -> str:
        return hashlib.sha256(self.kernel.encode()).hexdigest()

    def _run(self, command: Any) -> str:
        said = " ".join(command)
        self.asked.append(said)
        if self.broken and self.broken in said:
            raise CannotError("it is broken")
        told = ""
        link = self.inside(access_host.FIREWALL_LINK)
        if said == "sshd -T":
            told = "" if self.deaf else self.text(access_host.DROP_IN)
        elif said == access_host.LISTING:
            told = self.kernel
        elif "sha256sum" in said:
            told = self.listing()
        elif said.startswith("systemctl show"):
            file = bool(self.text(access_host.FIREWALL_UNIT))
            told = f"LoadState={'loaded' if file else 'not-found'}\n"
            told += f"ActiveState={'active' if self.kernel else 'inactive'}\n"
            told += f"UnitFileState={'enabled' if link.is_symlink() else 'disabled' if file else ''}\n"
        elif said.startswith("systemctl enable"):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(access_host.FIREWALL_UNIT)
        elif said.startswith("systemctl disable"):
            link.unlink()
        elif "reload-or-restart" in said or said.startswith("systemctl start"):
            self.kernel = self.text(access_revert.RULES)
        elif said == f"systemctl stop {access_revert.FIREWALL}":
            self.kernel = ""
        elif said.startswith("systemd-run"):
            self.timer = True
        elif said.startswith("systemctl stop host-access-timer"):
            self.timer = False
        return told


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(access_revert, "call", lambda *command, stdin="": bool(world._run(command)))
    monkeypatch.setattr(shutil, "which", lambda program: program)
    return world


def host_of(world: World) -> Host:
    me = Host("llm", world, pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name)
    me.listed = lambda rules: hashlib.sha256(rules.encode()).hexdigest()  # type: ignore[method-assign]
    return me


def files(root: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_change_is_kept_by_another_connection_alone(world: World) -> None:
    host, closed = host_of(world), policy()
    assert host.set(closed, 60, act=False).changed and not world.timer
    assert host.set(closed, 60, act=True).changed and world.timer
    assert world.kernel == access.ruleset(closed)
    with pytest.raises(ChangeError, match="over the connection that changed it, which proves nothing"):
        host.confirm(OPERATOR.connection, OPERATOR, closed)
    assert world.timer
    host.confirm(OPERATOR.connection, Operator("admin", "10.0.0.1", 4001, 22), closed)
    assert not world.timer and not (host.home / access_revert.ARMED).exists()
    assert not host.set(closed, 60, act=True).changed


def test_what_is_altered_by_hand_is_found_and_set_right(world: World) -> None:
    host, closed = host_of(world), policy()
    host.set(closed, 60, act=True)
    host.confirm("", OPERATOR, closed)
    world.kernel += "\t\ttcp dport 1 accept\n"
    world.told.clear()
    [drifted] = [one for one in drift(world) if one.state == "drifted"]
    assert (drifted.owner, drifted.item) == ("access", "command rules of the kernel")
    assert host.set(closed, 60, act=True).changed
    assert world.kernel == access.ruleset(closed)


def test_what_nobody_confirms_is_undone(world: World) -> None:
    place = world.inside(access_host.DROP_IN)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"# somebody's own\n")
    host = host_of(world)
    host.set(policy(), 60, act=True)
    assert access_revert.take(world.root)
    access_revert.restore(world.root)
    assert place.read_bytes() == b"# somebody's own\n"
    assert not world.text(access_revert.RULES) and not world.kernel and drift(world) == []
    with pytest.raises(ChangeError, match="waited in vain for a new connection and has its access as before"):
        host.confirm("", OPERATOR, policy())


def test_back_to_the_rules_before_and_then_to_nothing(world: World) -> None:
    before = files(world.root)
    host, first, second = host_of(world), policy(), policy(clients=["10.0.5.0/24"])
    host.set(first, 60, act=True)
    host.confirm("", OPERATOR, first)
    kernel = world.kernel
    host.set(second, 60, act=True)
    assert world.kernel != kernel and access_revert.take(world.root)
    access_revert.restore(world.root)
    world.told.clear()
    assert world.kernel == kernel and not host.set(first, 60, act=True).changed
    loose = policy(profile="development", root_login="no")
    host.set(loose, 60, act=True)
    host.confirm("", OPERATOR, loose)
    assert world.kernel == "" and "passwordauthentication yes" in world.text(access_host.DROP_IN)
    host.set(None, 60, act=True)
    host.confirm("", OPERATOR, None)
    assert files(world.root) == before and world.kernel == ""
    assert not (world.root / "etc/citadel").exists() and not (world.root / "var/lib/citadel").exists()


@pytest.mark.parametrize("broken", ["sshd -t -f", "sshd -t &&", "nft -c", "reload-or-restart", "systemd-run"])
def test_what_a_program_refuses_is_undone_at_once(world: World, broken: str) -> None:
    world.broken = broken
    host = host_of(world)
    with pytest.raises(ChangeError, match=r"(?s)it is broken.*llm has its ssh and firewall as before"):
        host.set(policy(), 60, act=True)
    assert not world.text(access_revert.RULES) and not world.text(access_host.DROP_IN)
    assert not (host.home / access_revert.ARMED).exists() and not world.timer


def test_an_sshd_that_does_not_read_drop_ins_is_told(world: World) -> None:
    world.deaf = True
    with pytest.raises(ChangeError, match=r"sshd permitrootlogin shall be no and is \. Let /etc/ssh/sshd_config begin"):
        host_of(world).set(policy(), 60, act=True)
    assert not world.text(access_host.DROP_IN)


def test_a_host_without_nft_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ChangeError, match=r"llm has no nft: install the package nftables\. Nothing was changed"):
        host_of(world).set(policy(), 60, act=True)


def test_a_boot_in_between_puts_the_files_back_and_starts_nothing(world: World) -> None:
    host_of(world).set(policy(), 60, act=True)
    world.asked.clear()
    assert access_revert.take(world.root)
    access_revert.restore(world.root, booting=True)
    assert world.asked == [] and not world.text(access_revert.RULES)


@pytest.mark.parametrize(("content", "found"), [(None, False), ("# none\n", False), ("ssh-ed25519 AAAA me\n", True)])
def test_a_key_is_looked_for_where_sshd_looks(
    world: World, monkeypatch: pytest.MonkeyPatch, content: str | None, found: bool
) -> None:
    keys = world.root / "keys/admin"
    if content is not None:
        keys.parent.mkdir(parents=True)
        keys.write_text(content)
    told = "authorizedkeyscommand none\nauthorizedkeysfile /keys/%u\n"
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, *"x" * 4, "/h", "")))
    monkeypatch.setattr(world, "ask", lambda *command: told)
    assert host_of(world).has_key("admin") is found
