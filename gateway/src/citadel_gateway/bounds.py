"""What a request may ask of a model, parameter by parameter, beyond its size.

A model server checks much of this itself, and some of it too late: `n: 128` fills its queue, a schema that refers to
itself ends in a 500, a number of more than 64 bits breaks its transport. What one request can do to others is bounded
here, and the client is told which parameter it was. What the model server refuses cleanly is left to it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from citadel_gateway.config import Bounds, Guided
    from citadel_gateway.fleet import Model

_USUAL = frozenset(
    ("messages", "prompt", "input", "model", "stream", "stream_options", "user", "metadata", "store", "max_tokens")
)
_INT64 = 2**63
# (low, high, whole)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "length_penalty": (-10.0, 10.0, False),
    "min_p": (0.0, 1.0, False),
    "top_k": (-1.0, 1_000_000.0, True),
    "stream_interval": (1.0, 1024.0, True),
    "min_tokens": (0.0, 10_000_000.0, True),
    "thinking_token_budget": (-1.0, 10_000_000.0, True),
    "truncate_prompt_tokens": (-1.0, 10_000_000.0, True),
}
# those that the model's section bounds, and by which of its keys
_OWN_RANGES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "penalties",
    "frequency_penalty": "penalties",
    "repetition_penalty": "repetition_penalty",
}
# between model servers, never a client's
_INTERNAL = frozenset(
    ("kv_transfer_params", "ec_transfer_params", "prompt_embeds", "chat_template", "mm_processor_kwargs")
)
_LISTS = frozenset(("stop", "bad_words", "logit_bias", "stop_token_ids", "allowed_token_ids", "logprob_token_ids"))
_GUIDED = frozenset(("response_format", "structured_outputs", "tools"))
_INTERNAL_KWARGS = frozenset(("chat_template", "tokenize", "tokenizer", "conversation", "return_tensors"))
# {3}, {3,}, {,5}, {3,5}: each space has one place in it, so that a long run of them is read once
_REPEAT = re.compile(r"\{\s*(?:(\d+)\s*)?(?:,\s*(?:(\d+)\s*)?)?\}")
_COUNTS = frozenset(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"))
# where a schema stands for the same value, so that going round never gets anywhere
_SAME = ("allOf", "anyOf", "oneOf")


def check_parameters(data: dict[str, Any], model: Model, endpoint: str) -> None:
    """Refuse what would hurt others; the usual request has nothing to check."""
    for key, value in data.items():
        if key in _USUAL or value is None:
            continue
        _check(key, value, model)
    if endpoint == "completions":
        echo = data.get("echo") is True and data.get("logprobs") is not None
    else:
        echo = data.get("echo") is True and endpoint == "chat"
    if echo and not model.settings.bounds.prompt_logprobs:
        # echo asks for them by another name
        raise _not_offered("echo", model, "probabilities of the prompt; leave echo out")


def sequences(data: dict[str, Any]) -> int:
    """How many answers to each prompt the model works at."""
    most = 1
    for key in ("n", "best_of"):
        value = data.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > most:
            most = value
    return most


def check_count(key: str, count: int, most: int, model: Model) -> None:
    if count > most:
        raise Refusal(422, "out_of_range", f"{key} has {count} entries; {model.name} takes at most {most}.", param=key)


def _check(key: str, value: Any, model: Model) -> None:
    bounds: Bounds = model.settings.bounds
    span = _span(key, value, bounds)
    if span is not None:
        _number(key, value, span, model)
    elif key in _GUIDED:
        _check_guided(key, value, bounds, model)
    elif key in _LISTS:
        _check_list(key, value, bounds, model)
    elif key == "use_beam_search":
        if value is not False and not bounds.beam_search:
            raise _not_offered(key, model, "beam search; use n")
    elif key in _INTERNAL:
        raise _not_offered(key, model, f"{key}; leave it out")
    elif key == "prompt_logprobs":
        # even 0 of them has the engine hold a row of its whole vocabulary for each token of the prompt
        raise _not_offered(key, model, "probabilities of the prompt; leave prompt_logprobs out")
    elif isinstance(value, dict):
        if key == "chat_template_kwargs":
            for name in value:
                if name in _INTERNAL_KWARGS:
                    raise _not_offered(key, model, f"{name} in chat_template_kwargs; leave it out")
        _small(key, value, bounds.guided)
    elif isinstance(value, int | float) and not isinstance(value, bool) and not -_INT64 <= value < _INT64:
        raise Refusal(422, "out_of_range", f"{key} does not fit 64 bits.", param=key)


def _span(key: str, value: Any, bounds: Bounds) -> tuple[float, float, bool] | None:
    """Low, high and whether it must be whole, of a parameter that is a number."""
    span = _RANGES.get(key)
    if span is not None:
        return span
    own = _OWN_RANGES.get(key)
    if own is not None:
        low, high = getattr(bounds, own)
        return low, high, False
    if key in ("n", "best_of"):
        return 1.0, float(bounds.n), True
    if key == "top_logprobs" or (key == "logprobs" and not isinstance(value, bool)):
        return 0.0, float(bounds.logprobs), True
    if key == "prompt_logprobs" and bounds.prompt_logprobs:
        return 0.0, float(bounds.prompt_logprobs), True
    return None


def _check_list(key: str, value: Any, bounds: Bounds, model: Model) -> None:
    if key == "stop":
        _texts(key, [value] if isinstance(value, str) else value, bounds.stop, 1024, model)
    elif key == "bad_words":
        _texts(key, value, bounds.bad_words, 256, model)
    elif key == "logit_bias":
        _logit_bias(value, bounds.logit_bias, model)
    else:
        _token_ids(key, value, bounds.token_ids, model)


def _check_guided(key: str, value: Any, bounds: Bounds, model: Model) -> None:
    if key == "response_format":
        _response_format(value, bounds.guided)
    elif key == "structured_outputs":
        _structured(value, bounds.guided, model)
    else:
        _tools(value, bounds, model)


def _number(key: str, value: Any, span: tuple[float, float, bool], model: Model) -> None:
    low, high, whole = span
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and not isinstance(value, int)):
        raise Refusal(400, "invalid_type", f"{key} must be a {'whole ' if whole else ''}number.", param=key)
    if not low <= value <= high:
        raise Refusal(422, "out_of_range", f"{key} is {value:g}; {model.name} takes {low:g} to {high:g}.", param=key)


def _texts(key: str, value: Any, most: int, longest: int, model: Model) -> None:
    if not isinstance(value, list):
        raise Refusal(400, "invalid_type", f"{key} must be a text or a list of texts.", param=key)
    check_count(key, len(value), most, model)
    for item in value:
        if not isinstance(item, str) or not item:
            raise Refusal(400, "invalid_type", f"{key} takes texts that are not empty.", param=key)
        if len(item) > longest:
            raise Refusal(422, "out_of_range", f"{key} takes texts of at most {longest} characters.", param=key)


def _token_ids(key: str, value: Any, most: int, model: Model) -> None:
    if not isinstance(value, list):
        raise Refusal(400, "invalid_type", f"{key} must be a list of token ids.", param=key)
    check_count(key, len(value), most, model)
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 2**31:
            raise Refusal(422, "out_of_range", f"{key} takes token ids, whole numbers from 0.", param=key)


def _logit_bias(value: Any, most: int, model: Model) -> None:
    key = "logit_bias"
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_type", "logit_bias must map token ids to numbers.", param=key)
    check_count(key, len(value), most, model)
    for token, bias in value.items():
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) <= 10):
            raise Refusal(422, "out_of_range", "logit_bias takes token ids as its keys.", param=key)
        _number(key, bias, (-100.0, 100.0, False), model)


def _response_format(value: Any, guided: Guided) -> None:
    key = "response_format"
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_type", "response_format must be an object.", param=key)
    form = value.get("json_schema")
    if isinstance(form, dict):
        # references in a schema start at the schema, and not at what is around it
        for name in ("schema", "json_schema"):
            _schema(f"{key}.json_schema", form.get(name), guided)
    elif value.get("type") == "json_schema":
        raise Refusal(400, "missing_required_parameter", "response_format.json_schema is missing.", param=key)
    _tags(key, {name: item for name, item in value.items() if name != "json_schema"}, guided, 0)
    _small(key, value, guided)


def _structured(value: Any, guided: Guided, model: Model) -> None:
    key = "structured_outputs"
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_type", "structured_outputs must be an object.", param=key)
    _schema(f"{key}.json", _parsed(f"{key}.json", value.get("json"), guided), guided)
    for name in ("regex", "whitespace_pattern"):
        pattern = value.get(name)
        if isinstance(pattern, str):
            _pattern(f"{key}.{name}", pattern, guided)
    grammar = value.get("grammar")
    if isinstance(grammar, str) and len(grammar) > guided.grammar:
        raise _too_much(f"{key}.grammar", f"{len(grammar)} characters", guided.grammar)
    if isinstance(grammar, str):
        _repeats(f"{key}.grammar", grammar, guided)
    choice = value.get("choice")
    if isinstance(choice, list):
        check_count(f"{key}.choice", len(choice), guided.choices, model)
    tag = _parsed(f"{key}.structural_tag", value.get("structural_tag"), guided)
    if isinstance(tag, dict):
        _tags(f"{key}.structural_tag", tag, guided, 0)
    _small(key, value, guided)


def _tools(value: Any, bounds: Bounds, model: Model) -> None:
    if not isinstance(value, list):
        raise Refusal(400, "invalid_type", "tools must be a list.", param="tools")
    check_count("tools", len(value), bounds.tools, model)
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            continue
        where = f"tools[{index}].function.parameters"
        _schema(where, function.get("parameters"), bounds.guided)
        _small(f"tools[{index}]", tool, bounds.guided)


def _parsed(where: str, value: Any, guided: Guided) -> Any:
    """A schema may come as a text."""
    if not isinstance(value, str):
        return value
    if len(value) > guided.schema_bytes:
        raise _too_much(where, f"{len(value)} characters", guided.schema_bytes)
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise Refusal(400, "invalid_json", f"{where} is not JSON.", param=where) from None


def _small(where: str, value: dict[str, Any], guided: Guided) -> None:
    """Size and depth of an object that the model server will walk through."""
    if depth_of(value, guided.depth + 1) > guided.depth:
        raise _too_much(where, "deeper nesting", guided.depth)
    size = len(orjson.dumps(value))
    if size > guided.schema_bytes:
        raise _too_much(where, f"{size} bytes", guided.schema_bytes)


def depth_of(value: Any, most: int) -> int:
    """How deeply lists and objects are nested; it looks no further than `most`."""
    if most <= 0:
        return 1
    inner = 0
    if isinstance(value, dict):
        for item in value.values():
            if isinstance(item, dict | list):
                inner = max(inner, depth_of(item, most - 1))
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                inner = max(inner, depth_of(item, most - 1))
    return inner + 1


def _tags(where: str, value: Any, guided: Guided, depth: int) -> None:
    """Schemas and patterns wherever a structural tag has them."""
    if depth > guided.depth:
        raise _too_much(where, "deeper nesting", guided.depth)
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("schema", "json_schema") and isinstance(item, dict):
                _schema(f"{where}.{key}", item, guided)
            elif key in ("pattern", "regex", "grammar") and isinstance(item, str):
                _pattern(f"{where}.{key}", item, guided)
            else:
                _tags(where, item, guided, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _tags(where, item, guided, depth + 1)


def _schema(where: str, schema: Any, guided: Guided) -> None:
    if schema is None or isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise Refusal(400, "invalid_type", f"{where} must be a JSON schema.", param=where)
    _small(where, schema, guided)
    _walk_schema(where, schema, _References(where, schema, guided.depth * 4), guided)


def _walk_schema(where: str, node: Any, references: _References, guided: Guided) -> None:
    if isinstance(node, list):
        for item in node:
            _walk_schema(where, item, references, guided)
        return
    if not isinstance(node, dict):
        return
    for key, item in node.items():
        if key == "pattern" and isinstance(item, str):
            _pattern(where, item, guided)
        elif key in _COUNTS and isinstance(item, int | float) and not item <= guided.repeats:
            raise _too_much(where, f"{key} {item:g}", guided.repeats)
        elif key == "enum" and isinstance(item, list) and len(item) > guided.choices:
            raise _too_much(where, f"an enum of {len(item)}", guided.choices)
        elif isinstance(item, dict | list):
            _walk_schema(where, item, references, guided)
    references.follow(node)


class _References:
    """A schema that stands for itself before it says anything: `{"$ref": "#"}`, directly or by way of others.

    One that comes back to itself inside a property or an item is a tree or a list, and can be used. How many steps a
    node leads on is found out once: where each of a chain names the next one twice, there are a power of two of ways.
    """

    __slots__ = ("most", "root", "seen", "steps", "where")

    def __init__(self, where: str, root: dict[str, Any], most: int) -> None:
        self.where = where
        self.root = root
        self.most = most
        self.seen: list[int] = []  # on the way to where it is now
        self.steps: dict[int, int] = {}

    def follow(self, node: Any) -> int:
        """How many steps there are from this node on, itself included."""
        if not isinstance(node, dict):
            return 0
        found = self.steps.get(id(node))
        if found is None:
            if id(node) in self.seen:
                raise Refusal(
                    422,
                    "invalid_schema",
                    f"{self.where} refers to itself by $ref without end; break the circle.",
                    param=self.where,
                )
            self.seen.append(id(node))
            self._bound(0)
            found = self._further(node) + 1
            self.seen.pop()
            self.steps[id(node)] = found
        self._bound(found)
        return found

    def _further(self, node: dict[str, Any]) -> int:
        most = 0
        reference = node.get("$ref")
        if isinstance(reference, str):
            most = self.follow(_target(self.where, reference, self.root))
        for key in _SAME:
            parts = node.get(key)
            if isinstance(parts, list):
                for part in parts:
                    most = max(most, self.follow(part))
        return most

    def _bound(self, further: int) -> None:
        if len(self.seen) + further > self.most:
            raise _too_much(self.where, "a longer chain of references", self.most)


def _target(where: str, reference: str, root: dict[str, Any]) -> Any:
    if reference in ("#", "#/"):
        return root
    if not reference.startswith("#/"):
        raise Refusal(
            422,
            "invalid_schema",
            f"{where}: $ref {reference[:80]!r} leads outside; put it into the schema.",
            param=where,
        )
    node: Any = root
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise Refusal(
                422, "invalid_schema", f"{where}: $ref {reference[:80]!r} leads nowhere; correct it.", param=where
            )
    return node


def _pattern(where: str, pattern: str, guided: Guided) -> None:
    if len(pattern) > guided.pattern:
        raise _too_much(where, f"{len(pattern)} characters", guided.pattern)
    _repeats(where, pattern, guided)


def _repeats(where: str, pattern: str, guided: Guided) -> None:
    """Counted repetitions are unrolled by the engine, and multiply where they are nested."""
    most = guided.repeats * guided.repeats
    product = 1
    for found in _REPEAT.finditer(pattern):
        count = max(int((found[1] or "0")[:10]), int((found[2] or "0")[:10]), 1)
        if count > guided.repeats:
            raise _too_much(where, f"{count} repetitions", guided.repeats)
        product *= count
        if product > most:
            raise _too_much(where, f"{product} nested repetitions", most)


def _not_offered(key: str, model: Model, what: str) -> Refusal:
    return Refusal(422, "not_offered", f"{model.name} does not offer {what}.", param=key)


def _too_much(where: str, what: str, most: int) -> Refusal:
    return Refusal(422, "out_of_range", f"{where} has {what}; at most {most} can be served.", param=where)
