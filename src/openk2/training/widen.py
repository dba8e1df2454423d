"""A wider model that computes what a narrower one did: function-preserving growth of a trained model's widths.

As Net2Net (Chen et al. 2016, arXiv:1511.05641) and LEMON (Wang et al. 2023, arXiv:2310.07999) grow networks, but with
zeros in place of copies: what writes to an added dimension is zero, so it holds nothing at first, and what reads from
it is random, so that it finds a use from the first step on.
"""

from __future__ import annotations

import math

import torch

from openk2.config import ModelConfig
from openk2.models import K2Model

WIDTHS = (
    "hidden_size",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "intermediate_size",
    "moe_intermediate_size",
)
"""What may differ; none may be smaller than the source's."""
RESIDUAL_WRITERS = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight", "down_proj")


def can_widen(source: ModelConfig, target: ModelConfig) -> bool:
    """True when no width of `source` is above the target's, and both have low-rank queries or neither has."""
    pairs = [(getattr(source, name), getattr(target, name)) for name in WIDTHS]
    return all((a is None) == (b is None) and (a or 0) <= (b or 0) for a, b in pairs)


@torch.no_grad()
def widen_(model: K2Model, source: K2Model) -> None:
    """Give `model`, which holds random weights and has as many layers, the function of the narrower `source`.

    Every tensor of the source becomes the leading block of the model's (behind kv_a_proj's latent stand its rotary
    rows). Norms are scaled, since their mean runs over the added zeros too. An added head asks and looks as one of the
    source's heads does, with values of its own that nothing reads yet.
    """
    theirs = dict(source.named_parameters())
    for name, target in model.named_parameters():
        old = theirs[name]
        if "norm" in name:
            scale = math.sqrt(old.shape[0] / target.shape[0])
            target.fill_(scale)
            target[: old.shape[0]] = old * scale
            continue
        block = target[tuple(slice(0, n) for n in old.shape)]
        if name.endswith("gate_up_proj"):
            half, width = target.shape[1] // 2, old.shape[1] // 2
            target[:, :width, : old.shape[2]] = old[:, :width]
            target[:, half : half + width, : old.shape[2]] = old[:, width:]
        elif name.endswith("kv_a_proj_with_mqa.weight"):
            rope, latent, columns = model.config.qk_rope_head_dim, source.config.kv_lora_rank, old.shape[1]
            target[latent:-rope].zero_()
            target[:latent, :columns] = old[:latent]
            target[-rope:, :columns] = old[latent:]
        elif name.endswith("q_a_proj.weight"):
            target[old.shape[0] :].zero_()
            block.copy_(old)
        elif name.endswith(RESIDUAL_WRITERS):
            target.zero_()
            block.copy_(old)
        else:
            block.copy_(old)
    _repeat_heads_(model, source.config.num_attention_heads)


def _repeat_heads_(model: K2Model, heads: int) -> None:
    c = model.config
    for layer in model.decoder_layers:
        attention = layer.self_attn
        keys = attention.kv_b_proj.weight.view(c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim, -1)
        projection = attention.q_proj if c.q_lora_rank is None else attention.q_b_proj
        query = projection.weight.view(c.num_attention_heads, c.qk_head_dim, -1)
        for head in range(heads, c.num_attention_heads):
            query[head] = query[head % heads]
            keys[head, : c.qk_nope_head_dim] = keys[head % heads, : c.qk_nope_head_dim]
