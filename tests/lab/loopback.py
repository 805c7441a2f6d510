"""Questions to what only listens on a host's loopback: asked there, with the Python that every host has."""

from __future__ import annotations

import json
from typing import Any

from testinfra.host import Host

ASK = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode() or None, {"Content-Type": "application/json"})
try:
    with urllib.request.urlopen(request, timeout=120) as answer:
        print(answer.status)
        sys.stdout.write(answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
    sys.stdout.write(error.read().decode())
except OSError as error:
    print(0)
    sys.stdout.write(str(error))
"""


def ask(host: Host, url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Status and text of the answer; status 0 if there was none."""
    done = host.run("python3 -c %s %s %s", ASK, url, json.dumps(body) if body is not None else "")
    status, _, text = str(done.stdout).partition("\n")
    return int(status or 0), text or str(done.stderr)
