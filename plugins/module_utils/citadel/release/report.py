"""The evidence of a deployment: what was planned, done and proven, as JSON for programs and Markdown for people."""

from __future__ import annotations

import difflib
import platform
import shutil
from pathlib import Path
from typing import Any

from ..placement import gib
from .diff import differences
from .failure import RefusedError
from .files import write, write_json
from .history import Histories
from .layout import Layout
from .manifest import COMPILED, Manifest, read_manifest
from .plan import Plan


def evidence(layout: Layout, told: dict[str, Any]) -> dict[str, Any]:
    """Everything about one transaction that somebody may ask for later."""
    release = layout.release(told["release"])
    manifest = read_manifest(release)
    plan = Plan.of(told["plan"]) if told["plan"] else None
    return {
        **{key: told[key] for key in ("outcome", "good", "release", "live", "said", "recovered", "seconds")},
        "previous": plan.previous if plan else None,
        "who": told["who"],
        "began": told["began"],
        "ended": told["ended"],
        "digest": manifest.digest,
        "source": manifest.source,
        "created": manifest.created,
        "environments": manifest.environments,
        "models": manifest.models,
        "gateway": _gateway(layout, manifest),
        "services": {service.unit: service.digest for service in manifest.wanted()},
        "plan": plan.lines() if plan else [],
        "steps": told["steps"],
        "proof": told["proof"],
        "memory": told["memory"],
        "diff": _diff(layout, manifest, plan) if plan else "",
        "host": {"name": platform.node(), "kernel": platform.release(), "python": platform.python_version()},
        "sizes": {
            "release_bytes": sum(path.stat().st_size for path in release.rglob("*") if path.is_file()),
            "files": len(manifest.files),
            "free_bytes": shutil.disk_usage(layout.home).free,
        },
    }


def _gateway(layout: Layout, manifest: Manifest) -> str:
    """What its path runs as, and why it is the slower one."""
    if manifest.gateway() is None:
        return ""
    if (layout.release(manifest.id) / COMPILED).is_dir():
        return "compiled"
    said = Histories(layout).of(manifest.id).uncompiled or "It runs from its source: its environment has no compiler"
    return " ".join(said.split()).replace("|", "\\|")


def _diff(layout: Layout, manifest: Manifest, plan: Plan) -> str:
    release = layout.release(manifest.id)
    before = layout.release(plan.previous) if plan.previous else None
    shown = {path: _text(release / path) for path in (*plan.added, *plan.changed)}
    lines: list[str] = []
    for entry in differences(plan, shown, before):
        lines += difflib.unified_diff(
            entry["before"].splitlines(),
            entry["after"].splitlines(),
            entry["before_header"],
            entry["after_header"],
            lineterm="",
            n=1,
        )
    return "\n".join(lines)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def markdown(found: dict[str, Any]) -> str:
    source = found["source"].get("revision", "unknown") + (
        " with uncommitted changes" if found["source"].get("dirty") else ""
    )
    lines = [
        f"# {found['release']}: {found['outcome']}",
        "",
        found["said"],
        *([f"Before that: {found['recovered']}"] if found["recovered"] else []),
        "",
        "| | |",
        "|---|---|",
        f"| live now | {found['live'] or 'nothing'} |",
        f"| before | {found['previous'] or 'nothing'} |",
        f"| by | {found['who']} on {found['host']['name']} |",
        f"| from, to | {found['began']}, {found['ended']} ({found['seconds']} s) |",
        f"| source | {source} |",
        f"| content | {found['digest']} ({found['sizes']['files']} files, {found['sizes']['release_bytes']} bytes) |",
        *([f"| gateway | {found['gateway']} |"] if found["gateway"] else []),
        *(f"| environment {name} | {path} |" for name, path in sorted(found["environments"].items())),
        *(f"| model {name} | {model['revision']} |" for name, model in sorted(found["models"].items())),
        *(f"| {unit} | {digest[:16]} |" for unit, digest in found["services"].items()),
        "",
        "## Plan",
        "",
        *(f"    {line}" for line in found["plan"]),
        "",
        "## Steps",
        "",
        "| step | seconds |",
        "|---|---|",
        *(f"| {step['name']} | {step['seconds']} |" for step in found["steps"]),
        "",
        "## Proof",
        "",
        "| service | asked | answer | seconds |",
        "|---|---|---|---|",
        *_proofs(found["proof"]),
        "",
        "## Memory",
        "",
        "| model | planned | in use | off by |",
        "|---|---|---|---|",
        *(
            f"| {use['model']} | {gib(use['planned'])} | {gib(use['used'])} | {use['off']:+.0%} |"
            for use in found["memory"]
        ),
        "",
        "## What changed in the rendered files",
        "",
        *(f"    {line}" for line in found["diff"].splitlines() or ["nothing"]),
    ]
    return "\n".join(lines) + "\n"


def _proofs(proof: list[dict[str, Any]]) -> list[str]:
    rows = []
    for entry in proof:
        answers = [entry, *entry.get("answers", []), *entry.get("trial", {}).get("answers", [])]
        for answer in answers:
            if "answer" in answer:
                text = " ".join(str(answer["answer"]).split()).replace("|", "\\|")[:60]
                took = answer.get("seconds", "")
                rows.append(f"| {entry['unit']} | {answer.get('model', '')} | {text} | {took} |")
    return rows


def write_report(layout: Layout, name: str, told: dict[str, Any]) -> str:
    """Beside the journals; the path of the Markdown. Nothing fails for want of a report."""
    target = layout.reports / f"{name}.md"
    try:
        found = evidence(layout, told)
        write_json(target.with_suffix(".json"), found)
        write(target, markdown(found))
    except (OSError, RefusedError):
        return ""
    return str(target)
