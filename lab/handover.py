"""What a lab host gets from this machine before it boots: its address, a key, and this machine's ways to packages."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

from lab import python_mirror
from lab.settings import FLEET, USER, Lab, LabHost
from lab.shell import lines, run, succeeds

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# As the estate has it: nobody logs in as root or with a password.
SSHD = "PermitRootLogin no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"


def pip_settings(python: Path = Path(sys.executable)) -> dict[str, list[str]]:
    """Where pip of this machine finds packages: indexes, folders and certificates, from file and environment alike."""
    found: dict[str, list[str]] = {}
    for line in lines(python, "-m", "pip", "config", "list"):
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        if name in {"index-url", "extra-index-url", "find-links", "trusted-host"}:
            # shown as Python would: a value over several lines has them as \\n
            for word in str(ast.literal_eval(value)).split():
                if word not in found.setdefault(name, []):
                    found[name].append(word)
    return found


def local_folders(settings: dict[str, list[str]]) -> list[Path]:
    """Folders on this machine that pip reads; an index in `.../simple` points at files beside it."""
    folders = []
    for word in [word for values in settings.values() for word in values]:
        url = urlparse(word)
        path = Path(url.path if url.scheme == "file" else word)
        if url.scheme in {"", "file"} and path.is_dir():
            folders.append(path.parent if path.name == "simple" else path)
    return folders


def pip_configuration(settings: dict[str, list[str]]) -> str:
    body = "".join(f"{key} =\n" + "".join(f"    {value}\n" for value in values) for key, values in settings.items())
    return f"[global]\n{body}"


def binds(lab: Lab, host: LabHost) -> list[str]:
    """Read-only: packages and model files. Writable: what was downloaded or compiled, for the next lab."""
    options = [f"--bind-ro={folder}" for folder in local_folders(pip_settings())]
    options.append(f"--bind-ro={models(lab)}:/srv/models")
    options.append(f"--bind-ro={python_mirror.mirror(lab.cache)}:{python_mirror.INSIDE}")
    for name, inside in (
        ("apt", "/var/cache/apt/archives"),
        ("packages", "/var/cache/citadel-packages"),
        ("compiled", "/var/cache/citadel-compiled"),
    ):
        shared = lab.cache / "downloads" / host.name / name
        (shared / "partial").mkdir(parents=True, exist_ok=True)
        options.append(f"--bind={shared}:{inside}")
    return options


def models(lab: Lab) -> Path:
    folder = lab.directory / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def nameservers() -> str:
    """A stub resolver on loopback answers nobody but this machine: hand on what stands behind it."""
    own = Path("/etc/resolv.conf").read_text()
    behind = Path("/run/systemd/resolve/resolv.conf")
    return behind.read_text() if "127.0.0.53" in own and behind.is_file() else own


def key(lab: Lab) -> Path:
    private = lab.directory / "id_ed25519"
    if not private.is_file():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {lab.prefix}", "-f", private)
    return private


def settle(lab: Lab, host: LabHost, root: Path) -> None:
    """Write into a host's root what a person would set up by hand before Ansible can reach it."""

    def write(path: str, text: str, mode: int = 0o644) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(mode)

    write("etc/hostname", f"{host.name}\n")
    # hosts that may come later have their names already
    names = "".join(f"{lab.address(other)} {other.name}\n" for other in dict.fromkeys((*lab.hosts, *FLEET)))
    write("etc/hosts", f"127.0.0.1 localhost\n{names}")
    write("etc/resolv.conf", nameservers())
    write("etc/machine-id", "")
    write(
        # sorts before systemd's own file for containers, which would ask for an address by DHCP
        "etc/systemd/network/10-lab.network",
        f"[Match]\nName=host0\n\n[Network]\nAddress={lab.address(host)}/24\nGateway={lab.gateway}\n",
    )
    write("etc/ssh/sshd_config.d/10-lab.conf", SSHD)
    write(f"etc/sudoers.d/{USER}", f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440)
    if not succeeds("chroot", root, "/usr/bin/id", USER):
        run("chroot", root, "/usr/sbin/useradd", "--create-home", "--shell=/bin/bash", USER)
    # root has the key too: what refuses root is sshd, as it would on a server where somebody left one
    for home in ("root", f"home/{USER}"):
        write(f"{home}/.ssh/authorized_keys", key(lab).with_suffix(".pub").read_text(), 0o600)
        (root / home / ".ssh").chmod(0o700)
    run("chroot", root, "/usr/bin/chown", "--recursive", f"{USER}:", f"/home/{USER}/.ssh")
    write("etc/pip.conf", pip_configuration(pip_settings()))
    if CERTIFICATES.is_file():
        shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    run("ssh-keygen", "-A", "-f", root)


def ssh_settings(lab: Lab) -> None:
    """Host keys are read from the hosts' own disks, so ssh can insist on them; `ssh -F` with this file reaches each."""
    known, blocks = [], []
    for host in lab.hosts:
        public = lab.host_directory(host) / "root/etc/ssh/ssh_host_ed25519_key.pub"
        known.append(f"{lab.address(host)} {' '.join(public.read_text().split()[:2])}\n")
        blocks.append(f"Host {host.name}\n    HostName {lab.address(host)}\n")
    (lab.directory / "known_hosts").write_text("".join(known))
    common = (
        f"Host *\n    User {USER}\n    IdentityFile {key(lab)}\n    IdentitiesOnly yes\n    LogLevel ERROR\n"
        f"    UserKnownHostsFile {lab.directory / 'known_hosts'}\n    StrictHostKeyChecking yes\n"
        f"    ControlPath {lab.sockets}/%C\n"
    )
    lab.sockets.parent.mkdir(exist_ok=True)
    lab.sockets.mkdir(mode=0o700, exist_ok=True)
    (lab.directory / "ssh_config").write_text("".join([*blocks, common]))


def variables(lab: Lab) -> None:
    """Ansible reads these beside inventory/lab: what only this machine can know about the lab's hosts."""
    settings = pip_settings()
    (lab.directory / "variables.json").write_text(
        json.dumps(
            {
                "lab_pip_index_url": (settings.get("index-url") or [""])[-1],
                "lab_pip_extra_index_urls": settings.get("extra-index-url", []),
                "lab_pip_find_links": settings.get("find-links", []),
                **python_mirror.variables(lab.cache),
            },
            indent=2,
        )
    )


def tiny_models(lab: Lab) -> None:
    maker = Path(__file__).with_name("tiny_models.py")
    subprocess.run([sys.executable, maker, models(lab)], check=True, env={**os.environ})
