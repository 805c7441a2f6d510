"""How the gateway describes its models and its health, to clients, monitors and administrators alike."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from citadel_gateway import __version__

if TYPE_CHECKING:
    from citadel_gateway.fleet import Model
    from citadel_gateway.gateway import Gateway


def describe(model: Model) -> dict[str, Any]:
    """A model as `/v1/models` shows it: OpenAI's fields, and what this one can do."""
    settings = model.settings
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "citadel-ai",
        "root": settings.served_name or model.name,
        "max_model_len": settings.context,
        "description": settings.description,
        "capabilities": settings.capabilities,
        "endpoints": settings.endpoints,
        "specialisation": settings.specialisation,
        "vector_size": settings.vector_size,
        "aliases": settings.aliases,
        "defaults": settings.defaults.model_dump(exclude_none=True),
        "status": model.status(),
    }


def health_report(gateway: Gateway, *, detailed: bool) -> dict[str, Any]:
    states = {model.name: model.status() for model in gateway.fleet.models.values()}
    status = gateway.fleet.status()
    report: dict[str, Any] = {
        "status": status,
        "version": __version__,
        "timestamp": round(time.time(), 3),
        "uptime": round(time.time() - gateway.started, 1),
        "healthy_models": [name for name, state in states.items() if state == "ready"],
        "unhealthy_models": [name for name, state in states.items() if state != "ready"],
        "services": {"vllm": status},
        "models": {},
    }
    if gateway.stopping:
        report["stopping"] = True
    for model in gateway.fleet.models.values():
        state = states[model.name]
        report["models"][model.name] = {"status": state, "ready": state == "ready"}
        if detailed:
            lane = gateway.admission.lanes[model]
            report["models"][model.name] |= {
                "in_flight": lane.in_flight,
                "waiting": lane.waiting,
                "capacity": model.capacity(),
                "replicas": [replica_report(replica) for replica in model.replicas],
            }
    if detailed:
        report["dependencies"] = {
            "keys": {"status": "healthy", "count": len(gateway.keys.all())},
        }
        if gateway.spool is not None:
            report["dependencies"]["usage"] = gateway.spool.report()
        if gateway.redis:
            report["dependencies"]["redis"] = _redis(gateway)
        report["connections"] = len(gateway.connections)
        report["process"] = _process()
    return report


def _redis(gateway: Gateway) -> dict[str, Any]:
    """Each use of it has a connection of its own."""
    uses = {use: redis.report() for use, redis in gateway.redis.items()}
    if gateway.limits.shared is not None:
        uses["limits"]["counted"] = gateway.limits.shared.counted()
    up = all(redis.up for redis in gateway.redis.values())
    return {"status": "healthy" if up else "unavailable", **uses}


def _process() -> dict[str, Any]:
    """What this one process takes of its unit's limits."""
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"workers": 1, "memory_bytes": resident, "cpu_seconds": round(time.process_time(), 2)}


def replica_report(replica: Any) -> dict[str, Any]:
    return {
        "name": replica.name,
        "state": replica.state,
        "reason": replica.reason,
        "breaker": replica.breaker.state,
        "in_flight": replica.in_flight,
        "engine_running": replica.running,
        "engine_waiting": replica.waiting,
        "cache_used": replica.cache_used,
        "memory_bytes": replica.memory,
    }
