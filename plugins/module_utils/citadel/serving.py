"""How vLLM is told to serve one instance: its options, its environment, and what systemd grants it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .catalogue import Model, format_cpus
from .placement import Placed
from .settings import Settings
from .topology import GIB

KV_DTYPE = "bfloat16"
LEAST_CACHE = 1 << 26
# The engine computes itself, without a worker process. By its class, since vLLM takes the short name `uni` for a
# mistake on CPUs: OpenMP has to be told its threads before the process starts, which the environment below does.
EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# Edges of the documents' targets: vLLM's own buckets have none at 0.75 and 3 seconds.
LATENCY_BUCKETS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 5, 10, 30, 60, 120, 300)
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)


@dataclass(frozen=True)
class Places:
    """Where things are on the host."""

    environment: str
    models: str
    cache: str
    settings: Settings = field(default_factory=Settings)


def options(place: Placed, places: Places) -> dict[str, Any]:
    """vLLM's configuration file; the stanza's `engine` has the last word."""
    need = place.need
    model = need.model
    chosen: dict[str, Any] = {
        "model": model_folder(model, need.variant, places),
        "served-model-name": model.name,
        "host": places.settings.address,
        "port": need.port,
        "dtype": KV_DTYPE,
        "max-model-len": model.context,
        "max-num-batched-tokens": model.batched_tokens,
        "max-num-seqs": model.sequences,
        # Never left out, not even for an encoder, which keeps none: vLLM would ask for 92 % of the host's memory.
        "kv-cache-memory-bytes": need.cache or LEAST_CACHE,
        "max-num-queued-reqs": model.concurrent * inputs_at_once(model),
        "shutdown-timeout": places.settings.drain,
        "seed": 0,
        "distributed-executor-backend": EXECUTOR,
        "disable-uvicorn-access-log": True,
        "custom-histogram-buckets": json.dumps(
            {"request_latency": LATENCY_BUCKETS, "time_to_first_token": FIRST_TOKEN_BUCKETS}
        ),
    }
    if model.kind == "embeddings":
        chosen["runner"] = "pooling"
    else:
        chosen["generation-config"] = "vllm"  # defaults are the catalogue's, not the checkpoint's
        chosen["override-generation-config"] = json.dumps(generation_defaults(model))
    if places.settings.traces:
        chosen["otlp-traces-endpoint"] = places.settings.traces
    if model.tool_parser:
        chosen["enable-auto-tool-choice"] = True
        chosen["tool-call-parser"] = model.tool_parser
    # vLLM takes a mapping as JSON
    told = {key: json.dumps(value) if isinstance(value, Mapping) else value for key, value in model.engine.items()}
    return {**chosen, **told}


def inputs_at_once(model: Model) -> int:
    """vLLM counts each text of a request for embeddings as a request of its own."""
    return int(model.generation["bounds"]["inputs"]) if model.kind == "embeddings" else 1


def generation_defaults(model: Model) -> dict[str, Any]:
    # Not max_tokens: vLLM takes max_new_tokens for a limit of all requests. The gateway fills in that default.
    return {key: model.generation[key] for key in ("temperature", "top_p") if key in model.generation}


def model_folder(model: Model, variant: str, places: Places) -> str:
    return f"{places.models}/{model.name}/{model.weights[variant].revision}"


def environment(place: Placed, places: Places) -> dict[str, str]:
    cache = f"{places.cache}/{place.need.instance}"
    # Even an eager engine compiles a helper when somebody first asks for log probabilities: forty seconds of g++ and
    # 600 MB inside the unit, which then passes its MemoryMax and takes every running request with it.
    eager = {"TORCHDYNAMO_DISABLE": "1"} if place.need.model.engine.get("enforce-eager") else {}
    # A request's spans only where the gateway says so, and none of a start.
    traced = {
        "OTEL_SERVICE_NAME": f"vllm-{place.need.instance}",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    return {
        **eager,
        **(traced if places.settings.traces else {}),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # its processes speak to each other over loopback only; gloo would listen where the host's name leads
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_LOGGING_LEVEL": places.settings.log_level,
        # All its cores compute (docs/decisions/025), and lend themselves soon to what else runs on them.
        "OMP_NUM_THREADS": str(len(place.cpus)),
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "VLLM_CACHE_ROOT": cache,
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "HOME": cache,
        "XDG_CACHE_HOME": cache,
        "LD_PRELOAD": ":".join(places.settings.libraries).replace("{environment}", places.environment),
        # What the check before a start goes by.
        "CITADEL_ENVIRONMENT": places.environment,
        "CITADEL_MODEL": model_folder(place.need.model, place.need.variant, places),
        "CITADEL_PORT": f"{places.settings.address}:{place.need.port}",
        "CITADEL_NEED_BYTES": str(place.need.total),
        # What a deployment compares with the memory in use.
        "CITADEL_RUNNING_BYTES": str(place.need.running),
        "CITADEL_CACHE_BYTES": str(place.need.cache),
        **documented(place, places),
    }


def documented(place: Placed, places: Places) -> dict[str, str]:
    """The plan in the names that people and their scripts know; told, not read by anything."""
    model = place.need.model
    return {
        "MODEL_NAME": model.name,
        "MODEL_PATH": model_folder(model, place.need.variant, places),
        "SERVICE_PORT": str(place.need.port),
        "MAX_MODEL_LEN": str(model.context),
        "MAX_BATCHED_TOKENS": str(model.batched_tokens),
        "MAX_NUM_SEQS": str(model.sequences),
        "MEMORY_LIMIT": f"{place.memory_max / GIB:.1f}G",
        "CPU_QUOTA": str(100 * len(place.cpus)),
    }


def instance(place: Placed, places: Places) -> dict[str, Any]:
    """Everything about one instance that templates and other roles use."""
    need = place.need
    chosen, settings = options(place, places), environment(place, places)
    return {
        "name": need.instance,
        "model": need.model.name,
        "kind": need.model.kind,
        "port": need.port,
        "url": f"http://{places.settings.address}:{need.port}",
        "variant": need.variant,
        "repository": need.model.weights[need.variant].repository,
        "revision": need.model.weights[need.variant].revision,
        "path": chosen["model"],
        "cpus": format_cpus(place.cpus),
        "node": place.node,
        "need_bytes": need.total,
        "memory_max_bytes": place.memory_max,
        "kv_bytes": need.cache,
        "overhead_bytes": need.overhead,
        "unit": dict(need.model.unit),
        "start_seconds": place.start_seconds,
        "hidden_size": need.architecture.hidden,
        "options": chosen,
        "environment": settings,
    }


def digest(told: Mapping[str, Any], unit: str, rendered: str, stored: str) -> str:
    """Names all that an instance depends on: the unit of all, its options as written, what systemd grants it, and the
    files of its model. Another digest than that of the running process means a restart."""
    parts = (
        unit,
        rendered,
        told["memory_max_bytes"],
        told["cpus"],
        json.dumps(told["unit"], sort_keys=True),
        json.dumps(told["environment"], sort_keys=True),
        stored,
    )
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def instances(placed: Sequence[Placed], places: Places) -> list[Mapping[str, Any]]:
    return [instance(place, places) for place in placed]
