"""Integration Health: whether what stands around the models works."""

from __future__ import annotations

from citadel.contract import GATEWAY, HOST, MODELS
from tools.dashboards.board import AT, RATE, UP_AND_DOWN, Board, Row
from tools.dashboards.panels import BLUE, GREEN, ORANGE, PURPLE, RED, SLOW, YELLOW, Ask, alerts, lines, number, states


def integration() -> Board:
    ours = f'up{{job=~"citadel-llm-.*", {AT}}}'
    scraped = f'job=~"{MODELS}|{GATEWAY}|{HOST}", {AT}'
    now = Row(
        "Now",
        [
            number(
                "Targets Up",
                "Share of the targets of these hosts that Prometheus gets an answer from.",
                "percentunit",
                Ask(f"avg({ours})"),
                levels=[(0.5, ORANGE), (1, GREEN)],
                below=RED,
            ),
            number(
                "Neighbours Up",
                "Share of all other targets of the same Prometheus that answer: database, cache, vectors, events, "
                "itself.",
                "percentunit",
                Ask('avg(up{job!~"citadel-llm-.*"})'),
                levels=[(0.5, ORANGE), (1, GREEN)],
                below=RED,
            ),
            number(
                "Host's Figures Written",
                "How long ago the host wrote the figures of its units, releases and certificates. They are stale "
                "after minutes.",
                "s",
                Ask(f"max(time() - citadel_metrics_written_timestamp_seconds{{{AT}}})", "", SLOW),
                levels=[(180, YELLOW), (600, RED)],
                decimals=0,
            ),
            number(
                "Drift",
                "What on a host is no longer as it was declared; `make drift` names each item.",
                "short",
                Ask(f"sum(citadel_drift_items{{{AT}}})", "", SLOW),
                levels=[(1, YELLOW)],
                empty="not looked yet",
                graph=False,
            ),
            number(
                "Certificate",
                "How long the certificate that ends first is still good.",
                "s",
                Ask(f"min(citadel_certificate_expires_timestamp_seconds{{{AT}}} - time())", "", SLOW),
                levels=[(604800, YELLOW), (2592000, GREEN)],
                below=RED,
                empty="none",
                graph=False,
                decimals=0,
            ),
            number(
                "Log Lines Lost",
                "Log lines of the gateway that could not be written, in the last hour.",
                "short",
                Ask(f"sum(increase(llm_log_lines_dropped_total{{{AT}}}[1h])) or vector(0)"),
                levels=[(1, RED)],
            ),
        ],
    )
    targets = Row(
        "Metrics",
        [
            states(
                "Targets",
                "When each target of these hosts answered Prometheus, and when it did not.",
                Ask(f"max by (citadel_host, job, replica) ({ours})", "{{citadel_host}} {{job}} {{replica}}"),
                UP_AND_DOWN,
                size=(14, 8),
            ),
            lines(
                "Time of a Scrape",
                "How long a target takes to answer Prometheus. At ten seconds it counts as down.",
                "s",
                Ask(f"max by (job) (scrape_duration_seconds{{{scraped}}})", "{{job}}"),
                size=(10, 8),
            ),
            states(
                "Neighbours",
                "The other targets of the same Prometheus: database, cache, vectors, events and metrics, as far as it "
                "has them.",
                Ask('min by (job, instance) (up{job!~"citadel-llm-.*"})', "{{job}} {{instance}}"),
                UP_AND_DOWN,
                size=(14, 8),
            ),
            lines(
                "Rule Evaluation",
                "Time that Prometheus takes for our rules, at each evaluation.",
                "s",
                Ask(
                    'sum(prometheus_rule_group_last_duration_seconds{rule_group=~".*/citadel-llm.*"})',
                    "evaluation",
                ),
                size=(10, 8),
            ),
        ],
    )
    web = Row(
        "Web",
        [
            lines(
                "Requests by Answer",
                "Requests to all endpoints, by the status that they got.",
                "reqps",
                Ask(f"sum by (code) (rate(http_requests_total{{{AT}}}{RATE}))", "{{code}}"),
                stacked=True,
            ),
            lines(
                "Requests by Endpoint",
                "Which part of the API is used.",
                "reqps",
                Ask(f"sum by (endpoint) (rate(http_requests_total{{{AT}}}{RATE}))", "{{endpoint}}"),
                stacked=True,
            ),
            lines(
                "Connections and Requests",
                "Connections that clients hold open, and requests that are not over.",
                "short",
                Ask(f"sum(llm_client_connections{{{AT}}})", "connections"),
                Ask(f"sum(http_requests_in_flight{{{AT}}})", "requests"),
                colors={"connections": BLUE, "requests": PURPLE},
            ),
        ],
    )
    told = Row(
        "Alerts",
        [
            alerts("Alerts", "Every alert of this product that fires or is about to.", 'citadel="llm"', size=(14, 8)),
            lines(
                "Alerts Over Time",
                "Alerts that fired, by severity.",
                "short",
                Ask('count by (severity) (ALERTS{citadel="llm", alertstate="firing"}) or vector(0)', "{{severity}}"),
                colors={"critical": RED, "warning": YELLOW, "info": BLUE},
                bars=True,
                stacked=True,
                size=(10, 8),
            ),
        ],
    )
    return Board(
        "Integration Health",
        "Whether what stands around the models works: metrics, neighbours, the web side, alerts. Database, vectors "
        "and cache "
        "are there as targets of Prometheus; their own figures follow with them.",
        [now, targets, web, told],
        ("host",),
    )
