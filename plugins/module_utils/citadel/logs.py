"""Follows the journals of models and gateway into files, for those who look there; the journal stays the original."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .release.services import GATEWAY_PREFIX

FOLDER = Path("/var/log/citadel-llm")
MODEL = re.compile(r"^citadel-llm@(.+)\.service$")
BAD = re.compile(r"\b(ERROR|CRITICAL|Traceback)\b|\"level\": ?\"(error|critical)\"")
FIELDS = "MESSAGE,PRIORITY,_SYSTEMD_UNIT,UNIT"
WARNING = 4  # what systemd itself says of a service that died


def command(cursor: Path) -> list[str]:
    """All that the journal has since the last line that was written."""
    place = cursor.read_text(encoding="ascii").strip() if cursor.exists() else ""
    units = [f"--unit={pattern}" for pattern in ("citadel-llm@*.service", f"{GATEWAY_PREFIX}*.service")]
    since = [f"--after-cursor={place}"] if place else ["--boot"]
    return [
        "journalctl",
        "--follow",
        "--no-tail",
        "--quiet",
        "--output=json",
        f"--output-fields={FIELDS}",
        *units,
        *since,
    ]


def lines(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """File and text of one entry: a model's own file; what went wrong in the gateway goes to error.log."""
    unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or "")
    message = entry.get("MESSAGE") or ""
    text = bytes(message).decode(errors="replace") if isinstance(message, list) else str(message)
    seconds = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    model = MODEL.match(unit)
    if model:
        yield f"{model[1]}.log", f"{when} {text}\n"
    elif unit.startswith(GATEWAY_PREFIX) and (int(entry.get("PRIORITY", 6)) <= WARNING or BAD.search(text)):
        yield "error.log", f"{when} {'' if 'ERROR' in text else 'ERROR '}{text}\n"


def append(path: Path, text: str) -> None:
    """Opened each time, so that a file which was moved away is simply begun anew."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def follow(folder: Path) -> int:
    cursor = folder / ".cursor"
    append(folder / "error.log", "")
    journal = subprocess.Popen(command(cursor), stdout=subprocess.PIPE, text=True, errors="replace")
    signal.signal(signal.SIGTERM, lambda *_: journal.terminate())
    assert journal.stdout  # noqa: S101 - as asked for above
    for raw in journal.stdout:
        entry = json.loads(raw)
        try:
            for name, text in lines(entry):
                append(folder / name, text)
            aside = cursor.with_suffix(".new")
            aside.write_text(entry["__CURSOR"], encoding="ascii")
            aside.replace(cursor)
        except OSError as error:  # a full disk: the journal has the line, and the next one is tried again
            print(f"{folder}: {error.strerror}", file=sys.stderr)
    status = journal.wait()
    if status > 0:
        cursor.unlink(missing_ok=True)  # a place that the journal no longer knows
    return max(status, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)


def run(arguments: argparse.Namespace) -> int:
    return follow(arguments.folder)
