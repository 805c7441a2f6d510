"""What a request may ask of a model: each bound to the unit, and the parameter named in the refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from citadel_gateway.bounds import check_parameters, depth_of, sequences
from citadel_gateway.errors import Refusal
from tests.gateway.stations.parts import model_of


def refusal_of(
    bounds: dict[str, Any] | None = None, endpoint: str = "chat", /, **body: Any
) -> tuple[int, str, str | None] | None:
    model = model_of({"bounds": bounds or {}})
    try:
        check_parameters(body, model, endpoint)
    except Refusal as refusal:
        return refusal.status, refusal.code, refusal.param
    return None


def guided(**figures: int) -> dict[str, Any]:
    return {"guided": figures}


class TestNumbers:
    @pytest.mark.parametrize(
        ("key", "low", "high", "whole"),
        [
            ("length_penalty", -10, 10, False),
            ("min_p", 0, 1, False),
            ("top_k", -1, 1_000_000, True),
            ("stream_interval", 1, 1024, True),
            ("min_tokens", 0, 10_000_000, True),
            ("thinking_token_budget", -1, 10_000_000, True),
            ("truncate_prompt_tokens", -1, 10_000_000, True),
            ("temperature", 0, 2, False),
            ("top_p", 0, 1, False),
            ("presence_penalty", -2, 2, False),
            ("frequency_penalty", -2, 2, False),
            ("repetition_penalty", 0.01, 10, False),
            ("n", 1, 8, True),
            ("best_of", 1, 8, True),
            ("logprobs", 0, 20, True),
            ("top_logprobs", 0, 20, True),
        ],
    )
    def test_both_ends_of_each_range_can_be_had_and_nothing_beyond(
        self, key: str, low: float, high: float, whole: bool
    ) -> None:
        step = 1 if whole else 0.001
        for value in (low, high):
            assert refusal_of(**{key: value}) is None, value
        for value in (low - step, high + step):
            assert refusal_of(**{key: value}) == (422, "out_of_range", key), value
        assert not whole or refusal_of(**{key: low + 0.5}) == (400, "invalid_type", key)
        absurds: list[Any] = ["1", [], {}]
        for absurd in absurds:
            assert refusal_of(**{key: absurd}) == (400, "invalid_type", key)
        assert refusal_of(**{key: None}) is None

    def test_true_is_no_number_but_asks_for_probabilities(self) -> None:
        assert refusal_of(temperature=True) == (400, "invalid_type", "temperature")
        assert refusal_of(top_logprobs=True) == (400, "invalid_type", "top_logprobs")
        assert refusal_of(logprobs=True) is None
        assert refusal_of(n=True) == (400, "invalid_type", "n")

    def test_the_ranges_are_the_models(self) -> None:
        own = {"temperature": [0.5, 1.0], "n": 2, "logprobs": 3}
        for key, good, bad in (("temperature", 0.5, 0.4), ("n", 2, 3), ("best_of", 2, 3), ("logprobs", 3, 4)):
            assert refusal_of(own, **{key: good}) is None
            assert refusal_of(own, **{key: bad}) == (422, "out_of_range", key)

    def test_other_numbers_fit_64_bits(self) -> None:
        """A larger one breaks the transport between the model server and its engine."""
        for good in (2**63 - 1, -(2**63), 0.5, True, "x" * 100):
            assert refusal_of(seed=good) is None
        for bad in (2**63, -(2**63) - 1, 1e30):
            assert refusal_of(seed=bad) == (422, "out_of_range", "seed")

    @pytest.mark.parametrize(
        ("body", "count"),
        [
            ({}, 1),
            ({"n": 1}, 1),
            ({"n": 3}, 3),
            ({"n": 2, "best_of": 4}, 4),
            ({"n": 4, "best_of": 2}, 4),
            ({"n": True}, 1),
            ({"n": "3"}, 1),
            ({"n": None}, 1),
            ({"n": 0}, 1),
        ],
    )
    def test_how_many_answers_are_reserved_for(self, body: dict[str, Any], count: int) -> None:
        assert sequences(body) == count

    def test_the_usual_is_not_looked_at(self) -> None:
        assert refusal_of(messages=2**80, max_tokens=2**80, stream=2**80, user=2**80) is None


class TestNotOffered:
    @pytest.mark.parametrize("key", ["kv_transfer_params", "prompt_embeds", "chat_template", "mm_processor_kwargs"])
    def test_what_is_between_model_servers(self, key: str) -> None:
        assert refusal_of(**{key: "x"}) == (422, "not_offered", key)

    def test_beam_search(self) -> None:
        assert refusal_of(use_beam_search=False) is None
        for value in (True, "yes", 0):
            assert refusal_of(use_beam_search=value) == (422, "not_offered", "use_beam_search")
            assert refusal_of({"beam_search": True}, use_beam_search=value) is None

    def test_probabilities_of_the_prompt(self) -> None:
        for value in (0, 1):
            assert refusal_of(prompt_logprobs=value) == (422, "not_offered", "prompt_logprobs")
        for value, refusal in ((-1, True), (0, False), (3, False), (4, True)):
            found = refusal_of({"prompt_logprobs": 3}, prompt_logprobs=value)
            assert found == ((422, "out_of_range", "prompt_logprobs") if refusal else None)

    @pytest.mark.parametrize(
        ("endpoint", "body", "refused"),
        [
            ("chat", {"echo": True}, True),
            ("chat", {"echo": False}, False),
            ("completions", {"echo": True}, False),
            ("completions", {"echo": True, "logprobs": 0}, True),
            ("completions", {"echo": False, "logprobs": 1}, False),
            ("completions", {"logprobs": 1}, False),
            ("embeddings", {"echo": True}, False),
        ],
    )
    def test_echo_is_another_name_for_them(self, endpoint: str, body: dict[str, Any], refused: bool) -> None:
        assert refusal_of(None, endpoint, **body) == ((422, "not_offered", "echo") if refused else None)
        assert refusal_of({"prompt_logprobs": 1}, endpoint, **body) is None

    def test_arguments_of_the_chat_template(self) -> None:
        assert refusal_of(chat_template_kwargs={"enable_thinking": False}) is None
        for name in ("chat_template", "tokenize"):
            assert refusal_of(chat_template_kwargs={name: 1}) == (422, "not_offered", "chat_template_kwargs")
        assert refusal_of(vllm_xargs={"tokenize": 1}) is None


class TestLists:
    @pytest.mark.parametrize(("key", "most", "longest"), [("stop", 16, 1024), ("bad_words", 64, 256)])
    def test_texts(self, key: str, most: int, longest: int) -> None:
        good: list[Any] = [["x"] * most, ["x" * longest], []]
        for value in good:
            assert refusal_of(**{key: value}) is None
        for value in (["x"] * (most + 1), ["x" * (longest + 1)], ["x", "x" * (longest + 1)]):
            assert refusal_of(**{key: value}) == (422, "out_of_range", key)
        for absurd in ([""], [5], {"a": 1}, 5):
            assert refusal_of(**{key: absurd}) == (400, "invalid_type", key)
        one = refusal_of(**{key: "x"})
        assert one is None if key == "stop" else one == (400, "invalid_type", key)

    @pytest.mark.parametrize("key", ["stop_token_ids", "allowed_token_ids", "logprob_token_ids"])
    def test_token_ids(self, key: str) -> None:
        for good in ([0, 2**31 - 1], [5] * 1024, []):
            assert refusal_of(**{key: good}) is None
        bad: list[Any] = [[-1], [2**31], [True], ["5"], [1.5], [5] * 1025]
        for value in bad:
            assert refusal_of(**{key: value}) == (422, "out_of_range", key)
        assert refusal_of(**{key: 5}) == (400, "invalid_type", key)

    def test_logit_bias(self) -> None:
        good: list[Any] = [{}, {"0": 100, "1234567890": -100}, {str(number): 0.5 for number in range(300)}]
        for value in good:
            assert refusal_of(logit_bias=value) is None
        bad: list[Any] = [
            {"5": 100.1},
            {"5": -100.1},
            {"12345678901": 1},
            {"x": 1},
            {"-1": 1},
            {"": 1},
            {"٣": 1},  # a digit, in a writing that the model server does not read
            {str(number): 0 for number in range(301)},
        ]
        for value in bad:
            assert refusal_of(logit_bias=value) == (422, "out_of_range", "logit_bias")
        for value in ([], {"5": "x"}, {"5": True}):
            assert refusal_of(logit_bias=value) == (400, "invalid_type", "logit_bias")


def nested(depth: int, *, lists: bool = False) -> Any:
    value: Any = [] if lists else {}
    for _ in range(depth - 1):
        value = [value] if lists else {"a": value}
    return value


class TestDepth:
    @pytest.mark.parametrize("lists", [False, True])
    def test_it_is_counted_and_no_further_than_it_matters(self, lists: bool) -> None:
        assert [depth_of(nested(depth, lists=lists), 9) for depth in (1, 2, 5, 9)] == [1, 2, 5, 9]
        assert depth_of(nested(50, lists=lists), 9) == 10
        assert depth_of("x", 9) == 1

    def test_the_deepest_part_counts(self) -> None:
        assert depth_of({"a": nested(3), "b": 5, "c": nested(2)}, 9) == 4
        assert depth_of([nested(3), 5, nested(2, lists=True)], 9) == 4

    @pytest.mark.parametrize("key", ["response_format", "structured_outputs", "metadata_of_mine"])
    def test_of_what_the_model_server_walks_through(self, key: str) -> None:
        few = guided(depth=4)
        assert refusal_of(few, **{key: nested(4)}) is None
        assert refusal_of(few, **{key: nested(5)}) == (422, "out_of_range", key)

    @pytest.mark.parametrize("key", ["response_format", "structured_outputs", "metadata_of_mine"])
    def test_its_size(self, key: str) -> None:
        few = guided(schema_bytes=20)
        for length, found in ((12, None), (13, (422, "out_of_range", key))):  # eight bytes are around it
            assert len(json.dumps({"a": "x" * length}, separators=(",", ":"))) == length + 8
            assert refusal_of(few, **{key: {"a": "x" * length}}) == found


def wherever(schema: Any) -> list[tuple[str, dict[str, Any]]]:
    """All places of a request that take a schema, and what the refusal calls them."""
    return [
        ("response_format.json_schema", {"response_format": {"json_schema": {"schema": schema}}}),
        ("response_format.json_schema", {"response_format": {"json_schema": {"json_schema": schema}}}),
        ("structured_outputs.json", {"structured_outputs": {"json": schema}}),
        ("structured_outputs.json", {"structured_outputs": {"json": json.dumps(schema)}}),
        ("tools[1].function.parameters", {"tools": [{}, {"function": {"parameters": schema}}]}),
    ]


def schema_refusals(schema: Any, **figures: int) -> set[tuple[int, str] | None]:
    """What is said of it, wherever it stands; the place is named each time."""
    found: set[tuple[int, str] | None] = set()
    for where, body in wherever(schema):
        refusal = refusal_of(guided(**figures), **body)
        assert refusal is None or refusal[2] == where
        found.add(None if refusal is None else refusal[:2])
    return found


FINE: set[tuple[int, str] | None] = {None}
TOO_MUCH: set[tuple[int, str] | None] = {(422, "out_of_range")}
INVALID: set[tuple[int, str] | None] = {(422, "invalid_schema")}


class TestSchemas:
    @pytest.mark.parametrize("schema", [None, True, {}, {"type": "object"}, {"enum": []}, {"pattern": 5}, {"$ref": 5}])
    def test_usual_ones(self, schema: Any) -> None:
        assert schema_refusals(schema) == FINE

    @pytest.mark.parametrize("schema", [5, [], [1]])
    def test_what_is_none(self, schema: Any) -> None:
        assert schema_refusals(schema) == {(400, "invalid_type")}

    @pytest.mark.parametrize(
        "key", ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"]
    )
    def test_counts(self, key: str) -> None:
        """The engine unrolls them."""
        assert schema_refusals({key: 5}, repeats=5) == FINE
        assert schema_refusals({key: 6}, repeats=5) == TOO_MUCH
        assert schema_refusals({key: 5.5}, repeats=5) == TOO_MUCH
        assert schema_refusals({key: "6"}, repeats=5) == FINE
        assert schema_refusals({"minimum": 6}, repeats=5) == FINE
        assert schema_refusals({"items": [{"x": {key: 6}}]}, repeats=5) == TOO_MUCH

    def test_choices(self) -> None:
        assert schema_refusals({"enum": [1, 2, 3]}, choices=3) == FINE
        assert schema_refusals({"enum": [1, 2, 3, 4]}, choices=3) == TOO_MUCH
        assert schema_refusals({"enum": "text"}, choices=3) == FINE
        assert schema_refusals({"required": ["a", "b", "c", "d"]}, choices=3) == FINE
        assert schema_refusals({"anyOf": [{"enum": [1, 2, 3, 4]}]}, choices=3) == TOO_MUCH

    @pytest.mark.parametrize(
        ("pattern", "good"),
        [
            ("x" * 20, True),
            ("x" * 21, False),
            ("a{5}", True),
            ("a{6}", False),
            ("a{1,5}", True),
            ("a{1,6}", False),
            ("a{,6}", False),
            ("a{6,}", False),
            ("a{6,1}", False),
            ("a{5}{5}", True),  # 25, which is five times five
            ("a{5}{5}{2}", False),
            ("a{ 6 }", False),
            ("a{ 1 , 6 }", False),
            ("a{ , 6 }", False),
            ("a{ 6 , }", False),
            ("a{ 5 , }", True),
            ("a{x}", True),
            ("a{0}{5}{5}", True),
            ("a{99999999999999}", False),
        ],
    )
    def test_patterns(self, pattern: str, good: bool) -> None:
        assert schema_refusals({"pattern": pattern}, pattern=20, repeats=5) == (FINE if good else TOO_MUCH)
        assert schema_refusals({"items": {"pattern": pattern}}, pattern=20, repeats=5) == (FINE if good else TOO_MUCH)

    @pytest.mark.parametrize("text", ["{" + " " * 8000 + "," + " " * 8000, "{ " * 8000, "{" + "1 " * 8000, "{1" * 8000])
    def test_a_repetition_without_end_is_read_once(self, text: str) -> None:
        """A pattern that goes back for each space would hold the gateway up for hours."""
        assert refusal_of(structured_outputs={"grammar": text}) is None

    @pytest.mark.parametrize(
        "schema",
        [
            {"properties": {"a": {"$ref": "#"}}},
            {"items": {"$ref": "#/"}},
            {"$defs": {"a/b~c": {}}, "$ref": "#/$defs/a~1b~0c"},
            {"anyOf": [{}, {}], "items": {"$ref": "#/anyOf/1"}},
            {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}},
            {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {}}},  # twice is no circle
            {"allOf": "text", "anyOf": [5]},
        ],
    )
    def test_references_that_can_be_used(self, schema: Any) -> None:
        assert schema_refusals(schema) == FINE

    @pytest.mark.parametrize(
        "schema",
        [
            {"$ref": "#"},
            {"$ref": "#/"},
            {"allOf": [{"$ref": "#"}]},
            {"anyOf": [{}, {"$ref": "#"}]},
            {"oneOf": [{"$ref": "#"}]},
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
            {"items": [{"$ref": "#/items/0"}]},
            {"$ref": "http://example.org/schema"},
            {"$ref": "#/nowhere"},
            {"anyOf": [{}], "items": {"$ref": "#/anyOf/1"}},
            {"anyOf": [{}], "items": {"$ref": "#/anyOf/x"}},
            {"type": "x", "items": {"$ref": "#/type/0"}},
        ],
    )
    def test_references_that_lead_nowhere_or_go_round(self, schema: Any) -> None:
        assert schema_refusals(schema) == INVALID

    def test_a_long_chain_of_references(self) -> None:
        def chain(length: int) -> dict[str, Any]:
            names = {f"{number}": {"$ref": f"#/d/{number + 1}"} for number in range(length)}
            return {"d": {**names, f"{length}": {}}, "items": {"$ref": "#/d/0"}}

        def turned(schema: dict[str, Any]) -> dict[str, Any]:
            return {"d": dict(reversed(schema["d"].items())), "items": schema["items"]}

        # of depth 5, twenty steps: the item, and those that it leads to
        for order in (dict, turned):
            assert schema_refusals(order(chain(18)), depth=5) == FINE
            assert schema_refusals(order(chain(19)), depth=5) == TOO_MUCH

    def test_many_ways_to_the_same_are_looked_at_once(self) -> None:
        """Thirty that each name the next twice: a small schema must not stop the gateway for minutes."""
        definitions: dict[str, Any] = {
            f"{number}": {"anyOf": [{"$ref": f"#/$defs/{number + 1}"}] * 2} for number in range(30)
        }
        assert schema_refusals({"$defs": {**definitions, "30": {}}, "$ref": "#/$defs/0"}) == FINE
        assert schema_refusals({"$defs": {**definitions, "30": {"$ref": "#/$defs/0"}}}) == INVALID


class TestStructured:
    def test_a_schema_that_comes_as_a_text(self) -> None:
        for key in ("json", "structural_tag"):
            where = f"structured_outputs.{key}"
            assert refusal_of(structured_outputs={key: "{"}) == (400, "invalid_json", where)
            few = guided(schema_bytes=40)
            text = '{"a":"' + "x" * 32 + '"}'
            assert len(text) == 40
            assert refusal_of(few, structured_outputs={key: text + " "}) == (422, "out_of_range", where)
            # the whole has a bound of its own
            assert refusal_of(few, structured_outputs={key: text}) == (422, "out_of_range", "structured_outputs")

    @pytest.mark.parametrize("key", ["regex", "whitespace_pattern"])
    def test_patterns(self, key: str) -> None:
        few = guided(pattern=9, repeats=5)
        assert refusal_of(few, structured_outputs={key: "x" * 9}) is None
        for bad in ("x" * 10, "a{6}"):
            assert refusal_of(few, structured_outputs={key: bad}) == (
                422,
                "out_of_range",
                f"structured_outputs.{key}",
            )

    def test_a_grammar(self) -> None:
        few = guided(grammar=9, repeats=5)
        where = (422, "out_of_range", "structured_outputs.grammar")
        assert refusal_of(few, structured_outputs={"grammar": "x" * 9}) is None
        assert refusal_of(few, structured_outputs={"grammar": "x" * 10}) == where
        assert refusal_of(few, structured_outputs={"grammar": "a{6}"}) == where
        assert refusal_of(few, structured_outputs={"grammar": ["x" * 10]}) is None

    def test_choices(self) -> None:
        few = guided(choices=2)
        assert refusal_of(few, structured_outputs={"choice": ["a", "b"]}) is None
        assert refusal_of(few, structured_outputs={"choice": ["a", "b", "c"]}) == (
            422,
            "out_of_range",
            "structured_outputs.choice",
        )

    @pytest.mark.parametrize("key", ["response_format", "structured_outputs"])
    def test_no_objects(self, key: str) -> None:
        absurds: list[Any] = ["x", [], 5]
        for absurd in absurds:
            assert refusal_of(**{key: absurd}) == (400, "invalid_type", key)

    def test_a_format_that_lacks_its_schema(self) -> None:
        assert refusal_of(response_format={"type": "json_object"}) is None
        for lacking in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": None}):
            assert refusal_of(response_format=lacking) == (400, "missing_required_parameter", "response_format")
        assert refusal_of(response_format={"type": "json_schema", "json_schema": {"name": "x"}}) is None

    def test_a_schema_in_a_format_hides_nothing_beside_it(self) -> None:
        bad = {"$ref": "#"}
        tag = {"structures": [{"begin": "<", "schema": bad, "end": ">"}]}
        for form in ({"json_schema": {}, **tag}, {"json_schema": {"schema": {}, "json_schema": bad}}):
            refusal = refusal_of(response_format={"type": "structural_tag", **form})
            assert refusal is not None
            assert refusal[:2] == (422, "invalid_schema")

    def test_the_schema_of_a_nested_class_as_the_sdks_write_it(self) -> None:
        """Its references start at the schema, not at the form around it."""
        schema = {
            "$defs": {"Step": {"type": "object", "properties": {"text": {"type": "string"}}}},
            "type": "object",
            "properties": {"steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}}},
        }
        form = {"type": "json_schema", "json_schema": {"name": "Steps", "strict": True, "schema": schema}}
        assert refusal_of(response_format=form) is None

    def test_tools(self) -> None:
        assert refusal_of(tools={}) == (400, "invalid_type", "tools")
        few = {"tools": 2, **guided(schema_bytes=60)}
        assert refusal_of(few, tools=[{}, 5]) is None
        assert refusal_of(few, tools=[{}, {}, {}]) == (422, "out_of_range", "tools")
        assert refusal_of(few, tools=[{"function": {"description": "x" * 60}}]) == (
            422,
            "out_of_range",
            "tools[0]",
        )
        bad = {"function": {"parameters": {"$ref": "#"}}}
        assert refusal_of(tools=[{"function": None}, bad]) == (422, "invalid_schema", "tools[1].function.parameters")


class TestTags:
    """A structural tag has schemas and patterns at any place."""

    def told(self, tag: Any, **figures: int) -> set[tuple[int, str] | None]:
        found: set[tuple[int, str] | None] = set()
        for body in (
            {"response_format": {"type": "structural_tag", "format": tag}},
            {"structured_outputs": {"structural_tag": {"format": tag}}},
            {"structured_outputs": {"structural_tag": json.dumps({"format": tag})}},
        ):
            refusal = refusal_of(guided(**figures), **body)
            found.add(None if refusal is None else refusal[:2])
        return found

    @pytest.mark.parametrize(
        "wrap", [lambda inner: inner, lambda inner: [5, {"x": inner}], lambda inner: {"a": [inner]}]
    )
    def test_wherever_they_stand(self, wrap: Any) -> None:
        assert self.told(wrap({"schema": {"type": "string"}})) == FINE
        for key in ("schema", "json_schema"):
            assert self.told(wrap({key: {"$ref": "#"}})) == INVALID
        for key in ("pattern", "regex", "grammar"):
            assert self.told(wrap({key: "a{5}"}), repeats=5) == FINE
            assert self.told(wrap({key: "a{6}"}), repeats=5) == TOO_MUCH
        assert self.told(wrap({"begin": "a{6}"}), repeats=5) == FINE
        assert self.told(wrap({"pattern": ["a{6}"]}), repeats=5) == FINE

    def test_how_deep(self) -> None:
        # the object around it is one, and the text within the innermost another
        assert self.told(nested(3), depth=5) == FINE
        assert self.told(nested(6), depth=5) == TOO_MUCH
