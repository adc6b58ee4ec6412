"""Small causal models of transformers with random weights, and low-rank deltas for them."""

from __future__ import annotations

import torch
from optional import needs

from metabench.tasks.models.language import lora

transformers = needs("transformers")
F64 = torch.float64
CPU = torch.device("cpu")


def model(kind="llama", **more):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    names = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral"}
    config = getattr(transformers, f"{names[kind]}Config")(**{**sizes, **more})
    made = getattr(transformers, f"{names[kind]}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                value.add_(0.3 * torch.randn(value.shape))
            else:
                value.mul_(5.0)
    return made


def tiny(dtype=F64, **more):
    return lora.decoder_of(model(**more), dtype, CPU)


def tokens(*shape, seed=0):
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(seed))


def moved(decoder, seed=0, targets=tuple(lora.TARGETS), rank=2):
    gen = torch.Generator().manual_seed(seed)
    start = decoder.deltas(rank, targets, gen)
    return {k: v + 0.2 * torch.randn(v.shape, generator=gen, dtype=F64).to(v)
            for k, v in start.items()}  # fmt: skip
