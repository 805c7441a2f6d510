"""What Prometheus records of this product and what it alerts on, as data; `rules.py` makes the file of it.

In the expressions GATEWAY, MODELS and HOST stand for the jobs of the contract, THRESHOLD for the figure of the alert,
REQUESTS for the fewest requests that a share means anything of, BUDGET for the share of requests that may fail. Every
duration is shortened by the scale of the settings; names of recorded series keep theirs.

Documents name some alerts with blanks ("LLM High Latency"), which are left out here: LLMHighLatency. Groups and names
are theirs otherwise, since dashboards look for `LLM_Predictive_.*`.
"""

from __future__ import annotations

from dataclasses import dataclass

# The histograms' edges in the gateway. A share of requests is only known at an edge: objectives are rounded up to one.
LATENCY_EDGES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FIRST_TOKEN_EDGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)

SERVERS, PREDICTIVE, PLANNING = "llm_server_alerts", "llm_predictive_alerts", "llm_capacity_planning"
SEVERITIES = ("critical", "warning", "info")
MINUTE, HOUR = 60.0, 3600.0
GIB = 2**30

OVERVIEW, MODEL, HOST = "llm-server-overview", "model-performance", "resource-utilization"

_SUCCESS = ', status="success"'
_EACH = "by (citadel_host, model)"
_REPLICA = "by (citadel_host, model, replica)"
# caches in memory may be as full as a disk; what the system keeps for itself is not ours to watch
_DISKS = '{HOST, fstype!~"squashfs|iso9660|ramfs", mountpoint!~"/(run|dev|proc|sys|boot)($|/.*)"}'


def _requests(window: str, more: str = "") -> str:
    return f"sum {_EACH} (rate(llm_requests_total{{GATEWAY{more}}}[{window}]))"


def _errors(window: str) -> str:
    """What the server could not do; what a client did wrong (4xx) burns nobody's budget."""
    failed, every = _requests(window, ', code=~"5.."'), _requests(window)
    return f"{failed}\n  / ({every} > 0)"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, sum by (citadel_host, model, le) (rate({metric}_bucket{{GATEWAY}}[5m])))"


def _mean(metric: str, window: str, job: str = "GATEWAY") -> str:
    """No figure where nothing was counted: 0/0 would make every average of it meaningless."""
    total, count = (f"sum {_EACH} (rate({metric}_{part}{{{job}}}[{window}]))" for part in ("sum", "count"))
    return f"{total}\n  / ({count} > 0)"


RECORDED = {
    "citadel:requests:rate5m": _requests("5m"),
    **{f"citadel:request_errors:ratio_rate{window}": _errors(window) for window in ("5m", "30m", "1h", "6h", "3d")},
    "citadel:request_latency:p95_5m": _quantile(0.95, "llm_request_duration_seconds"),
    "citadel:request_latency:mean5m": _mean("llm_request_duration_seconds", "5m"),
    "citadel:request_latency:mean1h": _mean("llm_request_duration_seconds", "1h"),
    "citadel:first_token:p50_5m": _quantile(0.5, "llm_time_to_first_token_seconds"),
    "citadel:token_time:mean5m": _mean("vllm:inter_token_latency_seconds", "5m", "MODELS"),
    # What the tokens of an answer explain: the objectives of a whole answer hold for a handful of them.
    "citadel:expected_latency:mean5m": (
        "citadel:objective_first_token:seconds + citadel:objective_per_token:seconds\n"
        f'  * sum {_EACH} (rate(llm_tokens_processed_total{{GATEWAY, type="completion"}}[5m]))\n'
        f"  / ({_requests('5m', _SUCCESS)} > 0)"
    ),
    "citadel:load:ratio": (
        f"(sum {_EACH} (llm_active_requests{{GATEWAY}}) + sum {_EACH} (llm_queue_depth{{GATEWAY}}))\n"
        f"  / (sum {_EACH} (llm_model_capacity{{GATEWAY}}) > 0)"
    ),
    "citadel:cpu:ratio5m": '1 - avg by (citadel_host) (rate(node_cpu_seconds_total{HOST, mode="idle"}[5m]))',
    "citadel:memory:ratio": (
        "1 - sum by (citadel_host) (node_memory_MemAvailable_bytes{HOST})\n"
        "  / sum by (citadel_host) (node_memory_MemTotal_bytes{HOST})"
    ),
    "citadel:disk_free:ratio": (
        f"min by (citadel_host, mountpoint) (\n"
        f"  node_filesystem_avail_bytes{_DISKS} / node_filesystem_size_bytes{{HOST}})"
    ),
    "citadel:unit_memory:bytes": f'sum {_EACH} (citadel_unit_memory_bytes{{HOST, model!=""}})',
    # 1 while systemd has the unit of an instance up or on its way up, 0 when it was stopped or has failed
    "citadel:unit_runs:state": (
        f"max {_REPLICA} (label_replace(\n"
        '  citadel_unit_state{HOST, model!="", state=~"active|activating"},\n'
        '  "replica", "$1", "unit", "citadel-llm@(.+)[.]service"))'
    ),
    # The gateway alone would call a stopped model loading for minutes, since it may come back; systemd knows better.
    "citadel:replica_loads:state": (
        f'max {_REPLICA} (llm_replica_state{{GATEWAY, state="loading"}}) == 1\n  and citadel:unit_runs:state == 1'
    ),
}


@dataclass(frozen=True)
class Alert:
    name: str
    group: str
    severity: str
    category: str
    expression: str
    summary: str
    description: str
    dashboard: str
    held: float = 0  # seconds that it has to hold
    threshold: float | None = None
    off: bool = False


_SUBJECT = "{{ $labels.model }} on {{ $labels.citadel_host }}"
_HOST = "{{ $labels.citadel_host }}"
_SECONDS, _SHARE, _BYTES = (
    f"{{{{ $value | {form} }}}}" for form in ("humanizeDuration", "humanizePercentage", "humanize1024")
)
# A long answer is no slow one: nothing is told as long as the mean is what its tokens explain.
_UNEXPLAINED = "\n  unless citadel:request_latency:mean5m <= citadel:expected_latency:mean5m"


def _burn(times: str, long: str, short: str) -> str:
    """Twice, so that it is neither a moment nor long over."""
    return (
        f"citadel:request_errors:ratio_rate{long} > {times} * BUDGET\n"
        f"  and citadel:request_errors:ratio_rate{short} > {times} * BUDGET\n"
        f"  and {_enough(long)}"
    )


def _enough(window: str, times: str = "") -> str:
    return f"sum {_EACH} (increase(llm_requests_total{{GATEWAY}}[{window}])) >= {times}REQUESTS"


def _cached(what: str) -> str:
    return f"sum by (citadel_host) (increase(llm_cache_{what}_total{{GATEWAY}}[15m]))"


def _days_left() -> str:
    expires = "min by (citadel_host, path) (citadel_certificate_expires_timestamp_seconds{HOST})"
    return f"({expires} - time()) / 86400 < THRESHOLD"


def _advised(reason: str, expression: str) -> str:
    return f'label_replace({expression}, "reason", "{reason}", "", "")'


ALERTS = (
    # of serving
    Alert(
        "LLMServiceDown",
        SERVERS,
        "critical",
        "availability",
        f"max {_REPLICA} (up{{MODELS}}) == 0 unless citadel:replica_loads:state\n  or citadel:unit_runs:state == 0",
        f"{_SUBJECT} does not serve ({{{{ $labels.replica }}}})",
        "Its unit is stopped or has failed, or it runs and does not answer. One that loads is not meant.",
        MODEL,
        MINUTE,
    ),
    Alert(
        "ModelNotReady",
        SERVERS,
        "warning",
        "availability",
        f"max {_EACH} (llm_model_health{{GATEWAY}}) == 0",
        f"No replica of {_SUBJECT} has been ready for 20 minutes",
        "It may still load, which nothing else is told of; no model takes that long.",
        MODEL,
        20 * MINUTE,
    ),
    Alert(
        "service_down",
        SERVERS,
        "critical",
        "availability",
        "(max by (citadel_host) (up{GATEWAY}) == 0 or max by (citadel_host) (llm_model_health{GATEWAY}) == 0)\n"
        "  unless on (citadel_host) citadel:replica_loads:state",
        f"{_HOST} serves nobody",
        "Its gateway does not answer, or none of its models is ready, and none loads.",
        OVERVIEW,
        30,  # not at once: one scrape that got lost is no outage
    ),
    Alert(
        "GatewayDown",
        SERVERS,
        "critical",
        "availability",
        "max by (citadel_host) (up{GATEWAY}) == 0\n  unless on (citadel_host) max by (citadel_host) (up{HOST}) == 0",
        f"The gateway of {_HOST} does not answer, and the host does",
        "Clients get no connection, or an answer of nobody.",
        OVERVIEW,
        MINUTE,
    ),
    Alert(
        "HostDown",
        SERVERS,
        "critical",
        "availability",
        'max by (citadel_host) (up{job=~"citadel-llm-gateway|citadel-llm-server"}) == 0',
        f"{_HOST} answers nothing",
        "Neither its gateway nor its node exporter can be reached.",
        OVERVIEW,
        MINUTE,
    ),
    Alert(
        "HostFiguresMissing",
        SERVERS,
        "warning",
        "monitoring",
        "max by (citadel_host) (up{HOST}) == 0\n  unless on (citadel_host) max by (citadel_host) (up{GATEWAY}) == 0",
        f"The node exporter of {_HOST} does not answer",
        "Nobody sees its memory, disks, units, certificates and releases meanwhile.",
        HOST,
        2 * MINUTE,
    ),
    Alert(
        "TargetVanished",
        SERVERS,
        "warning",
        "monitoring",
        "citadel:target:expected unless on (job, citadel_host, replica) up",
        f"Prometheus does not ask for {{{{ $labels.job }}}} of {_HOST} {{{{ $labels.replica }}}}",
        "The contract of the server names it, and no file of targets does. What is not asked for is never down.",
        OVERVIEW,
        5 * MINUTE,
    ),
    Alert(
        "EngineStalled",
        SERVERS,
        "critical",
        "availability",
        f"sum {_REPLICA} (rate(vllm:iteration_tokens_total_count{{MODELS}}[1m])) == 0\n"
        f"  and sum {_REPLICA} (vllm:num_requests_running{{MODELS}}) > 0\n"
        f"or on (citadel_host, model)\n"
        f"sum {_EACH} (rate(vllm:iteration_tokens_total_count{{MODELS}}[1m])) == 0\n"
        f"  and sum {_EACH} (llm_active_requests{{GATEWAY}}) > 0",
        f"{_SUBJECT} has requests and computes nothing",
        "The engine stands still, while /health of its server may go on saying 200.",
        MODEL,
        2 * MINUTE,
    ),
    Alert(
        "UnitGaveUp",
        SERVERS,
        "critical",
        "availability",
        "max by (citadel_host, model, unit) (citadel_unit_gave_up{HOST}) == 1",
        f"systemd gave up on {{{{ $labels.unit }}}} of {_HOST}",
        "It was started too often in ten minutes. A timer tries a model again after five.",
        MODEL,
    ),
    Alert(
        "UnitRestarts",
        SERVERS,
        "warning",
        "availability",
        "sum by (citadel_host, model, unit) (increase(citadel_unit_restarts_total{HOST}[15m])) >= THRESHOLD",
        f"{{{{ $labels.unit }}}} of {_HOST} restarted {{{{ $value | humanize }}}} times in 15 minutes",
        "Something ends it again and again.",
        MODEL,
        0,
        3,
    ),
    # of errors
    Alert(
        "high_error_rate",
        SERVERS,
        "critical",
        "errors",
        f"citadel:request_errors:ratio_rate5m > THRESHOLD\n  and {_enough('5m')}",
        f"{_SHARE} of the requests to {_SUBJECT} fail",
        "Counted are answers of 500 and above: what the server could not do, not what a client did wrong.",
        MODEL,
        0,
        0.1,
    ),
    Alert(
        "ErrorRate",
        SERVERS,
        "warning",
        "errors",
        f"citadel:request_errors:ratio_rate5m > THRESHOLD\n  and {_enough('5m')}",
        f"{_SHARE} of the requests to {_SUBJECT} fail",
        "Counted are answers of 500 and above.",
        MODEL,
        5 * MINUTE,
        0.05,
    ),
    Alert(
        "ErrorBudgetBurnsFast",
        SERVERS,
        "critical",
        "objective",
        _burn("14.4", "1h", "5m"),
        f"{_SUBJECT}: {_SHARE} of the last hour's requests failed",
        "At this rate the errors allowed for 30 days are used up within two.",
        MODEL,
        MINUTE,
    ),
    Alert(
        "ErrorBudgetBurnsSlowly",
        SERVERS,
        "warning",
        "objective",
        _burn("6", "6h", "30m"),
        f"{_SUBJECT}: {_SHARE} of the last six hours' requests failed",
        "At this rate the errors allowed for 30 days are used up within five.",
        MODEL,
        5 * MINUTE,
    ),
    Alert(
        "ErrorBudgetSpent",
        SERVERS,
        "warning",
        "objective",
        f"citadel:request_errors:ratio_rate3d > BUDGET\n  and {_enough('3d', '10 * ')}",
        f"{_SUBJECT}: {_SHARE} of the requests of three days failed, which is more than the objective allows",
        "No rate alerts on its own, but the objective is missed.",
        MODEL,
        HOUR,
    ),
    Alert(
        "LLM_Business_Impact_Critical",
        SERVERS,
        "critical",
        "business_impact",
        "citadel:request_errors:ratio_rate5m > THRESHOLD\n"
        f"  and sum {_EACH} (llm_business_value_score{{GATEWAY}})\n"
        f"    < 0.5 * sum {_EACH} (llm_business_value_threshold{{GATEWAY}})",
        f"{_SUBJECT}: {_SHARE} of the requests fail, and its value is below half of the threshold",
        "Off until the gateway has figures of business value.",
        MODEL,
        MINUTE,
        0.1,
        off=True,
    ),
    # of time
    Alert(
        "HighLatency",
        SERVERS,
        "warning",
        "latency",
        f"citadel:request_latency:p95_5m > THRESHOLD * citadel:objective_p95:seconds{_UNEXPLAINED}",
        f"{_SUBJECT}: one request of 20 takes more than {_SECONDS}",
        "Above the model's objective, and the length of the answers does not explain it. The threshold is a factor.",
        MODEL,
        2 * MINUTE,
        1,
    ),
    Alert(
        "LLMHighLatency",
        SERVERS,
        "warning",
        "latency",
        f"citadel:request_latency:mean5m > THRESHOLD * citadel:objective_mean:seconds{_UNEXPLAINED}",
        f"{_SUBJECT}: a request takes {_SECONDS} on the average",
        "Above the model's objective, and the length of the answers does not explain it. The threshold is a factor.",
        MODEL,
        2 * MINUTE,
        1,
    ),
    Alert(
        "high_latency",
        SERVERS,
        "warning",
        "latency",
        f"citadel:request_latency:mean5m > THRESHOLD{_UNEXPLAINED}",
        f"{_SUBJECT}: a request takes {_SECONDS} on the average",
        "Whatever its objective is; the length of the answers does not explain it.",
        MODEL,
        5 * MINUTE,
        5,
    ),
    Alert(
        "FirstTokenSlow",
        SERVERS,
        "warning",
        "latency",
        "citadel:first_token:p50_5m > THRESHOLD * citadel:objective_first_token:seconds",
        f"{_SUBJECT}: half of the requests wait more than {_SECONDS} for the first token",
        "Above the model's objective: it waits in the queue, or long prompts are read.",
        MODEL,
        10 * MINUTE,
        1,
    ),
    Alert(
        "TokensSlow",
        SERVERS,
        "warning",
        "latency",
        "citadel:token_time:mean5m > THRESHOLD * citadel:objective_per_token:seconds",
        f"{_SUBJECT}: {_SECONDS} for each token",
        "Above the model's objective: more requests at once than its cores can carry, or others use them.",
        MODEL,
        10 * MINUTE,
        1,
    ),
    Alert(
        "SlowerThanBaseline",
        SERVERS,
        "warning",
        "anomaly_detection",
        "citadel:request_latency:mean1h > THRESHOLD * citadel:request_latency:mean1h offset 7d",
        f"{_SUBJECT}: a request takes {_SECONDS}, half as long again as a week ago at this hour",
        "Compared with the same hour of last week; a week after a change of clients this may be usual.",
        MODEL,
        10 * MINUTE,
        1.5,
    ),
    Alert(
        "LLM_Anomaly_Response_Time",
        PREDICTIVE,
        "warning",
        "anomaly_detection",
        "citadel:request_latency:mean5m\n"
        "  > avg_over_time(citadel:request_latency:mean5m[7d])\n"
        "    + THRESHOLD * stddev_over_time(citadel:request_latency:mean5m[7d])\n"
        "  and count_over_time(citadel:request_latency:mean5m[7d]) >= 240",
        f"{_SUBJECT}: a request takes {_SECONDS}, which is unusual for its last seven days",
        "More than so many standard deviations above the mean; silent until it has seen an hour of requests.",
        MODEL,
        2 * MINUTE,
        3,
    ),
    # of load
    Alert(
        "LowThroughput",
        SERVERS,
        "warning",
        "load",
        "citadel:requests:rate5m < THRESHOLD",
        f"{_SUBJECT}: {{{{ $value | humanize }}}} requests a second",
        "Off unless it is asked for: a server that nobody asks is no incident.",
        MODEL,
        5 * MINUTE,
        1,
        off=True,
    ),
    Alert(
        "LongQueue",
        SERVERS,
        "warning",
        "load",
        f"sum {_EACH} (llm_queue_depth{{GATEWAY}}) > THRESHOLD",
        f"{_SUBJECT}: {{{{ $value }}}} requests wait",
        "They wait in the gateway until a place is free or their deadline has come.",
        MODEL,
        2 * MINUTE,
        50,
    ),
    Alert(
        "ModelSaturated",
        SERVERS,
        "warning",
        "load",
        "citadel:load:ratio > THRESHOLD",
        f"{_SUBJECT}: {_SHARE} of its places are taken or waited for",
        "What comes next waits or gets a 503.",
        MODEL,
        5 * MINUTE,
        0.9,
    ),
    Alert(
        "KVCacheFull",
        SERVERS,
        "warning",
        "load",
        f"max {_REPLICA} (vllm:kv_cache_usage_perc{{MODELS}}) > THRESHOLD\n"
        f"  and sum {_REPLICA} (increase(vllm:num_preemptions_total{{MODELS}}[5m])) > 0",
        f"{_SUBJECT}: {_SHARE} of the room for keys and values is used, and requests are computed again",
        "A full cache alone is no harm; requests that are put back are.",
        MODEL,
        2 * MINUTE,
        0.9,
    ),
    Alert(
        "cache_miss_rate",
        SERVERS,
        "warning",
        "cache",
        f"{_cached('hits')} / ({_cached('hits')} + {_cached('misses')}) < THRESHOLD\n"
        f"  and {_cached('hits')} + {_cached('misses')} >= REQUESTS",
        f"{_HOST}: {_SHARE} of the answers that were looked for were in the cache",
        "Silent where there is no cache, or nobody asks for it.",
        OVERVIEW,
        15 * MINUTE,
        0.2,
    ),
    Alert(
        "LimitsNotShared",
        SERVERS,
        "warning",
        "limits",
        'min by (citadel_host) (llm_redis_up{GATEWAY, use="limits"}) == 0',
        f"{_HOST}: Redis does not answer, so its gateway counts limits by itself",
        "Clients may use their limits once at each gateway that counts alone; no request fails.",
        OVERVIEW,
        2 * MINUTE,
    ),
    Alert(
        "LLM_Predictive_High_Load",
        PREDICTIVE,
        "warning",
        "capacity_planning",
        # a line through fewer minutes than that says what a start looks like
        "predict_linear(citadel:load:ratio[30m], 30m) > THRESHOLD\n  and citadel:load:ratio offset 27m",
        f"{_SUBJECT}: in half an hour {_SHARE} of its places are taken, if it goes on like this",
        "A straight line through the last half hour.",
        MODEL,
        5 * MINUTE,
        0.8,
    ),
    Alert(
        "ScaleUp",
        PLANNING,
        "info",
        "scaling",
        _advised("processor", "citadel:cpu:ratio5m > THRESHOLD")
        + "\nor "
        + _advised("latency", "citadel:request_latency:p95_5m > 1.5 * citadel:objective_p95:seconds" + _UNEXPLAINED)
        + "\nor "
        + _advised("queue", f"sum {_EACH} (llm_queue_depth{{GATEWAY}}) > 50"),
        f"{_HOST} {{{{ $labels.model }}}} could use more ({{{{ $labels.reason }}}}: {{{{ $value | humanize }}}})",
        "Advice, nothing is done. Memory is no reason: the plan fills it on purpose.",
        HOST,
        5 * MINUTE,
        0.7,
    ),
    Alert(
        "ScaleDown",
        PLANNING,
        "info",
        "scaling",
        "citadel:cpu:ratio5m < THRESHOLD and citadel:memory:ratio < 0.5",
        f"{_HOST} uses {_SHARE} of its processors and less than half of its memory",
        "Off unless it is asked for: advice for estates that pay for what they do not use.",
        HOST,
        15 * MINUTE,
        0.3,
        off=True,
    ),
    Alert(
        "LLM_Capacity_Planning_CPU",
        PLANNING,
        "info",
        "capacity_planning",
        "predict_linear(citadel:cpu:ratio5m[1h], 24h) > THRESHOLD\n  and citadel:cpu:ratio5m offset 54m",
        f"{_HOST}: in a day {_SHARE} of its processors are used, if it goes on like this",
        "A straight line through the last hour.",
        HOST,
        10 * MINUTE,
        0.8,
    ),
    Alert(
        "LLM_Capacity_Planning_Memory",
        PLANNING,
        "info",
        "capacity_planning",
        "predict_linear(citadel:memory:ratio[1h], 24h) > THRESHOLD\n  and deriv(citadel:memory:ratio[1h]) > 0"
        "\n  and citadel:memory:ratio offset 54m",
        f"{_HOST}: in a day {_SHARE} of its memory is used, if it goes on like this",
        "A straight line through the last hour, and it rises: what models hold by plan is not told.",
        HOST,
        10 * MINUTE,
        0.85,
    ),
    # of memory and disks
    Alert(
        "HighMemoryUsage",
        SERVERS,
        "critical",
        "memory",
        "sum by (citadel_host) (citadel:unit_memory:bytes) > THRESHOLD\n"
        "  and on (citadel_host) citadel:memory:ratio > 0.9",
        f"The models of {_HOST} take {_BYTES}B, and less than a tenth of the memory is left",
        "Large models may take that much by plan, so it is told only where little is left.",
        HOST,
        MINUTE,
        100 * GIB,
    ),
    Alert(
        "LLMHighMemoryUsage",
        SERVERS,
        "warning",
        "memory",
        "citadel:unit_memory:bytes > THRESHOLD\n"
        f"  unless citadel:unit_memory:bytes <= sum {_EACH} (citadel_plan_memory_bytes{{HOST}})",
        f"{_SUBJECT} takes {_BYTES}B, more than was planned",
        "A large model that takes what was planned is not meant.",
        HOST,
        5 * MINUTE,
        50 * GIB,
    ),
    Alert(
        "PlanMemoryExceeded",
        SERVERS,
        "warning",
        "memory",
        f"citadel:unit_memory:bytes / sum {_EACH} (citadel_plan_memory_bytes{{HOST}}) > THRESHOLD",
        f"{_SUBJECT} takes {_SHARE} of the memory that was planned",
        "The kernel ends it at 110 %.",
        HOST,
        15 * MINUTE,
        1.05,
    ),
    Alert(
        "memory_exhaustion",
        SERVERS,
        "critical",
        "memory",
        "citadel:memory:ratio > THRESHOLD",
        f"{_HOST} has used {_SHARE} of its memory",
        "The kernel is about to end something.",
        HOST,
        0,
        0.95,
    ),
    Alert(
        "OutOfMemoryKill",
        SERVERS,
        "critical",
        "memory",
        "sum by (citadel_host, model, unit) (increase(citadel_unit_oom_kills_total{HOST}[10m])) > 0",
        f"The kernel ended {{{{ $labels.unit }}}} of {_HOST} for its memory",
        "It took more than its limit, or the host had none left.",
        HOST,
    ),
    Alert(
        "DiskLow",
        SERVERS,
        "warning",
        "disk",
        "citadel:disk_free:ratio < THRESHOLD",
        f"{_HOST}: {_SHARE} of {{{{ $labels.mountpoint }}}} is free",
        "A release or a model may not fit.",
        HOST,
        5 * MINUTE,
        0.1,
    ),
    Alert(
        "DiskFull",
        SERVERS,
        "critical",
        "disk",
        "citadel:disk_free:ratio < THRESHOLD",
        f"{_HOST}: {_SHARE} of {{{{ $labels.mountpoint }}}} is free",
        "Soon nothing can be written: no log, no release, no usage.",
        HOST,
        MINUTE,
        0.05,
    ),
    Alert(
        "LLM_Predictive_Disk_Full",
        PREDICTIVE,
        "warning",
        "disk",
        "predict_linear(citadel:disk_free:ratio[6h], 24h) <= 0\n  and citadel:disk_free:ratio < THRESHOLD"
        "\n  and citadel:disk_free:ratio offset 5h",
        f"{_HOST}: {{{{ $labels.mountpoint }}}} is full within a day, if it goes on like this",
        "A straight line through the last six hours, where less than half is left.",
        HOST,
        HOUR,
        0.5,
    ),
    # of upkeep
    Alert(
        "CertificateExpires",
        SERVERS,
        "warning",
        "upkeep",
        _days_left(),
        f"{_HOST}: {{{{ $labels.path }}}} is valid for {{{{ $value | humanize }}}} more days",
        "Whoever renews it has not done so.",
        OVERVIEW,
        HOUR,
        14,
    ),
    Alert(
        "CertificateExpiresSoon",
        SERVERS,
        "critical",
        "upkeep",
        _days_left(),
        f"{_HOST}: {{{{ $labels.path }}}} is valid for {{{{ $value | humanize }}}} more days",
        "After that no client trusts the gateway.",
        OVERVIEW,
        MINUTE,
        3,
    ),
    Alert(
        "BackupOld",
        SERVERS,
        "warning",
        "upkeep",
        "(time() - max by (citadel_host) (citadel_backup_timestamp_seconds{HOST})) / 86400 > THRESHOLD",
        f"{_HOST}: the last backup is {{{{ $value | humanize }}}} days old",
        "Silent until there has been one.",
        OVERVIEW,
        HOUR,
        8,
    ),
    Alert(
        "SpoolOld",
        SERVERS,
        "warning",
        "upkeep",
        "time() - min by (citadel_host) (citadel_spool_oldest_timestamp_seconds{HOST}) > THRESHOLD",
        f"{_HOST}: what was used {_SECONDS} ago is not in the database yet",
        "It waits in the spool, and nothing is lost until that is full.",
        OVERVIEW,
        5 * MINUTE,
        900,
    ),
    Alert(
        "ReleaseFailed",
        SERVERS,
        "warning",
        "upkeep",
        "time() - (\n"
        "  max by (citadel_host) (citadel_release_failed_timestamp_seconds{HOST})\n"
        "    > max by (citadel_host) (citadel_release_activated_timestamp_seconds{HOST})\n"
        "  or max by (citadel_host) (citadel_release_failed_timestamp_seconds{HOST})\n"
        "    unless max by (citadel_host) (citadel_release_activated_timestamp_seconds{HOST}))",
        f"{_HOST}: a release failed {_SECONDS} ago, and none was activated since",
        "The one before serves.",
        OVERVIEW,
    ),
    Alert(
        "Drift",
        SERVERS,
        "warning",
        "upkeep",
        "max by (citadel_host, owner) (citadel_drift_items{HOST}) > THRESHOLD",
        f"{_HOST}: {{{{ $value }}}} settings of {{{{ $labels.owner }}}} are not as they were declared",
        "Somebody changed them by hand, or another program did.",
        HOST,
        30 * MINUTE,
        0,
    ),
    Alert(
        "FiguresStale",
        SERVERS,
        "warning",
        "monitoring",
        "time() - max by (citadel_host) (citadel_metrics_written_timestamp_seconds{HOST}) > THRESHOLD\n"
        "or (max by (citadel_host) (up{HOST}) == 1\n"
        "  unless on (citadel_host) citadel_metrics_written_timestamp_seconds{HOST})",
        f"{_HOST}: the figures of units and releases are old, or there are none",
        "Alerts on units, memory of models, certificates and releases see nothing new.",
        HOST,
        2 * MINUTE,
        300,
    ),
)
