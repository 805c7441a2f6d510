"""The content of releases for the box: services that stand in for models and gateway, in units with the real names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = Path(__file__).parents[4] / "plugins/module_utils/citadel"
RECOVER = Path(__file__).parents[4] / "roles/release/templates/units/citadel-recover.service.j2"
ENVIRONMENT = "/opt/citadel/envs/gateway-000000000000"

MODEL = """\
[Unit]
Description=Stand-in model %i
After=citadel-recover.service
[Service]
Type=exec
User=nobody
EnvironmentFile=/opt/citadel/current/config/models/%i.env
ExecStart=/usr/bin/python3 -B /srv/box/model.py /opt/citadel/current/config/models/%i.yml
Restart=always
RestartSec=1
[Install]
WantedBy=citadel-llm.target
"""
TARGET = "[Unit]\nDescription=Stand-in models\n[Install]\nWantedBy=multi-user.target\n"
GATEWAY = """\
[Unit]
Description=Stand-in gateway of release %i
After=citadel-recover.service
[Service]
Type=notify
User=nobody
Environment=CITADEL_DIGEST={digest} PYTHONPATH=/opt/citadel/releases/%i/gateway
ExecStart={environment}/bin/python -B -m citadel_gateway serve --config /opt/citadel/releases/%i/config/gateway.yml
Sockets=citadel-gateway-api.socket citadel-gateway-control.socket
Restart=always
RestartSec=1
TimeoutStopSec=60
[Install]
WantedBy=multi-user.target
"""
SOCKET = """\
[Socket]
ListenStream={stream}
FileDescriptorName={name}
Service=citadel-gateway.service
[Install]
WantedBy=sockets.target
"""
KEEPER = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
STREAMS = {"api": "8000", "control": "/run/citadel-gateway/control.sock"}


def content(models: dict[str, dict[str, Any]], gateway: dict[str, Any] | None = None) -> dict[str, str]:
    """Files of a release with these models (options by name) and these options of the gateway."""
    ports = {name: 11400 + number for number, name in enumerate(sorted(models))}
    configuration = json.dumps({"models": ports, **(gateway or {})})
    program = (HERE / "gateway.py").read_text()
    files = {
        "units/citadel-llm@.service": MODEL,
        "units/citadel-llm.target": TARGET,
        "units/citadel-gateway@.service": GATEWAY.format(
            digest=_digest(configuration, program), environment=ENVIRONMENT
        ),
        **{
            f"units/citadel-gateway-{name}.socket": SOCKET.format(name=name, stream=stream)
            for name, stream in STREAMS.items()
        },
        "units/citadel-gateway.service": KEEPER,
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


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
