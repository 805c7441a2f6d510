"""Writes a tiny-models folder as a GGUF file with the same bfloat16 weights. Runs in llama.cpp's environment.

python gguf_file.py FOLDER FILE
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def renamed(name: str) -> str:
    body = name.removesuffix(".weight")
    if body in NAMES:
        return f"{NAMES[body]}.weight"
    _, _, number, part = body.split(".", 3)
    return f"blk.{number}.{NAMES[part]}.weight"


def interleaved(rows: Any, heads: int) -> Any:
    """llama.cpp turns neighbours of a head's vector, transformers its halves."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    pieces = tokens["model"]["vocab"]
    special = {one["id"] for one in tokens["added_tokens"]}
    padding = [[f"<padding{number}>", -100.0] for number in range(len(pieces), config["vocab_size"])]
    kinds = [
        gguf.TokenType.CONTROL
        if number in special or number >= len(pieces)
        else gguf.TokenType.BYTE
        if piece.startswith("<0x")
        else gguf.TokenType.NORMAL
        for number, (piece, _) in enumerate(pieces + padding)
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _ in pieces + padding])
    writer.add_token_scores([score for _, score in pieces + padding])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_unk_token_id(0)
    source = folder / "model.safetensors"
    with source.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        values = np.memmap(source, np.uint16, "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
        if "q_proj" in name:
            values = interleaved(values, config["num_attention_heads"])
        elif "k_proj" in name:
            values = interleaved(values, config["num_key_value_heads"])
        if len(entry["shape"]) == 1:
            writer.add_tensor(renamed(name), (np.asarray(values).astype(np.uint32) << 16).view(np.float32))
        else:
            raw = np.ascontiguousarray(values).view(np.uint8)
            writer.add_tensor(renamed(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
