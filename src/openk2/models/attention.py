"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), with and without a low-rank query."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openk2 import ops
from openk2.config import ModelConfig
from openk2.config.model_config import LATENT_NORM_EPS
from openk2.models.forward_batch import ForwardBatch
from openk2.models.layers import Linear, RMSNorm


class MLAttention(nn.Module):
    """One layer's attention; the cache it reads and writes holds (latent, rotated shared key) per token."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        heads = config.num_attention_heads
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, heads * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.latent_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size)

    def forward(
        self, x: Tensor, batch: ForwardBatch, rotary: tuple[Tensor, Tensor], kv_cache: Tensor | None = None
    ) -> Tensor:
        """x: (T, hidden); rotary: cos and sin of the tokens' positions; kv_cache: (blocks, block_size, latent_dim)."""
        c, per_row = self.config, batch.per_row
        if c.q_lora_rank is None:
            q = self.q_proj(x, per_row)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x, per_row)), per_row)
        q = q.unflatten(-1, (c.num_attention_heads, -1))
        latent, k_pe = self.kv_a_proj_with_mqa(x, per_row).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        latent = self.kv_a_layernorm(latent.contiguous())
        if batch.paged is None:
            out = self._attend_packed(q, latent, k_pe, batch, rotary)
        else:
            assert kv_cache is not None, "a paged batch needs a cache"
            q_nope, q_pe = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
            q_pe, k_pe = ops.apply_rotary(q_pe, *rotary), ops.apply_rotary(k_pe, *rotary)
            kv_cache.view(-1, c.latent_dim)[batch.paged.slot_mapping] = torch.cat((latent, k_pe), -1)
            out = ops.paged_attention(
                q_nope,
                q_pe,
                kv_cache,
                self.kv_b_proj.weight,
                batch.positions,
                block_tables=batch.paged.block_tables,
                query_starts=batch.paged.query_starts,
                context_lens=batch.paged.context_lens,
                generated_T=batch.paged.generated,
                softmax_scale=c.softmax_scale,
            )
        return self.o_proj(out.flatten(1), per_row)

    def _attend_packed(
        self, q: Tensor, latent: Tensor, k_pe: Tensor, batch: ForwardBatch, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        c = self.config
        kv = self.kv_b_proj(latent, batch.per_row).unflatten(-1, (c.num_attention_heads, -1))
        query, key, v = ops.attention_inputs(q, kv, k_pe, *rotary)
        if batch.observe_attention is not None:
            batch.observe_attention(self.layer, query, key, c.softmax_scale)
        out, max_logits = ops.causal_attention(query, key, v, batch.cu_seqlens, c.softmax_scale)
        if batch.max_logits is not None:
            row = batch.max_logits[self.layer]
            row.copy_(torch.maximum(row, max_logits))
        return out
