"""Who listens where node exporter shall: nobody, the distribution's own, or one of somebody else's, which stays."""

from __future__ import annotations

from dataclasses import dataclass

from .kinds import Host
from .validation import EXPORTER, holders, unit_of

OURS = "prometheus-node-exporter.service"
TEXTS = "--collector.textfile.directory"


class NodeError(ValueError):
    """The port has somebody who is no node exporter: who, and what to do."""


@dataclass(frozen=True)
class Foreign:
    """A node exporter of somebody else's."""

    who: str
    texts: str  # the folder whose texts it passes on, if any

    def said(self, texts: str) -> str:
        if self.texts == texts:
            return f"{self.who} stays as it is, and passes on the texts in {texts}"
        if self.texts:
            return (
                f"{self.who} stays as it is and reads its texts in {self.texts}: with citadel_texts = {self.texts} "
                "Prometheus hears of units and releases too"
            )
        return (
            f"{self.who} stays as it is and reads no texts: with {TEXTS}={texts} Prometheus hears of units and "
            "releases too"
        )


def foreign(host: Host, port: int) -> Foreign | None:
    """None where the port is free, or the distribution's exporter has it."""
    for program, pid in sorted(holders(host).get(port, ())):
        unit, words = unit_of(host, pid), command(host, pid)
        if unit == OURS:
            continue
        who = f"{program} ({unit})"
        if not EXPORTER.search(words[0].rpartition("/")[2] if words else program):
            raise NodeError(
                f"port {port} is taken by {who}, which is no node exporter: stop it, or give ours another port "
                "(citadel_node_port)"
            )
        return Foreign(f"{who} on port {port}", option(words, TEXTS))
    return None


def command(host: Host, pid: str) -> list[str]:
    try:
        return host.inside(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:  # it has ended meanwhile
        return []


def option(words: list[str], name: str) -> str:
    """Its value, as `name=value` or `name value`; the last one counts."""
    found = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
    return found.rstrip("/")
