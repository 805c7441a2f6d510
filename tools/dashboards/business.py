"""Business Metrics: what the service is used for and what comes of it, as far as it is measured."""

from __future__ import annotations

from tools.dashboards.board import OF, RATE, Board, Row
from tools.dashboards.panels import BLUE, GREEN, RED, YELLOW, Ask, Column, lines, number, rows, shares, spread


def business() -> Board:
    written = f'llm_tokens_processed_total{{{OF}, type="completion"}}'
    totals = Row(
        "In the time that is shown",
        [
            number(
                "Requests",
                "Requests that were answered.",
                "short",
                Ask(f"sum(increase(llm_requests_total{{{OF}}}[$__range]))"),
                below=BLUE,
                graph=False,
                decimals=0,
            ),
            number(
                "Tokens Written",
                "Tokens that the models wrote for users.",
                "short",
                Ask(f"sum(increase({written}[$__range]))"),
                below=BLUE,
                graph=False,
            ),
            number(
                "Tokens Read",
                "Tokens of the prompts of users.",
                "short",
                Ask(f'sum(increase(llm_tokens_processed_total{{{OF}, type="prompt"}}[$__range]))'),
                below=BLUE,
                graph=False,
            ),
            number(
                "Served",
                "Share of the requests that the service did not fail (no 5xx).",
                "percentunit",
                Ask(
                    f'1 - ((sum(increase(llm_requests_total{{{OF}, code=~"5.."}}[$__range])) or vector(0))\n'
                    f"  / (sum(increase(llm_requests_total{{{OF}}}[$__range])) > 0) or vector(0))"
                ),
                levels=[(0.95, YELLOW), (0.99, GREEN)],
                below=RED,
                graph=False,
                decimals=2,
            ),
            number(
                "Available",
                "Share of the time in which the models were ready, in the mean over them.",
                "percentunit",
                Ask(f"avg(avg_over_time(llm_model_health{{{OF}}}[$__range]))"),
                levels=[(0.95, YELLOW), (0.99, GREEN)],
                below=RED,
                graph=False,
                decimals=2,
            ),
            number(
                "Mean Answer",
                "Mean time of an answer.",
                "s",
                Ask(
                    f"sum(increase(llm_request_duration_seconds_sum{{{OF}}}[$__range]))\n"
                    f"/ sum(increase(llm_request_duration_seconds_count{{{OF}}}[$__range]))"
                ),
                below=BLUE,
                graph=False,
            ),
        ],
    )
    trends = Row(
        "Value",
        [
            lines(
                "ROI Analysis",
                "Tokens written an hour for each GiB of memory that a model holds: what comes back for what is given. "
                "Money on "
                "either side follows with prices and feedback.",
                "short",
                Ask(
                    f"sum by (model) (rate({written}[1h])) * 3600\n"
                    f"/ (sum by (model) (llm_model_memory_usage_bytes{{{OF}}}) / 2^30)",
                    "{{model}}",
                ),
                size=(12, 8),
            ),
            lines(
                "User Adoption Trends",
                "Requests an hour by endpoint. Who asked is not among the figures, so users themselves are not "
                "counted here.",
                "short",
                Ask(f"sum by (endpoint) (rate(llm_requests_total{{{OF}}}[1h])) * 3600", "{{endpoint}}"),
                stacked=True,
                size=(12, 8),
            ),
            spread(
                "Quality Metrics",
                "How long users waited for their answers: the lower the bright band, the better. Satisfaction and "
                "accuracy join "
                "it with the feedback of users.",
                "s",
                Ask(f"sum by (le) (increase(llm_request_duration_seconds_bucket{{{OF}}}{RATE}))", "{{le}}"),
                size=(12, 9),
            ),
            lines(
                "Business Value Metrics",
                "Tokens written an hour by each model, in the mean of an hour.",
                "short",
                Ask(f"sum by (model) (rate({written}[1h])) * 3600", "{{model}}"),
                stacked=True,
                size=(12, 9),
            ),
        ],
    )
    use = Row(
        "Use",
        [
            shares(
                "Tokens by Model",
                "Which model wrote how much, in the time that is shown.",
                "short",
                Ask(f"sum by (model) (increase({written}[$__range]))", "{{model}}"),
                by_name=True,
                size=(8, 6),
            ),
            shares(
                "Work Saved by Caches",
                "Share of the tokens of prompts that a model had in its cache, in the time that is shown: paid for "
                "once.",
                "percentunit",
                Ask(
                    f"sum by (model) (increase(vllm:prefix_cache_hits_total{{{OF}}}[$__range]))\n"
                    f"/ sum by (model) (increase(vllm:prefix_cache_queries_total{{{OF}}}[$__range]))",
                    "{{model}}",
                ),
                most=1,
                by_name=True,
                size=(8, 6),
            ),
            rows(
                "Cost Efficiency Analysis",
                "What each model's work took in the time that is shown.",
                ["model"],
                Column("requests", "short", Ask(f"sum by (model) (increase(llm_requests_total{{{OF}}}[$__range]))")),
                Column(
                    "tokens each",
                    "short",
                    Ask(
                        f"sum by (model) (increase({written}[$__range]))\n"
                        f"/ (sum by (model) (increase(llm_requests_total{{{OF}}}[$__range])) > 0)"
                    ),
                ),
                Column(
                    "per 1000 tokens",
                    "s",
                    Ask(
                        f"1000 * sum by (model) (increase(llm_request_duration_seconds_sum{{{OF}}}[$__range]))\n"
                        f"/ (sum by (model) (increase({written}[$__range])) > 0)"
                    ),
                ),
                size=(8, 6),
                sort="requests",
            ),
        ],
    )
    return Board(
        "Business Metrics",
        "What the service is used for and what comes of it, as far as it is measured. Left out, since nothing "
        "measures them "
        "yet: satisfaction, accuracy, prices and business value (they come with feedback); development productivity, "
        "automation success and decision support.",
        [totals, trends, use],
        since="now-24h",
        refresh="5m",
    )
