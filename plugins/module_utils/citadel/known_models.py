"""What the config.json of the catalogue's models says, so that a plan needs neither the hub nor a host.

`weight_bytes` is metadata.total_size of model.safetensors.index.json at the pinned revision: what the files hold,
against which the arithmetic from the configuration is tested. `file_bytes` is said where the files hold 32 bits.
"""

from __future__ import annotations

from typing import Any

KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        "weight_bytes": 93_405_585_408,
        "config": {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
    },
    "NousResearch/Hermes-2-Pro-Mistral-7B": {
        "config": {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32032,
        },
    },
    "openchat/openchat-3.5-0106": {
        "config": {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32002,
        },
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        "weight_bytes": 7_642_159_104,
        "config": {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "sliding_window": 2047,
            "tie_word_embeddings": False,
            "vocab_size": 32064,
        },
    },
    "nomic-ai/nomic-embed-text-v1.5": {
        "file_bytes": 546_926_592,
        "config": {
            "architectures": ["NomicBertModel"],
            "model_type": "nomic_bert",
            "n_embd": 768,
            "n_head": 12,
            "n_inner": 3072,
            "n_layer": 12,
            "n_positions": 8192,
            "max_trained_positions": 2048,
            "type_vocab_size": 2,
            "vocab_size": 30528,
        },
    },
}
