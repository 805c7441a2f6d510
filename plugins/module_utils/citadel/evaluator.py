"""How well a model foretells a text: a program for the environment of vLLM, which has one order and answers in lines.

The order is JSON on its input: vLLM's options, the text, how many tokens are read at once, of how many candidates the
probabilities are told, and whether everything else goes first. The first line of the answer is how many windows there
are; then comes one for each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def step_back() -> None:
    """Whatever serves goes first, at the processor and at the disk; and where memory is short, this is what ends."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def windows(tokens: Sequence[int], length: int, start: Sequence[int]) -> Iterator[list[int]]:
    """Pieces that follow each other, each behind the token that every text of the model begins with."""
    step = length - len(start)
    for at in range(0, len(tokens), step):
        piece = tokens[at : at + step]
        if len(start) + len(piece) > 1:
            yield [*start, *piece]


def answer(prompt: Sequence[int], found: Sequence[Mapping[int, Any] | None], top: int) -> dict[str, list[Any]]:
    """Of each token but the first: how likely it was, and the likeliest candidates, the best first."""
    told: dict[str, list[Any]] = {"tokens": [], "likely": [], "candidates": [], "chances": []}
    for token, chances in zip(prompt[1:], found[1:], strict=True):
        ranked = sorted(chances.items(), key=lambda one: one[1].rank)[:top] if chances else []
        told["tokens"].append(token)
        told["likely"].append(chances[token].logprob if chances else 0.0)
        told["candidates"].append([number for number, _ in ranked])
        told["chances"].append([chance.logprob for _, chance in ranked])
    return told


def engine(options: Mapping[str, Any]) -> Any:
    """vLLM's engine as a unit starts it; options of the server alone are passed over."""
    from vllm import LLM  # noqa: PLC0415 it takes seconds, and needs what the environment says
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    words = []
    for key, value in options.items():
        if value is not False:
            words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    known, _ = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_known_args(words)
    return LLM.from_engine_args(EngineArgs.from_cli_args(known))


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM writes its log where we answer
    order = json.load(sys.stdin)
    if order["yields"]:
        step_back()
    model = engine(order["options"])
    from vllm import SamplingParams  # noqa: PLC0415

    tokenizer = model.get_tokenizer()
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = tokenizer.encode(order["text"], add_special_tokens=False)
    pieces = list(windows(tokens, order["window"], start))
    wanted = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=order["top"], detokenize=False)
    print(json.dumps({"windows": len(pieces)}), file=answers, flush=True)
    for piece in pieces:
        (found,) = model.generate({"prompt_token_ids": piece}, wanted, use_tqdm=False)
        print(json.dumps(answer(piece, found.prompt_logprobs, order["top"])), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
