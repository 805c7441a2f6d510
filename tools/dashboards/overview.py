"""LLM Server Overview: is the service well, and if not, where."""

from __future__ import annotations

from tools.dashboards.board import AT, BREAKERS, NO, OF, RATE, YES, Board, Row, leads, p
from tools.dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SLOW,
    YELLOW,
    Ask,
    Column,
    alerts,
    lines,
    number,
    rows,
    shares,
)
from tools.dashboards.resources import CPU_USED, DISK_USED, MEMORY_USED


def overview() -> Board:
    answered = f"sum(rate(llm_requests_total{{{OF}}}{RATE}))"
    failed = f'sum(rate(llm_requests_total{{{OF}, code=~"5.."}}{RATE}))'
    now = Row(
        "Now",
        [
            number(
                "Models Ready",
                "Share of the models of which at least one replica answers. Less than all of them is an outage of a "
                "model for whoever asks for it by name.",
                "percentunit",
                Ask(f"avg(llm_model_health{{{OF}}})"),
                levels=[(0.5, ORANGE), (1, GREEN)],
                below=RED,
            ),
            number(
                "Requests",
                "Requests that got an answer, whichever it was, a second.",
                "reqps",
                Ask(answered),
                below=BLUE,
                decimals=2,
            ),
            number(
                "Tokens Generated",
                "Tokens that the models wrote, a second.",
                "suffix: tok/s",
                Ask(f'sum(rate(llm_tokens_processed_total{{{OF}, type="completion"}}{RATE}))'),
                below=BLUE,
                decimals=1,
            ),
            number(
                "Failures",
                "Share of the requests that were answered with 5xx. What a client did wrong (4xx) is not among them.",
                "percentunit",
                Ask(f"({failed} or vector(0))\n/ ({answered} > 0) or vector(0)"),
                levels=[(0.01, YELLOW), (0.05, RED)],
                decimals=2,
            ),
            number(
                "In Flight",
                "Requests that a model works on or that wait for one.",
                "short",
                Ask(f"sum(llm_active_requests{{{OF}}}) + sum(llm_queue_depth{{{OF}}})"),
                below=BLUE,
            ),
            number(
                "Alerts Firing",
                "Alerts of this product that fire now. The list is on Integration Health.",
                "short",
                Ask('count(ALERTS{citadel="llm", alertstate="firing"}) or vector(0)'),
                levels=[(1, RED)],
            ),
        ],
    )
    performance = Row(
        "Models",
        [
            leads(
                number(
                    "Model Performance Overview",
                    "The 95th percentile of the time that an answer took in the last five minutes, as a share of the "
                    "objective of its model: below 100 % it is kept. Click for the model's own dashboard.",
                    "percentunit",
                    Ask(
                        f"{p(0.95, 'llm_request_duration_seconds', 'citadel_host, model', OF, '[5m]')}\n"
                        "/ on (citadel_host, model) group_left () citadel:objective_p95:seconds",
                        "{{model}}",
                    ),
                    size=(16, 5),
                    levels=[(0.8, YELLOW), (1, RED)],
                    names=True,
                    empty="no requests",
                    decimals=0,
                ),
                "The model in detail",
                "model_performance",
                "model",
            ),
            alerts(
                "Predictive Alerts Status",
                "What the trend of the last half hour foretells: load beyond the capacity of a model, before it is "
                "there.",
                'citadel="llm", alertname=~"LLM_Predictive_.*"',
                size=(8, 5),
            ),
        ],
    )
    served = Row(
        "Service",
        [
            leads(
                lines(
                    "Request Latency",
                    "From the first byte of a request to the last of its answer, over all the models that are chosen; "
                    "half of the requests took no longer than p50, all but one in twenty no longer than p95.",
                    "s",
                    Ask(p(0.95, "llm_request_duration_seconds", "", OF), "p95"),
                    Ask(p(0.5, "llm_request_duration_seconds", "", OF), "p50"),
                    colors={"p95": ORANGE, "p50": BLUE},
                ),
                "By model",
                "model_performance",
            ),
            leads(
                lines(
                    "Throughput",
                    "Requests answered by each model, a second.",
                    "reqps",
                    Ask(f"sum by (model) (rate(llm_requests_total{{{OF}}}{RATE}))", "{{model}}"),
                    stacked=True,
                ),
                "The model in detail",
                "model_performance",
                "model",
            ),
            leads(
                lines(
                    "Memory Usage",
                    "What the servers of each model hold resident, weights and cache of keys and values included.",
                    "bytes",
                    Ask(f"sum by (model) (llm_model_memory_usage_bytes{{{OF}}})", "{{model}}"),
                    stacked=True,
                ),
                "The host in detail",
                "resource_utilization",
            ),
            lines(
                "Answers That Were No Success",
                "By status: 4xx is the client's mistake or a limit, 429 a limit, 503 no place or no model, "
                "504 too slow.",
                "reqps",
                Ask(f'sum by (code) (rate(llm_requests_total{{{OF}, status="error"}}{RATE}))', "{{code}}"),
                bars=True,
                stacked=True,
            ),
            lines(
                "Requests in Flight and Waiting",
                "What the models work on, and what the gateway holds back until one has room.",
                "short",
                Ask(f"sum(llm_active_requests{{{OF}}})", "in flight"),
                Ask(f"sum(llm_queue_depth{{{OF}}})", "waiting"),
                Ask(f"sum(llm_model_capacity{{{OF}}})", "capacity"),
                colors={"in flight": GREEN, "waiting": ORANGE, "capacity": GREY},
                dashed="capacity",
            ),
            leads(
                lines(
                    "Business Value Metrics",
                    "Tokens written for users by each model, an hour: what of the value of the service is measured so "
                    "far. "
                    "Satisfaction and value follow with the feedback of users.",
                    "short",
                    Ask(
                        f'sum by (model) (rate(llm_tokens_processed_total{{{OF}, type="completion"}}{RATE})) * 3600',
                        "{{model}}",
                    ),
                    stacked=True,
                ),
                "Business figures",
                "business_metrics",
            ),
        ],
    )
    ready = f'llm_replica_state{{{OF}, state="ready"}}'
    details = Row(
        "Replicas and cost",
        [
            rows(
                "Replicas",
                "Every server of a model as the gateway sees it. A breaker is open while nothing is sent to it; "
                "restarts are "
                "those that this gateway has seen.",
                ["citadel_host", "model", "replica"],
                Column("ready", "short", Ask(ready), mapped={"1": YES, "0": NO}),
                Column("breaker", "short", Ask(f"llm_breaker_state{{{OF}}}"), mapped=BREAKERS),
                Column("restarts", "short", Ask(f"llm_replica_restarts_total{{{OF}}}"), [(1, YELLOW), (3, RED)]),
                size=(12, 6),
            ),
            rows(
                "Cost Efficiency Analysis",
                "What an hour's work of each model took: seconds of serving are what a price is reckoned from. "
                "Prices themselves follow later.",
                ["model"],
                Column("requests", "short", Ask(f"sum by (model) (increase(llm_requests_total{{{OF}}}[1h]))")),
                Column(
                    "tokens written",
                    "short",
                    Ask(f'sum by (model) (increase(llm_tokens_processed_total{{{OF}, type="completion"}}[1h]))'),
                ),
                Column(
                    "per 1000 tokens",
                    "s",
                    Ask(
                        f"1000 * sum by (model) (increase(llm_request_duration_seconds_sum{{{OF}}}[1h]))\n"
                        f'/ (sum by (model) (increase(llm_tokens_processed_total{{{OF}, type="completion"}}[1h])) > 0)'
                    ),
                ),
                Column("memory", "bytes", Ask(f"sum by (model) (llm_model_memory_usage_bytes{{{OF}}})")),
                size=(12, 6),
                sort="tokens written",
            ),
        ],
    )
    host = Row(
        "Host and release",
        [
            leads(
                shares(
                    "Host",
                    "How much of a host's processors, memory and fullest disk is taken.",
                    "percentunit",
                    Ask(CPU_USED, "{{citadel_host}} processors", SLOW),
                    Ask(MEMORY_USED, "{{citadel_host}} memory", SLOW),
                    Ask(f"max by (citadel_host) ({DISK_USED})", "{{citadel_host}} disk", SLOW),
                    size=(12, 5),
                    levels=[(0.8, YELLOW), (0.9, RED)],
                    most=1,
                ),
                "The host in detail",
                "resource_utilization",
            ),
            number(
                "Release",
                "Which release serves, by its host.",
                "short",
                Ask(f"citadel_release_info{{{AT}}}", "{{release}}", SLOW),
                size=(6, 5),
                below=BLUE,
                graph=False,
                names=True,
                mapped={"1": ("live", GREEN)},
            ),
            number(
                "Live Since",
                "How long ago the release that serves was activated.",
                "s",
                Ask(f"time() - citadel_release_activated_timestamp_seconds{{{AT}}}", "{{citadel_host}}", SLOW),
                size=(6, 5),
                below=BLUE,
                graph=False,
                decimals=1,
            ),
        ],
    )
    return Board(
        "LLM Server Overview",
        "Is the service well, and if not, where: models, answers, host. Everything here leads to the dashboard that "
        "says why.",
        [now, performance, served, details, host],
    )
