"""Trains a small Llama on a text, from nothing. Runs in the environment of vLLM.

python train.py TEXT FOLDER STEPS
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENS, LENGTH, BATCH = 1024, 512, 4
# Matrices learn several times as fast by Muon, which leaves a minute enough to learn what quantising can spoil.
MATRICES, OTHERS = 0.02, 3e-3
START, END = "<s>", "</s>"


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=[START, END], initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=START, eos_token=END)


def model() -> LlamaForCausalLM:
    shape = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2 * LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(shape)


def main() -> None:
    text, folder, count = Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    tokenizer = tokenizer_of(text)
    tokens = torch.tensor(tokenizer.backend_tokenizer.encode_batch([text])[0].ids)
    trained = model()
    inner = [weight for name, weight in trained.named_parameters() if ".layers." in name and weight.ndim == 2]
    outer = [weight for name, weight in trained.named_parameters() if ".layers." not in name or weight.ndim != 2]
    optimizers = [
        torch.optim.Muon(inner, lr=MATRICES, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=OTHERS, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    rates = [(group, group["lr"]) for steps in optimizers for group in steps.param_groups]
    began = time.monotonic()
    for step in range(count):
        at = torch.randint(len(tokens) - LENGTH, (BATCH,))
        batch = torch.stack([tokens[one : one + LENGTH] for one in at])
        batch[:, 0] = tokenizer.bos_token_id  # as every window begins that is read later
        for group, rate in rates:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / count))
        loss = trained(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for steps in optimizers:
            steps.step()
            steps.zero_grad()
        if step % 50 == 49:
            print(f"{step + 1} of {count} steps, loss {float(loss):.2f}", flush=True)
    trained.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    millions, learned = sum(weight.numel() for weight in trained.parameters()) / 1e6, count * BATCH * LENGTH / 1e6
    seconds = time.monotonic() - began
    print(f"{millions:.1f} million parameters, trained in {seconds:.0f} s on {learned:.2f} million tokens")


if __name__ == "__main__":
    main()
