"""Which services a release runs, read from its own files.

A model instance is a file `config/models/<instance>.env` beside its options in `<instance>.yml`; the gateway
is the unit `citadel-gateway@.service`; any other unit that carries CITADEL_DIGEST is a service too. Nobody
has to list them a second time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from .failure import RefusedError

MODEL_TEMPLATE = "citadel-llm@.service"
GATEWAY_TEMPLATE = "citadel-gateway@.service"
GATEWAY_PREFIX = "citadel-gateway@"
MANAGED = re.compile(r"^citadel-[\w@.-]+\.(service|socket|target|timer|path|slice)$")
DROP_INS = re.compile(MANAGED.pattern[:-1] + r"\.d$")
_OPTION = re.compile(r"^([\w-]+):[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_TLS = re.compile(r"^Environment=CITADEL_TLS=1$", re.MULTILINE)
_DIGEST = re.compile(r"\bCITADEL_DIGEST=\"?([0-9A-Za-z:]+)")


@dataclass(frozen=True)
class Service:
    """One process that has to run, as systemd and its clients know it."""

    unit: str
    kind: str  # model, gateway or other
    digest: str  # over all that the process depends on
    name: str = ""  # instance of a model
    served: str = ""  # the name that clients ask a model by
    port: int = 0
    task: str = "chat"  # or embeddings
    timeout: float = 900.0  # seconds that a start may take
    tls: bool = False

    @property
    def measure(self) -> str:
        """The name under which the host remembers how long a start takes."""
        return self.name or self.unit.partition("@")[0].removesuffix(".service")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Service:
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        return cls(**known)

    def for_release(self, release: str) -> Service:
        """The gateway's unit carries the release in its name: two of them run side by side for a moment."""
        if self.kind != "gateway":
            return self
        return Service(**{**asdict(self), "unit": f"{GATEWAY_PREFIX}{release}.service"})


def environment_of(text: str) -> dict[str, str]:
    """The variables of an environment file, in the subset of syntax that systemd reads alike."""
    variables = {}
    for raw in text.splitlines():
        line = raw.strip()
        if line and line[0] not in "#;" and "=" in line:
            key, value = line.split("=", 1)
            variables[key.strip()] = value.strip().strip("\"'")
    return variables


def services_of(files: Mapping[str, str]) -> list[Service]:
    found = [_model(path, files) for path in sorted(files) if _is_instance(path)]
    for path, text in sorted(files.items()):
        unit = PurePosixPath(path)
        if unit.parent != PurePosixPath("units") or unit.suffix != ".service" or unit.name == MODEL_TEMPLATE:
            continue
        carried = _DIGEST.search(text)
        if unit.name == GATEWAY_TEMPLATE:
            digest = carried.group(1) if carried else _gateway_digest(files)
            tls = bool(_TLS.search(text))
            found.append(Service(unit.name, "gateway", digest, port=_client_port(files), timeout=60.0, tls=tls))
        elif carried and "@." not in unit.name:
            found.append(Service(unit.name, "other", carried.group(1)))
    return found


def listening(files: Mapping[str, str]) -> dict[str, str]:
    """What of each socket unit only another opening can change. Who is woken by it is read anew by a reload."""
    found = {}
    for path, text in files.items():
        if path.startswith("units/") and path.endswith(".socket"):
            lines = (line.strip() for line in text.partition("[Socket]")[2].partition("\n[")[0].splitlines())
            kept = sorted(line for line in lines if "=" in line and not line.startswith(("#", ";", "Service=")))
            found[path.removeprefix("units/")] = "\n".join(kept)
    return found


def _is_instance(path: str) -> bool:
    return path.startswith("config/models/") and path.endswith(".env")


def _model(path: str, files: Mapping[str, str]) -> Service:
    name = PurePosixPath(path).stem
    unit = f"citadel-llm@{name}.service"
    options_path = path.removesuffix(".env") + ".yml"
    options = options_of(files.get(options_path, ""))
    limits = environment_of(files.get(f"units/{unit}.d/plan.conf", ""))
    found = {
        "CITADEL_DIGEST": environment_of(files[path]).get("CITADEL_DIGEST"),
        "port": options.get("port"),
        "served-model-name": options.get("served-model-name"),
    }
    missing = [key for key, value in found.items() if not value]
    if missing:
        raise RefusedError(
            f"Model {name}: {path} and {options_path} do not say {' and '.join(missing)}. A release needs "
            "to know "
            "what a model depends on, where it listens and what it is called: see the templates of the "
            "models role."
        )
    return Service(
        unit=unit,
        kind="model",
        digest=str(found["CITADEL_DIGEST"]),
        name=name,
        served=str(found["served-model-name"]),
        port=_port(options_path, str(found["port"])),
        task="embeddings" if options.get("runner") == "pooling" else "chat",
        timeout=float(limits.get("TimeoutStartSec", 900)),
    )


def options_of(text: str) -> dict[str, str]:
    """The plain values at the top of a YAML file: all that is needed here, and without a parser on the host."""
    return {match[1]: match[2].strip("\"'") for match in _OPTION.finditer(text)}


def _port(path: str, value: str) -> int:
    if not value.isdigit() or not 0 < int(value) < 65536:
        raise RefusedError(f"{path} says port {value}, which is none: use a number from 1 to 65535.")
    return int(value)


def _client_port(files: Mapping[str, str]) -> int:
    """Where clients reach the gateway: the socket named `api`, or the only one there is."""
    sockets = [text for path, text in sorted(files.items()) if path.endswith(".socket")]
    named = [text for text in sockets if environment_of(text).get("FileDescriptorName") == "api"]
    for text in named or sockets:
        stream = environment_of(text).get("ListenStream", "").rpartition(":")[2]
        if stream.isdigit():
            return int(stream)
    return 0


def _gateway_digest(files: Mapping[str, str]) -> str:
    """All that the gateway is made of, for a unit that does not say so itself."""
    digest = hashlib.sha256()
    for path, text in sorted(files.items()):
        if path.startswith(("gateway/", "config/gateway", "units/citadel-gateway")):
            digest.update(f"{path}\0{hashlib.sha256(text.encode()).hexdigest()}\n".encode())
    return digest.hexdigest()[:32]
