"""The new gateway on a side port, in the same sandbox and with the same credentials as the real one.

Its unit is the release's own, less what two gateways cannot share: the listening sockets and the runtime
directory.
"""

from __future__ import annotations

import re
import socket

UNIT = "citadel-gateway-trial.service"
_NOT_SHARED = re.compile(
    r"^(Sockets|RuntimeDirectory\w*|Restart\w*|WatchdogSec|Requires|Wants|BindsTo|PartOf|ReloadPropagatedFrom|"
    r"WantedBy|Also|SyslogIdentifier)\s*="
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trial_unit(template: str, release: str, port: int) -> str:
    """The text of the unit that tries a release's gateway on one loopback port."""
    lines = []
    for raw in template.replace("%i", release).replace("%I", release).splitlines():
        line = raw.strip()
        if _NOT_SHARED.match(line):
            continue
        lines.append(f"{line} --bind 127.0.0.1:{port}" if line.startswith("ExecStart=") else line)
        if line == "[Service]":
            lines.append("Restart=no")
    return "\n".join(lines) + "\n"
