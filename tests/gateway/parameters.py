"""Every parameter of vLLM 0.32's own request schemas, with usual, extreme and absurd values.

Whoever sends one of these hurts nobody: a usual value is answered, an absurd one is refused with a 4xx that names the
parameter, an extreme one is either. Used against the simulator (what the gateway itself refuses), and in the lab
against real vLLM while an innocent client asks (tests/lab/test_matrix.py, and at length python -m tests.fuzz).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["usual", "extreme", "absurd"]
Outcome = Literal["answered", "refused", "either"]
SIZES: tuple[Size, ...] = ("usual", "extreme", "absurd")
GENERATE = ("chat", "completions")
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}
BASES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
    "completions": {"prompt": "hello", "max_tokens": 4},
    "embeddings": {"input": "hello"},
}
HUGE = 2**70
DEEP: dict[str, Any] = {"type": "object"}
for _ in range(50):  # two levels each
    DEEP = {"type": "object", "properties": {"a": DEEP}}
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "inner": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
}
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
}
# as SDKs write what is made of other things
LINE = {
    "type": "object",
    "properties": {"from": {"$ref": "#/$defs/Point"}, "to": {"$ref": "#/$defs/Point"}},
    "required": ["from", "to"],
    "$defs": {"Point": POINT},
}
CIRCLES: tuple[dict[str, Any], ...] = (
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}]},
    {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
)
BAD_SCHEMAS: tuple[dict[str, Any], ...] = (
    *CIRCLES,
    {"$ref": "http://127.0.0.1:1/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/nowhere"},
    DEEP,
    {"type": "string", "pattern": "(a{1000}){1000}b{1000}"},
    {"type": "string", "maxLength": 10**9},
    {"type": "array", "items": {"type": "integer"}, "minItems": 10**7},
    {"enum": [str(number) for number in range(5000)]},
    {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(3000)}},
)


def _json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _tool(schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "call", "parameters": schema}}


@dataclass(frozen=True)
class Parameter:
    name: str
    endpoints: tuple[str, ...]
    usual: tuple[Any, ...] = ()
    extreme: tuple[Any, ...] = ()
    absurd: tuple[Any, ...] = ()
    beside: dict[str, Any] = field(default_factory=dict)
    # an absurd value of what vLLM ignores is answered; a usual one of what is not offered is refused
    outcomes: tuple[Outcome, Outcome, Outcome] = ("answered", "either", "refused")
    by_gateway: bool = True  # whether the gateway refuses the absurd values itself


LAX: tuple[Outcome, Outcome, Outcome] = ("answered", "either", "either")
CLOSED: tuple[Outcome, Outcome, Outcome] = ("refused", "refused", "refused")
UNSURE: tuple[Outcome, Outcome, Outcome] = ("either", "either", "either")
_LEFT_TO_VLLM = {"by_gateway": False}

PARAMETERS: tuple[Parameter, ...] = (
    # how much
    Parameter("max_tokens", GENERATE, (1, 8), (0, 256), (-1, 10**6, HUGE, 1.5, "8", True, [1])),
    Parameter("max_completion_tokens", GENERATE, (1, 8), (0, 256), (-1, 10**6, HUGE, "8", True)),
    Parameter("max_output_tokens", GENERATE, (1, 8), (0,), (-1, 10**6, HUGE, "8")),
    Parameter("min_tokens", GENERATE, (0, 1, 4), (5, 4096), (-1, HUGE, "1", 1.5)),
    Parameter("n", GENERATE, (1,), (2, 8), (0, -1, 9, 128, 10**6, HUGE, 1.5, "2", True), {"temperature": 1.0}),
    Parameter("best_of", GENERATE, (1,), (2, 8), (0, -1, 128, HUGE, "2"), {"temperature": 1.0}),
    Parameter("truncate_prompt_tokens", (*GENERATE, "embeddings"), (), (-1, 1, 16), (-2, HUGE, "1"), outcomes=UNSURE),
    Parameter("thinking_token_budget", GENERATE, (), (-1, 0, 5), (-2, HUGE, "1")),
    Parameter("stream_interval", GENERATE, (1,), (1024,), (0, -1, HUGE, "1")),
    # sampling
    Parameter("temperature", GENERATE, (0, 0.7, 1.0), (2.0, 1e-9), (-0.1, 2.1, 1e30, "hot", True, [])),
    Parameter("top_p", GENERATE, (0.5, 1.0), (0, 1e-9), (-0.1, 1.1, 1e30, "x", True)),
    Parameter("top_k", GENERATE, (-1, 0, 20), (1, 10**6), (-2, 10**7, 2**31, HUGE, 1.5, "1")),
    Parameter("min_p", GENERATE, (0, 0.1), (1.0, 1e-9), (-0.1, 1.1, 1e30, "x")),
    Parameter("presence_penalty", GENERATE, (0, 0.5), (-2, 2), (-2.1, 2.1, 1e30, "x", True)),
    Parameter("frequency_penalty", GENERATE, (0, 0.5), (-2, 2), (-2.1, 2.1, 1e30, "x", True)),
    Parameter("repetition_penalty", GENERATE, (1.0, 1.1), (0.01, 10.0), (0, -1, 1e30, "x")),
    Parameter("seed", GENERATE, (1, 42), (0, -1, 2**63 - 1, -(2**63)), (2**63, HUGE, "x"), by_gateway=False),
    Parameter("length_penalty", GENERATE, (1.0,), (-10, 10), (1e30, "x")),
    Parameter("use_beam_search", GENERATE, (False,), (), (True, "yes"), {"n": 2}),
    Parameter(
        "logit_bias",
        GENERATE,
        ({}, {"5": 1.0}),
        ({"5": -100}, {"5": 100}),
        (
            {"-1": 1},
            {"x": 1},
            {"5": 1e30},
            {"5": "x"},
            {str(HUGE): 1},
            {str(number): 1 for number in range(2000)},
            [5],
        ),
    ),
    Parameter(
        "allowed_token_ids",
        GENERATE,
        ([5, 6, 7],),
        ([0],),
        (
            [-1],
            [2**31],
            [HUGE],
            ["5"],
            list(range(5000)),
            5,
        ),
    ),
    Parameter("bad_words", GENERATE, ([], ["bad"]), (["a" * 200],), ([""], [1], ["bad"] * 1000, ["x" * 10_000], "x")),
    Parameter("ignore_eos", GENERATE, (True, False), (), ("maybe", 7), **_LEFT_TO_VLLM),  # type: ignore[arg-type]
    Parameter(
        "repetition_detection",
        GENERATE,
        (),
        (
            {"max_pattern_size": 3, "min_count": 3},
            {"max_pattern_size": HUGE, "min_count": 2},
            {"max_pattern_size": -1, "min_count": -1},
            [],
        ),
        outcomes=UNSURE,
    ),
    # where it ends
    Parameter(
        "stop",
        GENERATE,
        ("x", ["x", "y"]),
        (["s"] * 16, "\u0000", "\ud7ff"),
        (
            "",
            [""],
            [1],
            5,
            ["s"] * 1000,
            "x" * 100_000,
            {"a": 1},
        ),
    ),
    Parameter("stop_token_ids", GENERATE, ([], [2]), ([0],), ([-1], [2**31], [HUGE], ["2"], list(range(5000)), 2)),
    Parameter("include_stop_str_in_output", GENERATE, (True,), (), ("maybe",), by_gateway=False),
    Parameter("skip_special_tokens", GENERATE, (True, False), (), ("maybe",), by_gateway=False),
    Parameter("spaces_between_special_tokens", GENERATE, (True, False), (), ("maybe",), by_gateway=False),
    # probabilities
    Parameter("logprobs", ("chat",), (False, True), (), ("maybe",), by_gateway=False),
    Parameter("top_logprobs", ("chat",), (0, 1, 5), (20,), (-1, 21, 10**6, HUGE, "1"), {"logprobs": True}),
    Parameter("logprobs", ("completions",), (0, 1, 5), (20,), (-1, 21, 10**6, HUGE, "1")),
    Parameter("prompt_logprobs", GENERATE, (0, 1), (5, 20), (-1, 10**6, HUGE, "1"), outcomes=CLOSED),
    Parameter("echo", ("chat",), (False,), (), (True,)),
    Parameter("echo", ("completions",), (False, True), (), ("maybe",), by_gateway=False),
    Parameter("echo", ("completions",), (), (), (True,), {"logprobs": 1}),
    Parameter("logprob_token_ids", GENERATE, (), ([5],), ([-1], [HUGE], ["5"], list(range(5000))), {"logprobs": 1}),
    Parameter("return_tokens_as_token_ids", GENERATE, (True,), (), ("maybe",), by_gateway=False),
    Parameter("return_token_ids", GENERATE, (True,), (), ("maybe",), by_gateway=False),
    Parameter("return_prompt_text", ("chat",), (True,), (), ("maybe",), by_gateway=False),
    # what the answer must look like
    Parameter(
        "response_format",
        GENERATE,
        (
            {"type": "text"},
            {"type": "json_object"},
            _json_schema(POINT),
            _json_schema(TREE),
        ),
        (
            _json_schema({}),
            _json_schema({"type": "string", "pattern": "[a-z]{1,20}"}),
            {"type": "structural_tag", "structures": [], "triggers": []},
        ),
        (
            "json",
            {"type": "json_schema"},
            *(_json_schema(schema) for schema in BAD_SCHEMAS),
        ),
        {"max_tokens": 16},
    ),
    Parameter("response_format", GENERATE, (), ({"type": "nonsense"}, _json_schema({"type": "nonsense"}), {}), ()),
    Parameter(
        "structured_outputs",
        GENERATE,
        (
            {"choice": ["yes", "no"]},
            {"regex": "[a-z]{1,5}"},
            {"json": POINT},
            {"json": LINE},
            {"json_object": True},
        ),
        (
            {"grammar": 'root ::= "a" | "b"'},
            {"regex": "("},
            {"grammar": "root ::="},
            {"choice": []},
            {},
            {"regex": "a{1,1000}"},
            {"regex": "(?=a)b"},
            {"choice": ["a"], "regex": "a"},
        ),
        (
            {"regex": "a" * 100_000},
            {"regex": "(a{1000}){1000}{1000}"},
            {"regex": "a{1,1000000}"},
            {"grammar": "root ::= " + '"a" ' * 50_000},
            {"choice": ["a"] * 5000},
            {"json": '{"$ref": "#"}'},
            *({"json": schema} for schema in BAD_SCHEMAS),
            [],
        ),
    ),
    Parameter("guided_json", GENERATE, (), ({"$ref": "#"}, POINT), (), outcomes=UNSURE),
    Parameter("guided_regex", GENERATE, (), ("a{1,5}",), (), outcomes=UNSURE),
    Parameter(
        "tools",
        ("chat",),
        (),
        ([_tool(POINT)], []),
        (
            *([_tool(schema)] for schema in BAD_SCHEMAS),
            [_tool(POINT)] * 1000,
            "tool",
        ),
        {"tool_choice": "required"},
    ),
    Parameter(
        "tool_choice",
        ("chat",),
        ("none",),
        ("auto", "required", {"type": "function", "function": {"name": "x"}}),
        (
            "maybe",
            7,
        ),
        outcomes=LAX,
        by_gateway=False,
    ),
    Parameter("parallel_tool_calls", ("chat",), (True,), (), ("maybe",), by_gateway=False),
    # what is asked
    Parameter(
        "messages",
        ("chat",),
        (
            [{"role": "user", "content": "hello"}],
            [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        ),
        (
            [{"role": "system", "content": ""}],
            [{"role": "user", "content": None}],
            [{"role": "nonsense", "content": "x"}],
            [{"role": "user", "content": "\u0000\ufffe\U0010ffff"}],
            [{"role": "user", "content": "x"}] * 300,
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}],
            [{"role": "user", "content": [{"type": "nonsense"}]}],
            [{"role": "tool", "content": "x", "tool_call_id": "1"}],
            [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "x", "arguments": "{"}}],
                }
            ],
        ),
        ([], "hello", [1], {}, None),
    ),
    Parameter(
        "prompt",
        ("completions",),
        ("hello", ["hello", "there"], [5, 6, 7]),
        (
            "",
            [""],
            [[5, 6], [7]],
            ["x"] * 32,
            "\u0000",
            [0],
        ),
        ({}, 7, ["x"] * 1000, [5] * 100_000, None),
    ),
    Parameter("prompt", ("completions",), (), ([10**9], [HUGE], [[HUGE]], [[]], [], ["x", 5], [-1]), ()),
    Parameter("suffix", ("completions",), (), ("x", "", 7), (), outcomes=UNSURE),
    Parameter("prompt_embeds", ("completions",), ("AAAA",), ("A" * 1000,), (["AAAA"],), outcomes=CLOSED),
    Parameter("add_generation_prompt", ("chat",), (True, False), (), ("maybe",), by_gateway=False),
    Parameter("continue_final_message", ("chat",), (False,), (True,), ("maybe",), by_gateway=False),
    Parameter("add_special_tokens", (*GENERATE, "embeddings"), (True, False), (), ("maybe",), by_gateway=False),
    Parameter("documents", ("chat",), (), ([], [{"title": "a", "text": "b"}], "x"), (), outcomes=UNSURE),
    Parameter(
        "chat_template",
        ("chat",),
        ("{{ messages }}",),
        ("{% for a in range(10**9) %}{% endfor %}",),
        (7,),
        outcomes=CLOSED,
    ),
    Parameter(
        "chat_template_kwargs",
        ("chat",),
        ({}, {"enable_thinking": False}),
        (
            {"add_generation_prompt": False},
            {"padding": True},
            {"truncation": True, "max_length": 1},
            {"messages": []},
            "x",
        ),
        (
            {"chat_template": "{% for a in range(10**9) %}{% endfor %}"},
            {"tokenize": True},
            {"a": "x" * 100_000},
            {"a": DEEP},
        ),
    ),
    Parameter("reasoning_effort", ("chat",), (), ("low", "none", "nonsense"), (), outcomes=UNSURE),
    Parameter("include_reasoning", ("chat",), (True,), (), ("maybe",), by_gateway=False),
    Parameter("media_io_kwargs", ("chat",), (), ({}, {"image": {}}, "x"), ({"a": DEEP},), outcomes=UNSURE),
    Parameter("mm_processor_kwargs", ("chat",), ({},), ({"a": 1},), ("x",), outcomes=CLOSED),
    Parameter("mm_payload", GENERATE, ("none",), (), ("nonsense",), outcomes=UNSURE),
    Parameter("return_mm_kwargs", GENERATE, (), (True,), (), outcomes=UNSURE),
    Parameter("routed_experts_prompt_start", GENERATE, (0,), (5,), (-1, HUGE), by_gateway=False),
    Parameter("return_token_offsets", GENERATE, (True,), (), ("maybe",), by_gateway=False),
    # how it is served
    Parameter("stream", (*GENERATE,), (False,), (), ("yes", 7, [])),
    Parameter("stream", ("embeddings",), (False,), (), (True,)),
    Parameter(
        "stream_options",
        GENERATE,
        ({"include_usage": True},),
        (
            {"include_usage": False},
            {"continuous_usage_stats": True, "include_usage": True},
            {},
        ),
        ("x", [], 7),
        {"stream": True},
    ),
    Parameter("priority", GENERATE, (0,), (1, -1), (HUGE, "x"), outcomes=LAX, by_gateway=False),
    Parameter("request_id", GENERATE, ("mine",), ("x" * 1000, ""), (7,), by_gateway=False),
    Parameter("session_id", GENERATE, ("mine",), ("x" * 1000,), (7,), outcomes=LAX, by_gateway=False),
    Parameter("cache_salt", GENERATE, ("salt",), ("x" * 1024,), ("", "x" * 10_000, 7), by_gateway=False),
    Parameter("kv_transfer_params", GENERATE, ({"do_remote_prefill": True},), ({"a": 1},), ("x",), outcomes=CLOSED),
    Parameter("ec_transfer_params", GENERATE, ({"a": 1},), ({"b": 1},), ("x",), outcomes=CLOSED),
    Parameter(
        "vllm_xargs",
        GENERATE,
        (),
        ({"a": 1}, {"a": HUGE}, {"a": [1] * 5000}, "x"),
        ({"a": "x" * 100_000},),
        outcomes=UNSURE,
    ),
    Parameter("user", (*GENERATE, "embeddings"), ("me",), ("",), (7,), outcomes=LAX, by_gateway=False),
    Parameter("metadata", GENERATE, (), ({"a": "b"}, "x"), (), outcomes=UNSURE),
    Parameter("nonsense", (*GENERATE, "embeddings"), (1, "x", None), ({"a": [1]},), (HUGE,), outcomes=LAX),
    # embeddings
    Parameter(
        "input",
        ("embeddings",),
        ("hello", ["hello", "there"], [5, 6]),
        (
            ["x"] * 256,
            [[5], [6]],
            [{"role": "user", "content": "x"}],
            "\u0000",
            [10**9],
            [""],
        ),
        ("", [], {}, 7, ["x"] * 5000, [5] * 100_000, None),
    ),
    Parameter(
        "dimensions", ("embeddings",), (), (1, 16, 0, -1, 10**6), (HUGE,), outcomes=("either", "either", "refused")
    ),
    Parameter("encoding_format", ("embeddings",), ("float", "base64"), (), ("nonsense", 7), by_gateway=False),
    Parameter("embed_dtype", ("embeddings",), (), ("float32", "nonsense"), (), outcomes=UNSURE),
    Parameter("endianness", ("embeddings",), (), ("big", "nonsense"), (), outcomes=UNSURE),
    Parameter("use_activation", ("embeddings",), (), (True, False, "x"), (), outcomes=UNSURE),
    Parameter("model", (*GENERATE, "embeddings"), (), (), ("nonsense", "../../etc/passwd", 7, [], {"a": 1})),
)


@dataclass(frozen=True)
class Case:
    endpoint: str
    parameter: str
    value: Any
    size: Size
    outcome: Outcome
    by_gateway: bool
    beside: dict[str, Any]

    @property
    def name(self) -> str:
        shown = repr(self.value)
        return f"{self.endpoint}: {self.parameter} = {shown if len(shown) <= 60 else shown[:57] + '...'}"

    def body(self, *, stream: bool = False, **more: Any) -> dict[str, Any]:
        body = {**BASES[self.endpoint], **self.beside, **more}
        if self.parameter in ("max_completion_tokens", "max_output_tokens"):
            del body["max_tokens"]
        if stream:
            body["stream"] = True
        return {**body, self.parameter: self.value}


def cases(endpoints: tuple[str, ...] = tuple(PATHS)) -> Iterator[Case]:
    for parameter in PARAMETERS:
        for endpoint in parameter.endpoints:
            if endpoint not in endpoints:
                continue
            for size, outcome in zip(SIZES, parameter.outcomes, strict=True):
                for value in getattr(parameter, size):
                    yield Case(
                        endpoint, parameter.name, value, size, outcome, parameter.by_gateway, dict(parameter.beside)
                    )
