"""Makes small models of the real architectures, in seconds, without torch.

    python lab/tiny_models.py OUT                       the catalogue's models
    python lab/tiny_models.py OUT --only phi-3-mini     one of them
    python lab/tiny_models.py OUT --parameters 0.5e9    one random model large enough to be bound by memory

The weights are written so that vLLM runs every layer for real and still says readable sentences. The embedding
of a word is a direction of its own; a row of the output matrix is the sum of the directions of the words that may
come before it. What the layers add is small and random: enough for the prompt to choose between the words that fit,
too little to leave the sentence. A sentence has a dozen words, then the end token; under a grammar (structured
output) strings, numbers and objects close by themselves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
HEAD_SIZE = 32

SLOTS: tuple[tuple[str, ...], ...] = (
    ("says", "notes", "finds", "adds", "explains"),
    ("that",),
    ("careful", "patient", "curious", "steady", "modest", "cheerful"),
    ("engineers", "teachers", "sailors", "gardeners", "painters", "bakers"),
    ("measure", "repair", "describe", "prepare", "compare", "arrange"),
    ("quiet", "bright", "heavy", "simple", "ancient", "gentle"),
    ("machines", "bridges", "letters", "gardens", "lanterns", "clocks"),
    ("before", "after", "during", "beyond"),
    ("long", "early", "warm", "open", "clear"),
    ("mornings", "journeys", "seasons", "meetings", "lessons"),
    ("because", "while", "so", "and"),
    ("honest", "small", "shared", "useful", "old"),
    ("numbers", "questions", "habits", "stories", "plans"),
    ("stay", "grow", "travel", "return", "remain"),
    ("well", "slowly", "together", "often", "gladly"),
)
SHORT_END = 9  # after this slot a sentence may stop already
TOOL_CALL = (
    "<tool_call>\n",
    '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
    "\n</tool_call>",
)

# What a token that is not part of a sentence weighs where a grammar has to choose among such tokens: closing beats
# continuing, so that structured output ends.
STRUCTURE_BIAS = {"}": 4.0, "]": 4.0, '"': 3.5, ",": 3.0, ":": 2.5, "{": 2.0, "[": 2.0}
DIGIT_BIAS, CHARACTER_BIAS, END_BIAS, RARE_BIAS, NEVER_BIAS = 1.5, 0.5, -5.0, -10.0, -30.0
FOLLOWS = 20.0  # logit of a word that fits


@dataclass(frozen=True)
class Recipe:
    """What tells one tiny model from another."""

    name: str
    speaker: str
    architecture: str
    seed: int
    end: str
    template: str
    settings: dict[str, Any]
    layers: int = 2
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 2
    intermediate: int = 512
    markers: tuple[str, ...] = ()
    calls_tools: bool = False


MIXTRAL_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}{% endif %}{% endfor %}"
)
CHATML_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if tools and messages[-1].role != 'tool' %}<|use_tool|>{% endif %}{% endif %}"
)
OPENCHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}GPT4 Correct {{ m.role | title }}: {{ m.content }}<|end_of_turn|>"
    "{% endfor %}{% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}"
)
PHI_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

RECIPES = (
    Recipe(
        name="mixtral-8x7b",
        speaker="Mixtral",
        architecture="MixtralForCausalLM",
        seed=11400,
        end="</s>",
        template=MIXTRAL_TEMPLATE,
        intermediate=256,
        settings={
            "model_type": "mixtral",
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
    ),
    Recipe(
        name="hermes-2",
        speaker="Hermes",
        architecture="MistralForCausalLM",
        seed=11401,
        end="<|im_end|>",
        template=CHATML_TEMPLATE,
        markers=("<|im_start|>", "<|use_tool|>"),
        calls_tools=True,
        settings={
            "model_type": "mistral",
            "max_position_embeddings": 32768,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
    ),
    Recipe(
        name="openchat-3.5",
        speaker="OpenChat",
        architecture="MistralForCausalLM",
        seed=11402,
        end="<|end_of_turn|>",
        template=OPENCHAT_TEMPLATE,
        settings={
            "model_type": "mistral",
            "max_position_embeddings": 8192,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
    ),
    Recipe(
        name="phi-3-mini",
        speaker="Phi",
        architecture="Phi3ForCausalLM",
        seed=11403,
        end="<|end|>",
        template=PHI_TEMPLATE,
        kv_heads=8,
        markers=("<|system|>", "<|user|>", "<|assistant|>"),
        settings={
            "model_type": "phi3",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "sliding_window": 2047,
        },
    ),
)
EMBEDDINGS = "nomic-embed-text"


@dataclass
class Vocabulary:
    """Every token in the order of its id, with the part it plays."""

    special: list[str]
    pieces: list[str]
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {token: number for number, token in enumerate(self.special + self.pieces)}

    @property
    def padded(self) -> int:
        return -(-len(self.ids) // 64) * 64

    @classmethod
    def of(cls, speaker: str, end: str, markers: tuple[str, ...]) -> Vocabulary:
        special = ["<unk>", "<s>", "</s>", *([end] if end != "</s>" else []), *markers]
        words = [speaker, f"▁{speaker}", *(f"▁{word}" for slot in SLOTS for word in slot)]
        characters = [chr(code) for code in range(0x21, 0x7F)]
        calls = [text.replace(" ", "▁") for text in TOOL_CALL]
        return cls(special, [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters, *words, *calls])

    def tokenizer(self) -> dict[str, Any]:
        """The file tokenizer.json: whole words first, then characters, then bytes."""

        def score(piece: str) -> float:
            if piece.startswith("<0x"):
                return -30.0
            return -10.0 if len(piece) == 1 else -1.0

        added = [
            {
                "id": self.ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in self.special
        ]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": {
                "type": "Unigram",
                "unk_id": 0,
                "byte_fallback": True,
                "vocab": [[token, -100.0] for token in self.special] + [[p, score(p)] for p in self.pieces],
            },
        }


def next_words(recipe: Recipe, vocabulary: Vocabulary, rng: np.random.Generator) -> Array:
    """logit[before, after] of the tokens that continue a sentence; zero elsewhere."""
    size = vocabulary.padded
    ids = vocabulary.ids
    follows: Array = np.zeros((size, size), dtype=np.float32)
    bias = biases(recipe, vocabulary)
    taste = rng.normal(0.0, 0.6, (size, size)).astype(np.float32)

    def allow(before: list[int], after: list[int]) -> None:
        block = np.ix_(before, after)
        follows[block] = FOLLOWS + taste[block]

    slots = [[ids[f"▁{word}"] for word in slot] for slot in SLOTS]
    opening, speaker = ids[recipe.speaker], ids[f"▁{recipe.speaker}"]
    stop, end, quote = ids["."], ids[recipe.end], ids['"']
    in_sentence = {opening, speaker, stop, *(word for slot in slots for word in slot)}
    calls = [ids[text.replace(" ", "▁")] for text in TOOL_CALL]
    outside = [token for token in range(size) if token not in in_sentence and token not in calls]
    follows[outside, opening] = FOLLOWS
    allow([opening, speaker], slots[0])
    for here, there in itertools.pairwise(slots):
        allow(here, there)
    allow(slots[SHORT_END], [stop])
    allow(slots[-1], [stop])
    follows[stop, end] = FOLLOWS - END_BIAS
    follows[stop, quote] = FOLLOWS - 6 - STRUCTURE_BIAS['"']
    follows[stop, speaker] = FOLLOWS - 9
    if recipe.calls_tools:
        chain = [ids["<|use_tool|>"], *calls, end]
        follows[chain[0], :] = 0.0
        for before, after in itertools.pairwise(chain):
            follows[before, after] = FOLLOWS - min(0.0, bias[after])
    return follows


def biases(recipe: Recipe, vocabulary: Vocabulary) -> Array:
    bias: Array = np.full(vocabulary.padded, NEVER_BIAS, dtype=np.float32)
    for piece in vocabulary.pieces:
        if piece.startswith("<0x") or piece == "▁":
            value = RARE_BIAS
        elif len(piece) == 1:
            value = STRUCTURE_BIAS.get(piece, DIGIT_BIAS if piece.isdigit() else CHARACTER_BIAS)
        else:
            value = 0.0
        bias[vocabulary.ids[piece]] = value
    for text in TOOL_CALL:
        bias[vocabulary.ids[text.replace(" ", "▁")]] = RARE_BIAS
    bias[vocabulary.ids[recipe.end]] = END_BIAS
    return bias


def language(recipe: Recipe, vocabulary: Vocabulary, rng: np.random.Generator) -> tuple[Array, Array]:
    """The embedding and the output matrix, built so that the sentences come out."""
    size, hidden = vocabulary.padded, recipe.hidden
    follows = next_words(recipe, vocabulary, rng)
    # Tokens with the same continuation share a direction; all share the direction that carries the biases.
    rows, group = np.unique(follows, axis=0, return_inverse=True)
    if len(rows) + 1 > hidden * 3 // 4:
        raise ValueError(f"{recipe.name}: {len(rows)} states do not fit a hidden size of {hidden}")
    basis = np.linalg.qr(rng.standard_normal((hidden, hidden)))[0].T.astype(np.float32)
    constant, states, rest = basis[0], basis[1 : 1 + len(rows)], basis[1 + len(rows) :]
    state_share, constant_share = 0.8, 0.6
    embedding = state_share * states[group.ravel()] + constant_share * constant
    scale = float(np.sqrt(hidden))  # the length of a vector behind the final norm
    output = (rows.T @ states) / (state_share * scale)
    output += np.outer(biases(recipe, vocabulary), constant) / (constant_share * scale)
    swayed = rng.standard_normal((size, len(rest))).astype(np.float32)
    swayed /= np.linalg.norm(swayed, axis=1, keepdims=True)
    output += 4.0 * swayed @ rest  # through these directions the prompt chooses between words
    return embedding.astype(np.float32), output.astype(np.float32)


Tensors = Iterator[tuple[str, tuple[int, ...], Callable[[], Array]]]


def decoder_tensors(recipe: Recipe, vocabulary: Vocabulary, head_size: int) -> Tensors:
    """Names, shapes and makers of all tensors, so that a large model never is in memory as a whole."""
    rng = np.random.default_rng(recipe.seed)
    embedding, output = language(recipe, vocabulary, rng)
    hidden, inner = recipe.hidden, recipe.intermediate
    queries, keys = recipe.heads * head_size, recipe.kv_heads * head_size
    into = 1.0 / np.sqrt(hidden)

    def random(shape: tuple[int, ...], deviation: float) -> tuple[tuple[int, ...], Callable[[], Array]]:
        return shape, lambda: noise(rng, shape, deviation)

    def ones(length: int) -> tuple[tuple[int, ...], Callable[[], Array]]:
        return (length,), lambda: np.ones(length, dtype=np.float32)

    # What a layer adds to a vector of length one, from an input of length sqrt(hidden).
    added = 0.25 / recipe.layers
    from_attention = 2.0 * added / np.sqrt(hidden * queries)
    from_mlp = 2.0 * added / np.sqrt(hidden * inner)

    yield "model.embed_tokens.weight", embedding.shape, lambda: embedding
    for number in range(recipe.layers):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", *ones(hidden)
        yield f"{layer}.post_attention_layernorm.weight", *ones(hidden)
        if recipe.architecture == "Phi3ForCausalLM":
            yield f"{layer}.self_attn.qkv_proj.weight", *random((queries + 2 * keys, hidden), into)
            yield f"{layer}.mlp.gate_up_proj.weight", *random((2 * inner, hidden), into)
            yield f"{layer}.mlp.down_proj.weight", *random((hidden, inner), from_mlp)
        else:
            yield f"{layer}.self_attn.q_proj.weight", *random((queries, hidden), into)
            yield f"{layer}.self_attn.k_proj.weight", *random((keys, hidden), into)
            yield f"{layer}.self_attn.v_proj.weight", *random((keys, hidden), into)
        yield f"{layer}.self_attn.o_proj.weight", *random((hidden, queries), from_attention)
        if recipe.architecture == "MixtralForCausalLM":
            yield f"{layer}.block_sparse_moe.gate.weight", *random((8, hidden), into)
            for expert in range(8):
                inside = f"{layer}.block_sparse_moe.experts.{expert}"
                yield f"{inside}.w1.weight", *random((inner, hidden), into)
                yield f"{inside}.w2.weight", *random((hidden, inner), from_mlp)
                yield f"{inside}.w3.weight", *random((inner, hidden), into)
        elif recipe.architecture == "MistralForCausalLM":
            yield f"{layer}.mlp.gate_proj.weight", *random((inner, hidden), into)
            yield f"{layer}.mlp.up_proj.weight", *random((inner, hidden), into)
            yield f"{layer}.mlp.down_proj.weight", *random((hidden, inner), from_mlp)
    yield "model.norm.weight", *ones(hidden)
    yield "lm_head.weight", output.shape, lambda: output


def noise(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def encoder_tensors(vocabulary: Vocabulary, shape: Mapping[str, int]) -> Tensors:
    """Under the names that the files of nomic-embed-text have."""
    rng = np.random.default_rng(11404)
    hidden, inner = shape["n_embd"], shape["n_inner"]

    def random(name: str, rows: int, columns: int) -> tuple[str, tuple[int, ...], Callable[[], Array]]:
        return f"{name}.weight", (rows, columns), lambda: noise(rng, (rows, columns), 1.0 / np.sqrt(columns))

    def norm(name: str) -> Tensors:
        yield f"{name}.weight", (hidden,), lambda: np.ones(hidden, dtype=np.float32)
        yield f"{name}.bias", (hidden,), lambda: np.zeros(hidden, dtype=np.float32)

    yield random("embeddings.word_embeddings", vocabulary.padded, hidden)
    yield random("embeddings.token_type_embeddings", 2, hidden)
    yield from norm("emb_ln")
    for number in range(shape["n_layer"]):
        layer = f"encoder.layers.{number}"
        yield random(f"{layer}.attn.Wqkv", 3 * hidden, hidden)
        yield random(f"{layer}.attn.out_proj", hidden, hidden)
        yield random(f"{layer}.mlp.fc11", inner, hidden)
        yield random(f"{layer}.mlp.fc12", inner, hidden)
        yield random(f"{layer}.mlp.fc2", hidden, inner)
        yield from norm(f"{layer}.norm1")
        yield from norm(f"{layer}.norm2")


def bfloat16(values: Array) -> NDArray[np.uint16]:
    """Rounds to the nearest bfloat16, ties to even; numpy has no such type."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: Tensors) -> int:
    """The safetensors container: length of the header, the header as JSON, the data in the same order."""
    entries = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, _ in entries:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for _, _, make in entries:
            file.write(bfloat16(make()).tobytes())
    return offset


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, vocabulary: Vocabulary, end: str, length: int, template: str | None) -> None:
    write_json(folder / "tokenizer.json", vocabulary.tokenizer())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": end,
        "unk_token": "<unk>",
        "pad_token": end,
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        settings["chat_template"] = template
    write_json(folder / "tokenizer_config.json", settings)


def make_decoder(recipe: Recipe, folder: Path, head_size: int = HEAD_SIZE) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.of(recipe.speaker, recipe.end, recipe.markers)
    size = write_safetensors(folder / "model.safetensors", decoder_tensors(recipe, vocabulary, head_size))
    end = vocabulary.ids[recipe.end]
    write_json(
        folder / "config.json",
        {
            "architectures": [recipe.architecture],
            "hidden_size": recipe.hidden,
            "intermediate_size": recipe.intermediate,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.heads,
            "num_key_value_heads": recipe.kv_heads,
            "head_dim": head_size,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": vocabulary.padded,
            "bos_token_id": 1,
            "eos_token_id": end,
            "pad_token_id": end,
            **recipe.settings,
        },
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": end, "pad_token_id": end})
    write_tokenizer(folder, vocabulary, recipe.end, recipe.settings["max_position_embeddings"], recipe.template)
    return size


def make_embeddings(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.of("Vectors", "</s>", ())
    hidden, positions = 768, 8192  # so that a vector is as long as the catalogue says
    shape = {"n_embd": hidden, "n_head": 12, "n_layer": 2, "n_inner": hidden}
    size = write_safetensors(folder / "model.safetensors", encoder_tensors(vocabulary, shape))
    write_json(
        folder / "config.json",
        {
            "architectures": ["NomicBertModel"],
            "model_type": "nomic_bert",
            **shape,
            "activation_function": "swiglu",
            "layer_norm_epsilon": 1e-12,
            "max_trained_positions": 2048,
            "n_positions": positions,
            "type_vocab_size": 2,
            "torch_dtype": "bfloat16",
            "vocab_size": vocabulary.padded,
            "pad_token_id": 2,
            "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_scale_base": None,
            **dict.fromkeys(("causal", "prenorm", "rotary_emb_interleaved"), False),
            **dict.fromkeys(("mlp_fc1_bias", "mlp_fc2_bias", "qkv_proj_bias"), False),
        },
    )
    module = "sentence_transformers.models"
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"{module}.{kind}"}
            for number, (path, kind) in enumerate(parts)
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": positions, "do_lower_case": False})
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_tokenizer(folder, vocabulary, "</s>", positions, None)
    return size


def make_large(parameters: float, folder: Path) -> int:
    """A random Mistral of about this many parameters, as wide as a model of that size usually is."""
    hidden, inner, heads, kv_heads, head_size = 2048, 5632, 16, 4, 128
    layer = 2 * hidden * heads * head_size + 2 * hidden * kv_heads * head_size + 3 * hidden * inner
    recipe = Recipe(
        name="large",
        speaker="Large",
        architecture="MistralForCausalLM",
        seed=1,
        end="</s>",
        template=OPENCHAT_TEMPLATE.replace("<|end_of_turn|>", "</s>"),
        layers=max(1, round(parameters / layer)),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=inner,
        settings={
            "model_type": "mistral",
            "max_position_embeddings": 8192,
            "rope_theta": 10000.0,
            "sliding_window": None,
        },
    )
    return make_decoder(recipe, folder, head_size)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make small models of the real architectures.")
    parser.add_argument("out", type=Path, help="folder that gets one folder for each model")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--only", choices=[*(recipe.name for recipe in RECIPES), EMBEDDINGS], help="make one")
    choice.add_argument("--parameters", type=float, help="make one random model of about this size in OUT/large")
    options = parser.parse_args(argv)
    if options.parameters:
        sizes = {"large": make_large(options.parameters, options.out / "large")}
    else:
        sizes = {
            recipe.name: make_decoder(recipe, options.out / recipe.name)
            for recipe in RECIPES
            if options.only in (None, recipe.name)
        }
        if options.only in (None, EMBEDDINGS):
            sizes[EMBEDDINGS] = make_embeddings(options.out / EMBEDDINGS)
    for name, size in sizes.items():
        print(f"{options.out / name}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
