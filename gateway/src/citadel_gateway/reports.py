"""How the gateway describes its models and its health, to clients, monitors and administrators alike."""

from __future__ import annotations

import time
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
        "owned_by": "citadel",
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
    report: dict[str, Any] = {"status": gateway.fleet.status(), "version": __version__, "models": {}}
    if gateway.stopping:
        report["stopping"] = True
    for model in gateway.fleet.models.values():
        state = model.status()
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
        report["connections"] = len(gateway.connections)
        report["uptime_seconds"] = round(time.time() - gateway.started, 1)
    return report


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
