"""QK-Clip: MuonClip's other half, which rescales the query and key weights of heads whose logits grow too large.

Source: Kimi K2, arXiv:2507.20534, section 2.1, algorithm 1, in its form for latent attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.models import K2Model
from openk2.training.parallel import ALONE, Ranks, local, my_rows

THRESHOLD = 100.0
"""tau of the paper."""


@torch.no_grad()
def qk_clip_(model: K2Model, max_logits: Tensor, threshold: float = THRESHOLD, ranks: Ranks = ALONE) -> int:
    """Scale down the heads whose largest attention logit passed `threshold`; returns how many.

    max_logits: (layers, heads), the largest softmax input of each head over the step's whole batch, all `ranks`. With
    g = threshold / max_logit, a head's q_nope and k_nope rows are multiplied by sqrt(g), its q_rope rows by g; the
    rotary key, which all heads share, and the value rows stay. Run it after the optimizer's step.
    """
    config = model.config
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    passed = (max_logits > threshold).nonzero().tolist()
    for layer in sorted({layer for layer, _ in passed}):
        attention = model.decoder_layers[layer].self_attn
        query = attention.q_proj if config.q_lora_rank is None else attention.q_b_proj
        query_rows = torch.ones(heads, config.qk_head_dim, device=max_logits.device)
        key_rows = torch.ones(heads, nope + config.v_head_dim, device=max_logits.device)
        for head in (head for other, head in passed if other == layer):
            g = threshold / float(max_logits[layer, head])
            query_rows[head, :nope] = key_rows[head, :nope] = g**0.5
            query_rows[head, nope:] = g
        _scale_rows_(query.weight, query_rows.flatten(), ranks)
        _scale_rows_(attention.kv_b_proj.weight, key_rows.flatten(), ranks)
    return len(passed)


def _scale_rows_(weight: Tensor, factors: Tensor, ranks: Ranks) -> None:
    """Multiply each row by its factor; of a weight sharded by rows, those that this rank has."""
    local(weight).mul_(factors[my_rows(len(factors), ranks.size, ranks.index), None])
