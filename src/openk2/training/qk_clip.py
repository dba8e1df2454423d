"""QK-Clip: MuonClip's other half, which rescales the query and key weights of heads whose logits grow too large.

Source: Kimi K2, arXiv:2507.20534, section 2.1, algorithm 1, in its form for latent attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.models import K2Model

THRESHOLD = 100.0
"""tau of the paper."""


@torch.no_grad()
def qk_clip_(model: K2Model, max_logits: Tensor, threshold: float = THRESHOLD) -> int:
    """Scale down the heads whose largest attention logit passed `threshold`; returns how many.

    max_logits: (layers, heads), the largest softmax input of each head over the step's whole batch. With
    g = threshold / max_logit, a head's q_nope and k_nope rows are multiplied by sqrt(g), its q_rope rows by g; the
    rotary key, which all heads share, and the value rows stay. Run it after the optimizer's step.
    """
    config, clipped = model.config, 0
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    for layer, head in (max_logits > threshold).nonzero().tolist():
        attention = model.decoder_layers[layer].self_attn
        query = attention.q_proj if config.q_lora_rank is None else attention.q_b_proj
        g = threshold / float(max_logits[layer, head])
        query_rows = query.weight.view(heads, config.qk_head_dim, -1)[head]
        query_rows[:nope] *= g**0.5
        query_rows[nope:] *= g
        attention.kv_b_proj.weight.view(heads, nope + config.v_head_dim, -1)[head, :nope] *= g**0.5
        clipped += 1
    return clipped
