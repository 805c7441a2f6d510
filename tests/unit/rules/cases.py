"""For every alert: what makes it fire, what nearly does, what does not. Values are in promtool's notation: `0+2x20` is
a counter that goes up by two at each step for twenty of them, `1x20` stays."""

from __future__ import annotations

from tests.unit.rules.promtool import Cases, Series, neighbour

AT = {"citadel_host": "llm-01"}
OF_MODEL = {**AT, "model": "phi"}
OF_REPLICA = {**OF_MODEL, "replica": "phi"}
TINY = {"model": "tiny", "replica": "tiny"}
OF_UNIT = {**OF_MODEL, "unit": "citadel-llm@phi.service"}


def series(metric: str, values: str, job: str, **labels: str) -> Series:
    every = {"job": f"citadel-llm-{job}", "citadel_host": "llm-01", **labels}
    written = ",".join(f'{key}="{value}"' for key, value in every.items())
    return {f"{metric}{{{written}}}": values}


def gateway(metric: str, values: str, **labels: str) -> Series:
    return series(metric, values, "gateway", model="phi", **labels)


def vllm(metric: str, values: str, **labels: str) -> Series:
    return series(metric, values, "models", model="phi", replica="phi", model_name="phi", engine="0", **labels)


def host(metric: str, values: str, **labels: str) -> Series:
    return series(metric, values, "server", **labels)


def unit(metric: str, values: str, **labels: str) -> Series:
    return host(metric, values, model="phi", unit="citadel-llm@phi.service", **labels)


def up(job: str, values: str) -> Series:
    labels = {"model": "phi", "replica": "phi"} if job == "models" else {}
    return series("up", values, job, instance=f"10.0.0.1:{9100 if job == 'server' else 9090}", **labels)


def every_target(without: str) -> Series:
    """Of both servers, but for one."""
    neighbours = series("up", "1x40", "models", **TINY) if without != "tiny" else {}
    neighbours |= up("models", "1x40") | up("gateway", "1x40") | up("server", "1x40")
    found = up("server", "1x40")
    found |= up("gateway", "1x40") if without != "gateway" else {}
    found |= up("models", "1x40") if without != "phi" else {}
    return found | neighbour(neighbours)


def state(active: str, activating: str = "0x200", inactive: str = "0x200") -> Series:
    found: Series = {}
    for name, values in {"active": active, "activating": activating, "inactive": inactive, "failed": "0x200"}.items():
        found |= unit("citadel_unit_state", values, state=name)
        found |= host("citadel_unit_state", "0x200", model="", unit="citadel-gateway.service", state=name)
    return found


def replica_state(loading: str) -> Series:
    failed = "1x200" if loading.startswith("0") else "0x200"
    return gateway("llm_replica_state", loading, replica="phi", state="loading") | gateway(
        "llm_replica_state", failed, replica="phi", state="failed"
    )


def requests(good: str, failed: str = "", refused: str = "") -> Series:
    def of(code: str, values: str) -> Series:
        outcome = "success" if code == "200" else "error"
        labels = {"endpoint": "chat_completions", "status": outcome, "code": code}
        return gateway("llm_requests_total", values, **labels) if values else {}

    return of("200", good) | of("503", failed) | of("404", refused)


def histogram(metric: str, buckets: dict[str, str], total: str = "", count: str = "") -> Series:
    found: Series = {}
    for edge, values in buckets.items():
        found |= gateway(f"{metric}_bucket", values, le=edge)
    found |= gateway(f"{metric}_sum", total) if total else {}
    return found | (gateway(f"{metric}_count", count) if count else {})


def mean(total: str, tokens: str = "0x40", count: str = "0+100x40") -> Series:
    """A hundred requests at each step, which take so many seconds together and answer with so many tokens."""
    return (
        histogram("llm_request_duration_seconds", {}, total, count)
        | requests("0+100x40", refused="0+100x40")
        | gateway("llm_tokens_processed_total", tokens, type="completion")
        | gateway("llm_tokens_processed_total", "0+90000x40", type="prompt")
    )


def p95(within: int, tokens: str = "0x40") -> Series:
    """So many of a hundred requests within the objective, the others in two seconds."""
    edges = {"0.5": "0x40", "0.75": f"0+{within}x40", "1.0": f"0+{within}x40", "2.0": "0+100x40", "+Inf": "0+100x40"}
    return histogram("llm_request_duration_seconds", edges) | mean("0+150x40", tokens)


def load(active: str, waiting: str, capacity: str) -> Series:
    return (
        gateway("llm_active_requests", active)
        | gateway("llm_queue_depth", waiting)
        | gateway("llm_model_capacity", capacity)
    )


def cpu(idle: str) -> Series:
    return host("node_cpu_seconds_total", idle, cpu="0", mode="idle") | host(
        "node_cpu_seconds_total", "0+1x40", cpu="0", mode="user"
    )


def memory(available: str) -> Series:
    return host("node_memory_MemAvailable_bytes", available) | host("node_memory_MemTotal_bytes", "1000x100")


def disk(free: str, mountpoint: str = "/opt/models", fstype: str = "ext4") -> Series:
    labels = {"device": "/dev/vdb", "mountpoint": mountpoint, "fstype": fstype}
    return host("node_filesystem_avail_bytes", free, **labels) | host(
        "node_filesystem_size_bytes", "1000x100", **labels
    )


def stalled(computed: str, running: str, active: str) -> Series:
    return (
        vllm("vllm:iteration_tokens_total_count", computed)
        | vllm("vllm:num_requests_running", running)
        | gateway("llm_active_requests", active)
    )


def cache(usage: str, preempted: str) -> Series:
    return vllm("vllm:kv_cache_usage_perc", usage) | vllm("vllm:num_preemptions_total", preempted)


def released(failed: str, activated: str) -> Series:
    found = host("citadel_release_failed_timestamp_seconds", failed) if failed else {}
    return found | (host("citadel_release_activated_timestamp_seconds", activated) if activated else {})


def taken(used: str, plan: str) -> Series:
    return (
        unit("citadel_unit_memory_bytes", used)
        | host("citadel_unit_memory_bytes", "9e12x60", model="", unit="citadel-gateway.service")
        | host("citadel_plan_memory_bytes", plan, model="phi", replica="phi")
    )


def hits(found: str, missed: str) -> Series:
    cached = gateway("llm_cache_hits_total", found) | gateway("llm_cache_misses_total", missed)
    return cached | requests("0+9000x100")


def shared(limits: str) -> Series:
    return series("llm_redis_up", limits, "gateway", use="limits")


def value(score: str, threshold: str) -> Series:
    return gateway("llm_business_value_score", score) | gateway("llm_business_value_threshold", threshold)


CASES = {
    "LLMServiceDown": Cases(
        "10m",
        [
            # stopped, and the gateway believes that it comes back
            (up("models", "0x40") | state("0x40", inactive="1x40") | replica_state("1x40"), OF_REPLICA),
            (up("models", "0x40") | state("1x40") | replica_state("0x40"), OF_REPLICA),
            # the exporter of its figures still answers
            (up("models", "1x40") | state("0x40", inactive="1x40"), OF_REPLICA),
        ],
        [up("models", "1x18 0x20") | state("1x40"), up("models", "1x40") | state("1x18 0x20", inactive="0x18 1x20")],
        [
            up("models", "0x40") | state("1x40") | replica_state("1x40"),
            up("models", "0x40") | state("0x40", activating="1x40") | replica_state("1x40"),
            up("models", "1x40") | state("1x40"),
        ],
    ),
    "ModelNotReady": Cases(
        "30m",
        [(gateway("llm_model_health", "0x80"), OF_MODEL)],
        [gateway("llm_model_health", "1x24 0x80")],
        [gateway("llm_model_health", "1x80")],
    ),
    "service_down": Cases(
        "10m",
        [
            (up("gateway", "0x40"), AT),
            (up("gateway", "1x40") | gateway("llm_model_health", "0x40"), AT),
            (gateway("llm_model_health", "0x40") | state("0x40") | replica_state("1x40"), AT),
        ],
        [up("gateway", "1x19 0x20")],
        [
            gateway("llm_model_health", "0x40") | state("1x40") | replica_state("1x40"),
            up("gateway", "1x40") | gateway("llm_model_health", "1x40"),
        ],
    ),
    "GatewayDown": Cases(
        "10m",
        [(up("gateway", "0x40") | up("server", "1x40"), AT)],
        [up("gateway", "1x18 0x20") | up("server", "1x40")],
        [up("gateway", "0x40") | up("server", "0x40"), up("gateway", "1x40") | up("server", "1x40")],
    ),
    "HostDown": Cases(
        "10m",
        [(up("gateway", "0x40") | up("server", "0x40"), AT)],
        [up("gateway", "1x18 0x20") | up("server", "0x40")],
        [up("gateway", "0x40") | up("server", "1x40")],
    ),
    "HostFiguresMissing": Cases(
        "10m",
        [(up("server", "0x40") | up("gateway", "1x40"), AT)],
        [up("server", "1x17 0x20") | up("gateway", "1x40")],
        [up("server", "0x40") | up("gateway", "0x40"), up("server", "1x40") | up("gateway", "1x40")],
    ),
    "TargetVanished": Cases(
        "10m",
        [
            (every_target("phi"), {**OF_REPLICA, "job": "citadel-llm-models"}),
            (every_target("gateway"), {**AT, "job": "citadel-llm-gateway"}),
            (every_target("tiny"), {"citadel_host": "llm-02", **TINY, "job": "citadel-llm-models"}),
        ],
        [every_target("phi") | up("models", "1x12 stale")],
        [every_target("") | up("models", "0x40")],
        alone=True,
    ),
    "EngineStalled": Cases(
        "10m",
        [(stalled("100x40", "2x40", "0x40"), OF_REPLICA), (stalled("100x40", "0x40", "3x40"), OF_MODEL)],
        [stalled("0+10x16 160x40", "2x40", "2x40")],
        [stalled("100x40", "0x40", "0x40"), stalled("0+10x40", "2x40", "2x40")],
    ),
    "UnitGaveUp": Cases(
        "10m",
        [(unit("citadel_unit_gave_up", "1x40"), OF_UNIT)],
        [unit("citadel_unit_gave_up", "1x18 0x20")],
        [unit("citadel_unit_gave_up", "0x40")],
    ),
    "UnitRestarts": Cases(
        "10m",
        [(unit("citadel_unit_restarts_total", "0x10 1x2 2x2 3x9"), OF_UNIT)],
        [unit("citadel_unit_restarts_total", "0x10 1x2 2x9")],
        [unit("citadel_unit_restarts_total", "7x40")],
    ),
    "high_error_rate": Cases(
        "10m",
        [(requests("0+88x40", "0+12x40"), OF_MODEL)],
        [requests("0+91x40", "0+9x40"), requests("0x40", "0+0.2x40")],
        [requests("0+50x40", refused="0+50x40"), requests("0+50x40", "0x40")],
    ),
    "ErrorRate": Cases(
        "15m",
        [(requests("0+93x40", "0+7x40"), OF_MODEL)],
        [requests("0+96x40", "0+4x40"), requests("0x40", "0+0.2x40"), requests("0+93x40", "0x24 0+90x16")],
        [requests("0+50x40", refused="0+50x40")],
    ),
    "ErrorBudgetBurnsFast": Cases(
        "70m",
        [(requests("0+80x80", "0+20x80"), OF_MODEL)],
        [
            requests("0+87x80", "0+13x80"),
            requests("0+60x80", "0+40x55 2200+1x25"),  # it is over
            requests("0+80x80", "0x65 0+40x15", refused="0+50x80"),  # it has just begun
            requests("0x80", "0+0.2x80"),
        ],
        [requests("0+50x80", refused="0+50x80")],
        step="1m",
    ),
    "ErrorBudgetBurnsSlowly": Cases(
        "7h",
        [(requests("0+93x90", "0+7x90"), OF_MODEL)],
        [
            requests("0+95x90", "0+5x90"),
            requests("0+60x90", "0+40x70 2800+1x20"),
            requests("0+80x90", "0x78 0+40x12", refused="0+50x90"),
            requests("0x90", "0+0.2x90"),
        ],
        [requests("0+50x90", refused="0+50x90")],
        step="5m",
    ),
    "ErrorBudgetSpent": Cases(
        "75h",
        [(requests("0+98x90", "0+2x90"), OF_MODEL)],
        [requests("0+995x90", "0+5x90"), requests("0+1x90", "0+1x90")],
        [requests("0+50x90", refused="0+50x90")],
        step="1h",
    ),
    "LLM_Business_Impact_Critical": Cases(
        "10m",
        [(requests("0+80x40", "0+20x40") | value("1x40", "4x40"), OF_MODEL)],
        [
            requests("0+80x40", "0+20x40") | value("2.1x40", "4x40"),
            requests("0+91x40", "0+9x40") | value("1x40", "4x40"),
        ],
        [requests("0+80x40", "0+20x40")],
    ),
    "HighLatency": Cases("10m", [(p95(90), OF_MODEL)], [p95(96)], [p95(90, "0+2000x40")]),
    "LLMHighLatency": Cases("10m", [(mean("0+52x40"), OF_MODEL)], [mean("0+48x40")], [mean("0+100x40", "0+2000x40")]),
    "high_latency": Cases("10m", [(mean("0+510x40"), OF_MODEL)], [mean("0+490x40")], [mean("0+600x40", "0+4000x40")]),
    "FirstTokenSlow": Cases(
        "15m",
        [
            (
                histogram(
                    "llm_time_to_first_token_seconds", {"0.25": "0+40x40", "0.5": "0+100x40", "+Inf": "0+100x40"}
                ),
                OF_MODEL,
            )
        ],
        [histogram("llm_time_to_first_token_seconds", {"0.25": "0+51x40", "0.5": "0+100x40", "+Inf": "0+100x40"})],
        [histogram("llm_time_to_first_token_seconds", {"0.25": "0+100x40", "0.5": "0+100x40", "+Inf": "0+100x40"})],
    ),
    "TokensSlow": Cases(
        "15m",
        [
            (
                vllm("vllm:inter_token_latency_seconds_sum", "0+16x40")
                | vllm("vllm:inter_token_latency_seconds_count", "0+100x40"),
                OF_MODEL,
            )
        ],
        [
            vllm("vllm:inter_token_latency_seconds_sum", "0+14x40")
            | vllm("vllm:inter_token_latency_seconds_count", "0+100x40")
        ],
        [vllm("vllm:inter_token_latency_seconds_sum", "0x40") | vllm("vllm:inter_token_latency_seconds_count", "0x40")],
    ),
    "SlowerThanBaseline": Cases(
        "180h",
        [(mean("0+100x510 51000+160x40", count="0+100x560"), OF_MODEL)],
        [mean("0+100x510 51000+140x40", count="0+100x560")],
        [mean("0+100x560", count="0+100x560"), mean("0+160x100", count="0+100x100")],
        step="20m",
    ),
    "LLM_Anomaly_Response_Time": Cases(
        "620m",
        [(mean("0+100x305 30500+500x20", count="0+100x400"), OF_MODEL)],
        [
            mean("0+100x100 10000+300x100 40000+100x105 50500+400x20", count="0+100x400"),
            mean("_x200 0+100x105 10500+500x20", count="_x200 0+100x200"),  # too few to know what is usual
        ],
        [mean("0+100x400", count="0+100x400")],
        step="2m",
    ),
    "LowThroughput": Cases("15m", [(requests("0+28x40"), OF_MODEL)], [requests("0+31x40")], [requests("0+300x40"), {}]),
    "LongQueue": Cases(
        "10m",
        [(gateway("llm_queue_depth", "51x40"), OF_MODEL)],
        [gateway("llm_queue_depth", "50x40"), gateway("llm_queue_depth", "0x17 80x20")],
        [gateway("llm_queue_depth", "0x40")],
    ),
    "ModelSaturated": Cases(
        "10m",
        [(load("15x40", "4x40", "20x40"), OF_MODEL)],
        [load("15x40", "3x40", "20x40")],
        [load("0x40", "5x40", "0x40")],
    ),
    "KVCacheFull": Cases(
        "10m",
        [(cache("0.92x40", "0+1x40"), OF_REPLICA)],
        [cache("0.92x40", "9x40"), cache("0.89x40", "0+1x40")],
        [cache("0.1x40", "0x40")],
    ),
    "cache_miss_rate": Cases(
        "40m",
        [(hits("0+19x100", "0+81x100"), AT), (hits("0x100", "0+10x100"), AT)],
        [hits("0+21x100", "0+79x100")],
        [hits("0x100", "0x100"), hits("0x100", "0+0.2x100")],
    ),
    "LimitsNotShared": Cases(
        "10m",
        [(shared("0x40"), AT)],
        [shared("1x17 0x20"), shared("0x18 1x20")],
        [shared("1x40") | series("llm_redis_up", "0x40", "gateway", use="answers"), up("gateway", "1x40")],
    ),
    "LLM_Predictive_High_Load": Cases(
        "40m",
        [(load("0+0.15x100", "0x100", "20x100"), OF_MODEL)],
        [load("0+0.1x100", "0x100", "20x100")],
        [load("10x100", "0x100", "20x100")],
    ),
    "ScaleUp": Cases(
        "15m",
        [
            (cpu("0+8.7x40"), {**AT, "reason": "processor"}),
            (gateway("llm_queue_depth", "51x40"), {**OF_MODEL, "reason": "queue"}),
            (p95(90), {**OF_MODEL, "reason": "latency"}),
        ],
        [cpu("0+9.3x40"), gateway("llm_queue_depth", "50x40"), p95(96)],
        [p95(90, "0+2000x40")],
    ),
    "ScaleDown": Cases(
        "25m",
        [(cpu("0+21.3x60") | memory("510x60"), AT)],
        [cpu("0+20.7x60") | memory("510x60"), cpu("0+21.3x60") | memory("490x60")],
        [cpu("0+3x60") | memory("100x60")],
    ),
    "LLM_Capacity_Planning_CPU": Cases(
        "80m",
        [({'citadel:cpu:ratio5m{citadel_host="llm-01"}': "0.1+0.0006x100"}, AT)],
        [{'citadel:cpu:ratio5m{citadel_host="llm-01"}': "0.1+0.0004x100"}],
        [
            {'citadel:cpu:ratio5m{citadel_host="llm-01"}': "0.7x100"},
            {'citadel:cpu:ratio5m{citadel_host="llm-01"}': "_x55 0.1+0.01x40"},
        ],
        step="1m",
    ),
    "LLM_Capacity_Planning_Memory": Cases(
        "80m",
        [(memory("900-0.6x100"), AT)],
        [memory("900-0.4x100"), memory("90x100")],
        [memory("500x100"), memory("_x55 900-5x40")],
        step="1m",
    ),
    "HighMemoryUsage": Cases(
        "10m",
        [(taken("1.1e11x40", "2e11x40") | memory("90x40"), AT)],
        [taken("1.1e11x40", "2e11x40") | memory("110x40"), taken("1.07e11x40", "2e11x40") | memory("90x40")],
        [taken("1e9x40", "2e9x40") | memory("90x40")],
    ),
    "LLMHighMemoryUsage": Cases(
        "10m",
        [(taken("5.5e10x40", "5.4e10x40"), OF_MODEL)],
        [taken("5.5e10x40", "5.6e10x40"), taken("5.3e10x40", "1e10x40")],
        [taken("1e9x40", "2e9x40")],
    ),
    "PlanMemoryExceeded": Cases(
        "20m", [(taken("1.06e9x60", "1e9x60"), OF_MODEL)], [taken("1.04e9x60", "1e9x60")], [taken("1x60", "1e9x60")]
    ),
    "memory_exhaustion": Cases("10m", [(memory("49x40"), AT)], [memory("51x40")], [memory("500x40")]),
    "OutOfMemoryKill": Cases(
        "30m",
        [(unit("citadel_unit_oom_kills_total", "0x50 1x20"), OF_UNIT)],
        [unit("citadel_unit_oom_kills_total", "0x30 1x40")],
        [unit("citadel_unit_oom_kills_total", "4x80")],
    ),
    "DiskLow": Cases(
        "10m",
        [(disk("99x40"), {**AT, "mountpoint": "/opt/models"})],
        [disk("101x40")],
        [disk("0x40", "/snap/core", "squashfs"), disk("0x40", "/run/lock", "tmpfs")],
    ),
    "DiskFull": Cases(
        "10m",
        [(disk("49x40"), {**AT, "mountpoint": "/opt/models"})],
        [disk("51x40")],
        [disk("0x40", "/snap/core", "squashfs"), disk("0x40", "/run/lock", "tmpfs")],
    ),
    "LLM_Predictive_Disk_Full": Cases(
        "8h",
        [(disk("600-4x60"), {**AT, "mountpoint": "/opt/models"})],
        [disk("450-2x60"), disk("900-7x60")],
        [disk("300x60"), disk("_x40 400-20x20")],
        step="10m",
    ),
    "CertificateExpires": Cases(
        "2h",
        [
            (
                host("citadel_certificate_expires_timestamp_seconds", "1208160x20", path="/c.pem"),
                {**AT, "path": "/c.pem"},
            )
        ],
        [host("citadel_certificate_expires_timestamp_seconds", "1225440x20", path="/c.pem")],
        [host("citadel_certificate_expires_timestamp_seconds", "7783200x20", path="/c.pem")],
        step="10m",
    ),
    "CertificateExpiresSoon": Cases(
        "10m",
        [(host("citadel_certificate_expires_timestamp_seconds", "251160x40", path="/c.pem"), {**AT, "path": "/c.pem"})],
        [host("citadel_certificate_expires_timestamp_seconds", "268440x40", path="/c.pem")],
        [host("citadel_certificate_expires_timestamp_seconds", "7783200x40", path="/c.pem")],
    ),
    "BackupOld": Cases(
        "3h",
        [(host("citadel_backup_timestamp_seconds", "-700000x20"), AT)],
        [host("citadel_backup_timestamp_seconds", "-660000x20")],
        [host("citadel_backup_timestamp_seconds", "0x20"), up("server", "1x20")],
        step="10m",
    ),
    "SpoolOld": Cases(
        "10m",
        [(host("citadel_spool_oldest_timestamp_seconds", "-700x40"), AT)],
        [host("citadel_spool_oldest_timestamp_seconds", "-290x40")],
        [up("server", "1x40")],
    ),
    "ReleaseFailed": Cases(
        "10m",
        [(released("500x40", "100x40"), AT), (released("500x40", ""), AT)],
        [released("500x40", "501x40")],
        [released("", "100x40")],
    ),
    "Drift": Cases(
        "40m",
        [(host("citadel_drift_items", "1x100", owner="tuning"), {**AT, "owner": "tuning"})],
        [host("citadel_drift_items", "0x40 1x60", owner="tuning")],
        [host("citadel_drift_items", "0x100", owner="tuning")],
    ),
    "FiguresStale": Cases(
        "10m",
        [(host("citadel_metrics_written_timestamp_seconds", "150x40"), AT), (up("server", "1x40"), AT)],
        [host("citadel_metrics_written_timestamp_seconds", "310x40") | up("server", "1x40")],
        [up("server", "0x40")],
    ),
}
