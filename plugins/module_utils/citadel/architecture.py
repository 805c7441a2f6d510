"""What a model's config.json says about the memory it takes.

Each family is told by its name. One that is not known here is never taken for another: its weights are then what its
files hold, and the plan says what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .recipes import RECIPES, ROWS_MULTIPLE

BF16 = 2
KV_BLOCK = 128  # tokens in one block of vLLM's cache on a CPU
ROW_SCALE, GROUP_SCALE, SHAPE = 4, 2, 16  # bytes that quantised weights bring along: recipes.py


class ArchitectureError(ValueError):
    """A config.json that does not say what the plan needs."""


@dataclass(frozen=True)
class Matrix:
    """Equal matrices of the layers: how many there are, and how many of them one token reads."""

    rows: int
    columns: int
    count: int
    active: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    def bytes(self, variant: str) -> int:
        if variant == "bf16":
            return self.weights * BF16
        if variant == "int8":
            return self.weights + self.rows * ROW_SCALE
        return self.weights // 2 + self.weights // RECIPES["int4"].group * GROUP_SCALE + SHAPE


@dataclass(frozen=True)
class Architecture:
    name: str
    hidden: int
    vocabulary: int
    longest_context: int
    width: int  # of a layer's inner vector, for all experts that a token goes through
    fused: int  # weights of the largest tensor that vLLM makes of several
    experts: int
    encoder: bool
    matrices: tuple[Matrix, ...]
    other_parameters: int  # embedding, output matrix, norms, biases, routers: they stay in 16 bits
    output: int  # weights that are read for every token besides those of the layers
    kv_bytes_of_layer: int  # for each token
    layers: int  # that attend to all there was
    windows: int  # layers that attend to the last tokens only
    window: int
    known: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        found = Config(config)
        return FAMILIES.get(found.name, unknown)(found)

    @property
    def moe(self) -> bool:
        return self.experts > 1

    @property
    def parameters(self) -> int:
        return sum(one.weights * one.count for one in self.matrices) + self.other_parameters

    def weight_bytes(self, variant: str) -> int:
        return sum(one.bytes(variant) * one.count for one in self.matrices) + self.other_parameters * BF16

    def active_bytes(self, variant: str) -> int:
        """What one token reads: all of it, but only the chosen experts."""
        return sum(one.bytes(variant) * one.active for one in self.matrices) + self.output * BF16

    def largest_repack(self, variant: str) -> int:
        """vLLM packs a layer's fused matrix anew while it holds the old one; all experts of a layer are one tensor."""
        bits = RECIPES[variant].bits if variant in RECIPES else 16
        return max(self.fused * bits // 8, self.vocabulary * self.hidden * BF16)

    def fits_int4(self) -> bool:
        group = RECIPES["int4"].group
        return all(not one.rows % ROWS_MULTIPLE and not one.columns % group for one in self.matrices)

    @property
    def kv_bytes_per_token(self) -> int:
        return (self.layers + self.windows) * self.kv_bytes_of_layer

    def kv_bytes_of_context(self, context: int, batched_tokens: int) -> int:
        """One full context as vLLM counts it: whole blocks, one spare, and one more where a window slides. Layers of
        two kinds are put into groups of one size, each with blocks of its own."""
        whole = -(-context // KV_BLOCK) + 1
        sliding = -(-min(self.window - 1 + batched_tokens, context) // KV_BLOCK) + 2
        kinds = [(count, blocks) for count, blocks in ((self.layers, whole), (self.windows, sliding)) if count]
        if not kinds or not self.kv_bytes_of_layer:
            return 0
        fewest, most = min(count for count, _ in kinds), max(count for count, _ in kinds)
        group = most if most < fewest * 1.25 else fewest
        blocks = sum(-(-count // group) * blocks for count, blocks in kinds)
        return group * blocks * KV_BLOCK * self.kv_bytes_of_layer


class Config:
    """Reads config.json; what is missing is told by its name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.name = str(next(iter(config.get("architectures") or ["unknown"])))

    def get(self, key: str) -> Any:
        return self.config.get(key)

    def number(self, *keys: str, default: int | None = None) -> int:
        for key in keys:
            value = self.config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if default is None:
            raise ArchitectureError(f"config.json has no usable {' or '.join(keys)}")
        return default

    @property
    def longest_context(self) -> int:
        """Scaled where the family counts the unscaled one, as vLLM does."""
        longest = self.number("max_position_embeddings")
        scaling = self.get("rope_scaling") or self.get("rope_parameters") or {}
        kind = scaling.get("rope_type", scaling.get("type", ""))
        factor = scaling.get("factor")
        if kind in ("", "default", "llama3", "longrope", "su", "mrope") or not isinstance(factor, int | float):
            return longest
        return round((scaling.get("original_max_position_embeddings") or longest) * factor)

    def windows(self, layers: int) -> tuple[int, int]:
        """How many layers have a window, and how long it is."""
        window = self.get("sliding_window")
        if not isinstance(window, int) or window <= 0 or self.get("use_sliding_window") is False:
            return 0, 1
        kinds = self.get("layer_types")
        if isinstance(kinds, list):
            return sum(kind == "sliding_attention" for kind in kinds[:layers]), window
        if self.name == "Gemma2ForCausalLM":
            return -(-layers // 2), window
        if self.name.startswith("Gemma3"):
            pattern = self.number("sliding_window_pattern", "_sliding_window_pattern", default=6)
            return layers - layers // pattern, window
        if self.get("use_sliding_window"):  # Qwen: only layers from this one on
            return max(0, layers - int(self.get("max_window_layers") or 0)), window
        return layers, window


@dataclass(frozen=True)
class Traits:
    """What tells a decoder of one family from another's."""

    tied: bool = False  # unless config.json says otherwise
    biases: str = ""  # of the attention: qkv, qkvo, or none
    norms: int = 2  # vectors of the hidden size in each layer
    head_norms: bool = False  # one for queries and one for keys, of the size of a head
    wide_norms: bool = False  # the same over all heads
    experts: bool = False


def decoder(traits: Traits) -> Callable[[Config], Architecture]:
    return lambda config: of_decoder(config, traits)


def of_decoder(config: Config, traits: Traits) -> Architecture:
    hidden, heads, layers = (config.number(k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    kv_heads = config.number("num_key_value_heads", default=heads)
    size = config.number("head_dim", default=hidden // heads)
    latent = config.number("kv_lora_rank", default=0)
    matrices = [*(latent_attention(config) if latent else attention(hidden, heads, kv_heads, size))]
    matrices = [Matrix(one.rows, one.columns, one.count * layers, one.active * layers) for one in matrices]
    inner, routers, width, fused = inner_of(config, traits, layers)
    matrices += inner
    norms = traits.norms * hidden
    if latent:
        norms += latent + config.number("q_lora_rank", default=0)
    if traits.head_norms:
        norms += 2 * size
    if traits.wide_norms:
        norms += (heads + kv_heads) * size
    biases = {"": 0, "qkv": (heads + 2 * kv_heads) * size, "qkvo": (heads + 2 * kv_heads) * size + hidden}
    tied = config.get("tie_word_embeddings")
    vocabulary = config.number("vocab_size")
    ends = vocabulary * hidden * (1 if (traits.tied if tied is None else tied) else 2)
    attention_bias = "qkvo" if config.get("attention_bias") else traits.biases
    windows, window = config.windows(layers)
    return Architecture(
        name=config.name,
        hidden=hidden,
        vocabulary=vocabulary,
        longest_context=config.longest_context,
        width=width,
        fused=fused,
        experts=experts_of(config) if traits.experts else 1,
        encoder=False,
        matrices=tuple(matrices),
        other_parameters=ends + hidden + layers * (norms + biases[attention_bias]) + routers,
        output=vocabulary * hidden,
        kv_bytes_of_layer=(latent + config.number("qk_rope_head_dim") if latent else 2 * kv_heads * size) * BF16,
        layers=layers - windows,
        windows=windows,
        window=window,
    )


def attention(hidden: int, heads: int, kv_heads: int, size: int) -> Iterator[Matrix]:
    yield Matrix(heads * size, hidden, 1, 1)
    yield Matrix(kv_heads * size, hidden, 2, 2)
    yield Matrix(hidden, heads * size, 1, 1)


def latent_attention(config: Config) -> Iterator[Matrix]:
    """DeepSeek's: keys and values of all heads are kept as one short vector."""
    hidden, heads, latent = (config.number(k) for k in ("hidden_size", "num_attention_heads", "kv_lora_rank"))
    turned, still, value = (config.number(k) for k in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    queries = config.number("q_lora_rank", default=0)
    if queries:
        yield Matrix(queries, hidden, 1, 1)
    yield Matrix(heads * (turned + still), queries or hidden, 1, 1)
    yield Matrix(latent + turned, hidden, 1, 1)
    yield Matrix(heads * (still + value), latent, 1, 1)
    yield Matrix(hidden, heads * value, 1, 1)


def experts_of(config: Config) -> int:
    return config.number("num_local_experts", "n_routed_experts", "num_experts", default=1)


def gated(inner: int, hidden: int, count: int, active: int) -> list[Matrix]:
    return [Matrix(inner, hidden, 2 * count, 2 * active), Matrix(hidden, inner, count, active)]


def inner_of(config: Config, traits: Traits, layers: int) -> tuple[list[Matrix], int, int, int]:
    """Behind the attention: the matrices, the parameters that choose among experts, the width, the largest tensor."""
    hidden = config.number("hidden_size")
    if not traits.experts:
        inner = config.number("intermediate_size")
        return gated(inner, hidden, layers, layers), 0, inner, 2 * inner * hidden
    experts, chosen = experts_of(config), config.number("num_experts_per_tok")
    inner = config.number("moe_intermediate_size", "intermediate_size")
    first = config.number("first_k_dense_replace", default=0)
    step = config.number("decoder_sparse_step", "moe_layer_freq", default=1)
    dense = config.get("mlp_only_layers") or []
    sparse = sum(
        number >= first and number not in dense and (number % step == 0 if first else (number + 1) % step == 0)
        for number in range(layers)
    )
    shared = config.number("shared_expert_intermediate_size", default=0)
    routers = sparse * (hidden * experts + (hidden if shared else 0))  # Qwen's shared expert has a gate of its own
    if config.get("topk_method") == "noaux_tc":
        routers += sparse * experts * 2  # a correction for each expert, in 32 bits
    shared = shared or config.number("n_shared_experts", default=0) * inner
    matrices = gated(inner, hidden, sparse * experts, sparse * chosen)
    if shared:
        matrices += gated(shared, hidden, sparse, sparse)
    if layers > sparse:
        matrices += gated(config.number("intermediate_size"), hidden, layers - sparse, layers - sparse)
    return matrices, routers, inner * chosen + shared, 2 * inner * hidden * experts


def encoder(config: Config) -> Architecture:
    """BERT and its kin: a vector for a text, no cache."""
    hidden, layers, inner = (config.number(k) for k in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    positions = config.number("max_position_embeddings")
    matrices = [*attention(hidden, 1, 1, hidden), Matrix(inner, hidden, 1, 1), Matrix(hidden, inner, 1, 1)]
    biases_and_norms = layers * (9 * hidden + inner)
    pooler = (hidden + 1) * hidden
    return of_encoder(
        config, (hidden, layers, inner), positions, matrices, positions * hidden + biases_and_norms + pooler
    )


def nomic(config: Config) -> Architecture:
    """nomic-embed-text: positions are turned in, not learned; the inner layer is gated; nothing has a bias."""
    hidden, layers, inner = (config.number(k) for k in ("n_embd", "n_layer", "n_inner"))
    matrices = [*attention(hidden, 1, 1, hidden), *gated(inner, hidden, 1, 1)]
    return of_encoder(config, (hidden, layers, inner), config.number("n_positions"), matrices, layers * 4 * hidden)


def of_encoder(
    config: Config, shape: tuple[int, int, int], positions: int, layer: Sequence[Matrix], others: int
) -> Architecture:
    hidden, layers, inner = shape
    vocabulary, types = config.number("vocab_size"), config.number("type_vocab_size", default=2)
    return Architecture(
        name=config.name,
        hidden=hidden,
        vocabulary=vocabulary,
        longest_context=positions,
        width=inner,
        fused=2 * hidden * inner,
        experts=1,
        encoder=True,
        matrices=tuple(Matrix(one.rows, one.columns, one.count * layers, one.active * layers) for one in layer),
        other_parameters=(vocabulary + types + 2) * hidden + others,  # embeddings and the norm behind them
        output=0,
        kv_bytes_of_layer=0,
        layers=layers,
        windows=0,
        window=1,
    )


def unknown(config: Config) -> Architecture:
    """Its files tell the weights. A layer of which nothing else is said attends to all there was, which is the most."""
    hidden, heads, layers = (config.number(k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    kv_heads = config.number("num_key_value_heads", default=heads)
    experts = experts_of(config)
    windows, window = config.windows(layers) if config.get("layer_types") else (0, 1)
    inner = config.number("intermediate_size", "moe_intermediate_size", "ffn_dim", "n_inner", default=4 * hidden)
    return Architecture(
        name=config.name,
        hidden=hidden,
        vocabulary=config.number("vocab_size"),
        longest_context=config.longest_context,
        width=inner * config.number("num_experts_per_tok", default=1),
        fused=2 * hidden * inner * experts,
        experts=experts,
        encoder=False,
        matrices=(),
        other_parameters=0,
        output=0,
        kv_bytes_of_layer=2 * kv_heads * config.number("head_dim", default=hidden // heads) * BF16,
        layers=layers - windows,
        windows=windows,
        window=window,
        known=False,
    )


PLAIN, MIXTURE = Traits(), Traits(experts=True)
FAMILIES: Mapping[str, Callable[[Config], Architecture]] = {
    "LlamaForCausalLM": decoder(PLAIN),
    "MistralForCausalLM": decoder(PLAIN),
    "Phi3ForCausalLM": decoder(PLAIN),
    "Qwen2ForCausalLM": decoder(Traits(biases="qkv")),
    "Qwen3ForCausalLM": decoder(Traits(head_norms=True)),
    "GemmaForCausalLM": decoder(Traits(tied=True)),
    "Gemma2ForCausalLM": decoder(Traits(tied=True, norms=4)),
    "Gemma3ForCausalLM": decoder(Traits(tied=True, norms=4, head_norms=True)),
    "MixtralForCausalLM": decoder(MIXTURE),
    "OlmoeForCausalLM": decoder(Traits(experts=True, wide_norms=True)),
    "Qwen2MoeForCausalLM": decoder(Traits(experts=True, biases="qkv")),
    "Qwen3MoeForCausalLM": decoder(Traits(experts=True, head_norms=True)),
    "DeepseekV2ForCausalLM": decoder(MIXTURE),
    "DeepseekV3ForCausalLM": decoder(MIXTURE),
    **dict.fromkeys(("BertModel", "RobertaModel", "XLMRobertaModel"), encoder),
    "NomicBertModel": nomic,
}
