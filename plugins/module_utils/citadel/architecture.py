"""What a model's config.json says about the memory it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BF16 = 2
KV_BLOCK = 128  # tokens in one block of vLLM's cache on a CPU
# Quantised layers keep the embedding and the output matrix in 16 bits. int8 has one scale for a row; int4 has a
# scale of 16 bits and a zero point of 4 bits for each group of 128 weights.
LINEAR_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5 + (2 + 0.5) / 128}


class ArchitectureError(ValueError):
    """A config.json that does not say what the plan needs."""


@dataclass(frozen=True)
class Architecture:
    name: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    experts: int
    experts_per_token: int
    window: int | None
    longest_context: int
    tied: bool
    encoder: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        def number(*keys: str, default: int | None = None) -> int:
            for key in keys:
                value = config.get(key)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
            if default is None:
                raise ArchitectureError(f"config.json has no usable {' or '.join(keys)}")
            return default

        name = next(iter(config.get("architectures") or ["unknown"]))
        hidden, heads = number("hidden_size"), number("num_attention_heads")
        window = config.get("sliding_window")
        if config.get("use_sliding_window") is False:
            window = None
        return cls(
            name=str(name),
            layers=number("num_hidden_layers"),
            hidden=hidden,
            intermediate=number("intermediate_size"),
            vocabulary=number("vocab_size"),
            heads=heads,
            kv_heads=number("num_key_value_heads", default=heads),
            head_size=number("head_dim", default=hidden // heads),
            experts=number("num_local_experts", "num_experts", default=1),
            experts_per_token=number("num_experts_per_tok", default=1),
            window=window if isinstance(window, int) and window > 0 else None,
            longest_context=number("max_position_embeddings"),
            tied=bool(config.get("tie_word_embeddings", False)),
            encoder=str(name).startswith(("Bert", "Roberta", "XLMRoberta")),
        )

    @property
    def moe(self) -> bool:
        return self.experts > 1

    @property
    def _attention(self) -> int:
        return self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)

    @property
    def _expert(self) -> int:
        return (2 if self.encoder else 3) * self.hidden * self.intermediate

    @property
    def linear_parameters(self) -> int:
        """Those of the layers' matrices, which quantisation shrinks."""
        return self.layers * (self._attention + self.experts * self._expert)

    @property
    def other_parameters(self) -> int:
        """Embedding, output matrix, norms and router, which stay in 16 bits."""
        if self.encoder:
            biases_and_norms = self.layers * (9 * self.hidden + self.intermediate)
            embeddings = (self.vocabulary + self.longest_context + 2) * self.hidden + 2 * self.hidden
            return embeddings + biases_and_norms + (self.hidden + 1) * self.hidden  # the last is the pooler
        router = self.layers * self.hidden * self.experts if self.moe else 0
        norms = self.layers * 2 * self.hidden + self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + router + norms

    def weight_bytes(self, variant: str) -> int:
        return round(self.linear_parameters * LINEAR_BYTES[variant]) + self.other_parameters * BF16

    def active_bytes(self, variant: str) -> int:
        """What one token reads: all of it, but only the chosen experts."""
        linear = self.layers * (self._attention + min(self.experts, self.experts_per_token) * self._expert)
        return round(linear * LINEAR_BYTES[variant]) + self.vocabulary * self.hidden * BF16

    def largest_repack(self, variant: str) -> int:
        """vLLM packs a layer's fused matrix anew while it holds the old one; all experts of a layer are one tensor."""
        fused = 2 * self.hidden * self.intermediate * self.experts * LINEAR_BYTES[variant]
        return max(round(fused), self.vocabulary * self.hidden * BF16)

    @property
    def kv_bytes_per_token(self) -> int:
        return 0 if self.encoder else 2 * self.layers * self.kv_heads * self.head_size * BF16

    def kv_bytes_of_context(self, context: int, batched_tokens: int) -> int:
        """One full context as vLLM counts it: whole blocks, one spare, and one more where a window slides."""
        if self.encoder:
            return 0
        tokens, spare = context, 1
        if self.window:
            tokens, spare = min(self.window - 1 + batched_tokens, context), 2
        return (-(-tokens // KV_BLOCK) + spare) * KV_BLOCK * self.kv_bytes_per_token
