"""What a host is refused for, in which words; and that Ubuntu 24.04, for which all this is made, is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from citadel.fitness import Found, Wanted, clock_here, missing, objections, person
from citadel.topology import GIB

WANTED = Wanted(("agent0",), 16, 128, "/usr/bin/python3.12")
NOBLE = 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n'
TRIXIE = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\nID=debian\n'


def host(
    version: str = "24.04", distribution: str = "Ubuntu", cores: int = 16, gib: float = 125, **more: object
) -> Found:
    return Found(distribution, version, cores, round(gib * GIB), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "distribution", "version"), [(NOBLE, "Ubuntu", "24.04"), (TRIXIE, "Debian", "13")])
def test_a_host_is_known_by_its_own_files(tmp_path: Path, text: str, distribution: str, version: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(text)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 131072000 kB\nMemFree: 1 kB\n")
    asked: list[str] = []

    def run(command: list[str]) -> str:
        asked.append(command[1])
        return ""

    found = Found.here(Wanted(("agent0",), 1, 1, "/usr/bin/python3.12"), tmp_path, run)
    assert (found.distribution, found.version, found.memory) == (distribution, version, 131072000 * 1024)
    assert asked == ["passwd", "shadow"]
    assert not found.python, "there is no /usr/bin/python3.12"


@pytest.mark.parametrize(
    "found",
    [host(), host("24.10"), host("12", "Debian"), host("13", "Debian"), host(persons={"agent0": []}), host(gib=128)],
)
def test_what_the_product_is_made_for_is_let_in(found: Found) -> None:
    assert objections(found, WANTED, "ubuntu") == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (host("22.04"), "runs Ubuntu 22.04; this product is made for Ubuntu 24.04 and runs on Debian 12 and 13"),
        (host("11", "Debian"), "runs Debian 11; this product"),
        (host("9", "Rocky Linux"), "runs Rocky Linux 9; this product"),
        (host("", ""), "runs an unknown system; this product"),
        (host(cores=15), "has 15 cores and host_minimum_cores asks for 16: use a larger machine, or lower"),
        (host(gib=124), "has 124.0 GiB of memory and host_minimum_memory_gib asks for 128: use a larger machine"),
        (host(python=False), "has no /usr/bin/python3.12, which citadel_python in the inventory asks for: install it"),
        (
            host(persons={"agent0": ["its uid is 1000", "it has a password"]}),
            "has a user agent0 whom a person can be (its uid is 1000, it has a password), and accounts of services "
            "cannot log in: rename that one, or name another in citadel_user or citadel_engine_user.",
        ),
    ],
)
def test_what_cannot_carry_the_models_is_told_why(found: Found, said: str) -> None:
    [sentence] = objections(found, WANTED, "ubuntu")
    assert sentence.startswith(said)


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert len(objections(host("22.04", cores=2, gib=8), WANTED)) == 3


def test_an_account_of_services_is_nobody_to_log_in_as() -> None:
    [sentence] = objections(host(persons={"agent0": ["its uid is 1000"]}), WANTED, "agent0")
    assert sentence.startswith("is reached as agent0, an account of services that cannot log in")


@pytest.mark.parametrize(
    ("passwd", "shadow", "said"),
    [
        ("", "", []),
        ("agent0:x:997:997::/nonexistent:/usr/sbin/nologin\n", "agent0:!:20000::::::\n", []),
        ("agent0:x:997:997::/nonexistent:/usr/sbin/nologin\n", "", []),
        ("agent0:x:997:997::/nonexistent:/usr/sbin/nologin\n", "agent0:$y$j9T$x:20000::::::\n", ["it has a password"]),
        (
            "agent0:x:1000:1000:Agent:/home/agent0:/bin/bash\n",
            "agent0:$y$j9T$x:20000:0:99999:7:::\n",
            ["its uid is 1000", "its shell is /bin/bash", "its home is /home/agent0", "it has a password"],
        ),
    ],
)
def test_a_person_is_told_from_an_account_of_ours(passwd: str, shadow: str, said: list[str]) -> None:
    assert person(passwd, shadow) == said


@pytest.mark.parametrize(
    ("installed", "container", "package", "unit", "said"),
    [
        ([], False, "systemd-timesyncd", "systemd-timesyncd.service", ""),
        (["systemd-timesyncd"], False, "", "systemd-timesyncd.service", ""),
        (["chrony"], False, "", "", "has chrony, which keeps its clock"),
        (["systemd-timesyncd"], True, "", "", "is a container, whose clock is its machine's"),
    ],
)
def test_one_service_keeps_the_clock(
    installed: list[str], container: bool, package: str, unit: str, said: str, tmp_path: Path
) -> None:
    if container:
        (tmp_path / "run/systemd").mkdir(parents=True)
        (tmp_path / "run/systemd/container").touch()
    found = clock_here(tmp_path, lambda command: "".join(f"{name} installed\n" for name in installed))
    assert (found.package, found.unit) == (package, unit)
    assert found.said.startswith(said) and bool(found.said) is bool(said)


@pytest.mark.parametrize(
    ("name", "good"),
    [("hx-llm-server-01", True), ("a" * 63, True), ("a" * 64, False), ("-a", False), ("a.b", False), ("192", False)],
)
def test_a_host_gets_a_name_that_a_host_can_have(name: str, good: bool) -> None:
    said = objections(host(), replace(WANTED, name=name))
    assert not said if good else said[0].startswith(f"cannot be called {name!r} (citadel_host_name): give letters")


def test_only_what_is_not_there_is_installed() -> None:
    told = "curl installed\ngit config-files\nless installed\n"
    assert missing(["curl", "git", "less", "tmux"], lambda command: told) == ["git", "tmux"]
