"""A checkpoint with random weights and a small vocabulary, which loads in no time."""

from __future__ import annotations

from pathlib import Path

from openk2.checkpoint import random_model, save_model
from openk2.config import ModelConfig
from openk2.tokenizer import save_ranks

MERGES = ["th", "he", "in", "er", "an", "on", '{"', '":', '"}', ", ", "functions", ".", "end", "stop"]


def tiny_ranks() -> dict[bytes, int]:
    """256 bytes and the merges of a few words, each made by a chain of pairs."""
    tokens = [bytes([b]) for b in range(256)]
    for word in MERGES:
        tokens += [word[:n].encode() for n in range(2, len(word) + 1) if word[:n].encode() not in tokens]
    return {token: rank for rank, token in enumerate(tokens)}


def tiny_config(ranks: int, *, window: int = 512) -> ModelConfig:
    return ModelConfig(
        vocab_size=ranks + 256,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=window,
        bos_token_id=ranks,
        eos_token_id=ranks + 1,
        initializer_range=0.3,
    )


def save_tiny_model(path: Path, *, window: int = 512) -> Path:
    """The checkpoint, greedy by its generation_config, in the new folder `path`."""
    ranks = tiny_ranks()
    model = random_model(tiny_config(len(ranks), window=window), seed=1)
    save_model(model, path, generation_config={"do_sample": False, "eos_token_id": len(ranks) + 2})
    save_ranks(ranks, path / "tiktoken.model")
    return path
