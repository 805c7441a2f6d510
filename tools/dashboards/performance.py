"""Model Performance: each model against its objectives, and what its engine does."""

from __future__ import annotations

from tools.dashboards.board import OF, ONE, RATE, Board, Row, mean, p
from tools.dashboards.panels import RED, SLOW, YELLOW, Ask, lines, shares, spread


def performance() -> Board:
    answers = Row(
        "What users wait for",
        [
            lines(
                "Response Time",
                "95th percentile from the first byte of a request to the last of its answer, by model; dashed, the "
                "objective.",
                "s",
                Ask(p(0.95, "llm_request_duration_seconds", "model", OF), "{{model}}"),
                Ask(f"citadel:objective_p95:seconds{{{OF}}}", "{{model}} objective"),
                dashed="objective",
            ),
            lines(
                "Time to First Token",
                "Median from the request to the first byte of its answer, waiting included; dashed, the objective.",
                "s",
                Ask(p(0.5, "llm_time_to_first_token_seconds", "model", OF), "{{model}}"),
                Ask(f"citadel:objective_first_token:seconds{{{OF}}}", "{{model}} objective"),
                dashed="objective",
            ),
            lines(
                "Time Between Tokens",
                "Mean time between two tokens of an answer, as the model's server measures it; dashed, the objective.",
                "s",
                Ask(mean("vllm:inter_token_latency_seconds", "model", ONE), "{{model}}"),
                Ask(f"citadel:objective_per_token:seconds{{{OF}}}", "{{model}} objective"),
                dashed="objective",
            ),
            spread(
                "Response Times, All of Them",
                "How the times of all answers are spread: two bands are two kinds of request, a band that rises is a "
                "queue.",
                "s",
                Ask(f"sum by (le) (increase(llm_request_duration_seconds_bucket{{{OF}}}{RATE}))", "{{le}}"),
                size=(16, 8),
            ),
            lines(
                "Waiting for Admission",
                "95th percentile of the time that a request waited in the gateway until its model had room.",
                "s",
                Ask(p(0.95, "llm_queue_time_seconds", "model", OF), "{{model}}"),
            ),
        ],
    )
    work = Row(
        "Work",
        [
            lines(
                "Tokens Written",
                "Tokens that each model generated, a second.",
                "suffix: tok/s",
                Ask(f"sum by (model) (rate(vllm:generation_tokens_total{{{ONE}}}{RATE}))", "{{model}}"),
                stacked=True,
            ),
            lines(
                "Tokens Read",
                "Tokens of prompts that each model computed or found in its cache, a second.",
                "suffix: tok/s",
                Ask(f"sum by (model) (rate(vllm:prompt_tokens_total{{{ONE}}}{RATE}))", "{{model}}"),
                stacked=True,
            ),
            lines(
                "Capacity in Use",
                "Requests in flight as a share of those that may be; at 100 % the next one waits.",
                "percentunit",
                Ask(
                    f"sum by (model) (llm_active_requests{{{OF}}}) / sum by (model) (llm_model_capacity{{{OF}}})",
                    "{{model}}",
                ),
                levels=[(0.8, YELLOW), (1, RED)],
            ),
            lines(
                "Running in the Engine",
                "Sequences that each replica's engine works on at once.",
                "short",
                Ask(f"sum by (replica) (vllm:num_requests_running{{{ONE}}})", "{{replica}}"),
            ),
            lines(
                "Waiting in the Engine",
                "Sequences that an engine has taken and not begun. The gateway keeps requests back, so this stays "
                "near zero.",
                "short",
                Ask(f"sum by (replica) (vllm:num_requests_waiting{{{ONE}}})", "{{replica}}"),
            ),
            lines(
                "Why Answers Ended",
                "stop: the model was done. length: cut at the limit that was asked for. abort: the client left.",
                "suffix: /s",
                Ask(
                    f"sum by (finished_reason) (rate(vllm:request_success_total{{{ONE}}}{RATE}))", "{{finished_reason}}"
                ),
                stacked=True,
            ),
        ],
    )
    engine = Row(
        "Engine",
        [
            lines(
                "Cache of Keys and Values",
                "How full the room for keys and values of each replica is. Full, sequences are put aside and begun "
                "anew.",
                "percentunit",
                Ask(f"max by (replica) (vllm:kv_cache_usage_perc{{{ONE}}})", "{{replica}}"),
                levels=[(0.9, YELLOW), (1, RED)],
                most=1,
            ),
            lines(
                "Prefixes Found Again",
                "Share of the tokens of prompts that were still in the cache, over five minutes: the higher, the "
                "sooner the "
                "first token.",
                "percentunit",
                Ask(
                    f"sum by (model) (rate(vllm:prefix_cache_hits_total{{{ONE}}}[5m]))\n"
                    f"/ sum by (model) (rate(vllm:prefix_cache_queries_total{{{ONE}}}[5m]))",
                    "{{model}}",
                ),
                most=1,
            ),
            lines(
                "Sequences Put Aside",
                "Preemptions: sequences that lost their room in the cache and were computed again, in five minutes.",
                "short",
                Ask(f"sum by (replica) (increase(vllm:num_preemptions_total{{{ONE}}}[5m]))", "{{replica}}"),
                bars=True,
                stacked=True,
            ),
            lines(
                "Reading and Writing",
                "Mean time of a request in its two phases: reading the prompt (prefill), writing the answer (decode).",
                "s",
                Ask(mean("vllm:request_prefill_time_seconds", "", ONE), "reads"),
                Ask(mean("vllm:request_decode_time_seconds", "", ONE), "writes"),
                stacked=True,
            ),
            spread(
                "Lengths of Prompts",
                "How long the prompts are, in tokens.",
                "short",
                Ask(f"sum by (le) (increase(vllm:request_prompt_tokens_bucket{{{ONE}}}{RATE}))", "{{le}}"),
                size=(8, 8),
            ),
            shares(
                "Time to Load",
                "How long each replica took from its start to its first completion.",
                "s",
                Ask(f"citadel_model_load_seconds{{{ONE}}}", "{{replica}}", SLOW),
            ),
        ],
    )
    trouble = Row(
        "Trouble",
        [
            lines(
                "Calls Made Again",
                "Calls of a replica that failed before the first byte and were made again, in five minutes.",
                "short",
                Ask(f"sum by (model) (increase(llm_retries_total{{{OF}}}[5m]))", "{{model}}"),
                bars=True,
                stacked=True,
            ),
            lines(
                "Failed Calls by Kind",
                "What went wrong between gateway and models, in five minutes.",
                "short",
                Ask(f"sum by (kind) (increase(llm_upstream_errors_total{{{OF}}}[5m]))", "{{kind}}"),
                bars=True,
                stacked=True,
            ),
            lines(
                "Requests Refused",
                "Requests that the gateway refused, by reason, in five minutes: a limit, no room, a deadline, a "
                "mistake.",
                "short",
                Ask(f"sum by (reason) (increase(llm_rejections_total{{{OF}}}[5m]))", "{{reason}}"),
                bars=True,
                stacked=True,
            ),
        ],
    )
    return Board(
        "Model Performance",
        "Each model against its objectives, what it is busy with, and what its engine does.",
        [answers, work, engine, trouble],
        ("host", "model", "replica"),
    )
