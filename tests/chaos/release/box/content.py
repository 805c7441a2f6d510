"""The content of releases for the box: services that stand in for models and gateway, in units with the real names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = Path(__file__).parents[4] / "plugins/module_utils/citadel"
ROLES = Path(__file__).parents[4] / "roles"
RECOVER = ROLES / "release/templates/units/citadel-recover.service.j2"
MODELS = ROLES / "models/templates/units"
FACE = ROLES / "gateway/templates/units/citadel-gateway.service.j2"
ENVIRONMENT = "/opt/citadel/envs/gateway-000000000000"

MODEL = """\
[Unit]
Description=Stand-in model %i
PartOf=citadel-models.target
After=citadel-recover.service
[Service]
Type=exec
User=nobody
EnvironmentFile=/opt/citadel/current/config/models/%i.env
ExecStart=/usr/bin/python3 -B /srv/box/model.py /opt/citadel/current/config/models/%i.yml
ExecReload=/bin/true
Restart=always
RestartSec=1
[Install]
WantedBy=citadel-models.target
"""
GATEWAY = """\
[Unit]
Description=Stand-in gateway of release %i
PartOf=citadel-gateway.service
ReloadPropagatedFrom=citadel-gateway.service
Wants=citadel-gateway.service
After=citadel-recover.service
[Service]
Type=notify
User=nobody
SyslogIdentifier=citadel-gateway
Environment=CITADEL_DIGEST={digest} PYTHONPATH=/opt/citadel/releases/%i/gateway
ExecStart={environment}/bin/python -B -m citadel_gateway serve --config /opt/citadel/releases/%i/config/gateway.yml
ExecReload=/bin/kill -HUP $MAINPID
Sockets=citadel-gateway-api.socket citadel-gateway-control.socket
Restart=always
RestartSec=1
TimeoutStopSec=60
[Install]
WantedBy=citadel-gateway.service
"""
SOCKET = """\
[Unit]
StopWhenUnneeded=yes
[Socket]
ListenStream={stream}
FileDescriptorName={name}
Service=citadel-sockets.service
[Install]
WantedBy=citadel-gateway.service
"""
SOCKETS = "PartOf=citadel-gateway-api.socket citadel-gateway-control.socket"
KEEPER = f"[Unit]\n{SOCKETS}\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
STREAMS = {"api": "8000", "control": "/run/citadel-gateway/control.sock"}


def content(models: dict[str, dict[str, Any]], gateway: dict[str, Any] | None = None) -> dict[str, str]:
    """Files of a release with these models (options by name) and these options of the gateway."""
    ports = {name: 11400 + number for number, name in enumerate(sorted(models))}
    configuration = json.dumps({"models": ports, **(gateway or {})})
    program = (HERE / "gateway.py").read_text()
    files = {
        "units/citadel-llm@.service": MODEL,
        "units/citadel-llm.target": unmanaged(MODELS / "citadel-llm.target.j2"),
        "units/citadel-gateway@.service": GATEWAY.format(
            digest=_digest(configuration, program), environment=ENVIRONMENT
        ),
        **{
            f"units/citadel-gateway-{name}.socket": SOCKET.format(name=name, stream=stream)
            for name, stream in STREAMS.items()
        },
        "units/citadel-gateway.service": face(),
        "units/citadel-sockets.service": KEEPER,
        "units/citadel-models.target": unmanaged(MODELS / "citadel-models.target.j2"),
        "units/citadel-recover.service": RECOVER.read_text(),
        "config/gateway.yml": configuration,
        "gateway/citadel_gateway/__main__.py": program,
    }
    for name, options in models.items():
        text = "".join(
            f"{key}: {value}\n" for key, value in {"served-model-name": name, "port": ports[name], **options}.items()
        )
        files[f"config/models/{name}.yml"] = text
        files[f"config/models/{name}.env"] = f"CITADEL_DIGEST={_digest(text)}\n"
        files[f"units/citadel-llm@{name}.service.d/plan.conf"] = "[Service]\nTimeoutStartSec=8\n"
    for path in sorted(PACKAGE.rglob("*.py")):
        files[f"host/citadel/{path.relative_to(PACKAGE)}"] = path.read_text()
    return files


def unmanaged(template: Path) -> str:
    return template.read_text().replace("# {{ ansible_managed }}\n", "")


def face() -> str:
    """The product's own, so that what people type is tried with what they have."""
    values = {
        "gateway_releases": "/opt/citadel/releases",
        "gateway_releases | dirname": "/opt/citadel",
        "gateway_ports.health": "8000",
        "gateway__drain + 30": "90",
    }
    text = unmanaged(FACE)
    for name, value in values.items():
        text = text.replace("{{ " + name + " }}", value)
    return text


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def early(files: dict[str, str]) -> dict[str, str]:
    """The same as a release from before the gateway had a face: its name was a keeper of the sockets, which opened at
    boot by themselves, and one target was for the models alone."""
    old = {path: text for path, text in files.items() if path.split("/")[-1] not in LATER}
    for path in [path for path in old if path.startswith("units/") and not path.endswith("recover.service")]:
        kept = [line for line in old[path].splitlines() if not line.startswith(("PartOf", "ReloadP", "Wants", "Stop"))]
        wanted = "sockets.target" if path.endswith(".socket") else "multi-user.target"
        replaced = {
            "WantedBy=citadel-gateway.service": f"WantedBy={wanted}",
            "citadel-models.target": "citadel-llm.target",
            "citadel-sockets": "citadel-gateway",
        }
        text = "\n".join(kept) + "\n"
        for name, before in replaced.items():
            text = text.replace(name, before)
        old[path] = text
    old["units/citadel-gateway.service"] = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
    gateway = old["units/citadel-gateway@.service"]
    old["units/citadel-gateway@.service"] = gateway.replace("CITADEL_DIGEST=", "CITADEL_DIGEST=0")
    return old


LATER = {"citadel-sockets.service", "citadel-models.target"}
