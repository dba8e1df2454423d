"""The layers of a packed model for generated tokens in one native call, in place of one call a module."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from openk2.config import ModelConfig
from openk2.config.model_config import LATENT_NORM_EPS
from openk2.models.forward_batch import ForwardBatch
from openk2.models.k2 import DecoderLayer, K2Model
from openk2.models.moe import MoE
from openk2.models.packed import PackedExperts, PackedLinear, PackedMLP
from openk2.models.packed_stored import DecodeHolder, StoredExperts
from openk2.ops import cpu
from openk2.ops.cpu.decode import MOST_GROUPS, DecodeLayers, DecodeShape, DecodeWeights, StoredWeights
from openk2.ops.packed import PackedStack

T = TypeVar("T")


def finish_packing(model: K2Model) -> None:
    """Make a packed model, which has its weights, ready to serve."""
    for layer in model.decoder_layers:
        kv_b = layer.self_attn.kv_b_proj.weight.data
        kv_b.copy_(kv_b.to(torch.bfloat16))  # both classes of token multiply by the same numbers
    embedding = model.model.embed_tokens.weight
    if (
        embedding.is_cpu
        and embedding.dtype == torch.float32
        and model.config.n_group <= MOST_GROUPS
        and cpu.available()
    ):
        model.model.decode = PackedDecode(model)


class PackedDecode:
    """`Backbone.decode` of a packed model. Its weights are looked up at the first call, when they are all there."""

    def __init__(self, model: K2Model) -> None:
        self._config, self._layers = model.config, model.decoder_layers
        self._ops: dict[int, DecodeLayers] = {}
        """By the cache's block size."""
        self._stored_experts = {
            index: layer.mlp.experts
            for index, layer in enumerate(self._layers)
            if isinstance(layer.mlp, MoE) and isinstance(layer.mlp.experts, StoredExperts)
        }
        self._most_tokens: int | None = None
        """Of one call; None: any number."""
        for experts in self._stored_experts.values():
            self._most_tokens = experts.slots.most_held // model.config.num_experts_per_tok

    def __call__(
        self, h: Tensor, batch: ForwardBatch, rotary: tuple[Tensor, Tensor], kv_cache: Sequence[Tensor]
    ) -> Tensor:
        """h (T, hidden) after all layers."""
        paged = batch.paged
        assert paged is not None, "generated tokens have a cache"
        block_size = kv_cache[0].shape[1]
        if block_size not in self._ops:
            weights = [_weights(layer) for layer in self._layers]
            self._ops[block_size] = DecodeLayers(_shape(self._config), weights, block_size, self._stored())
        spans = enumerate(pairwise(paged.query_starts))
        sequences = torch.tensor([sequence for sequence, (start, end) in spans for _ in range(start, end)])
        cos, sin = rotary
        # One token's numbers do not depend on the others: those whose experts have slots together go together.
        most = self._most_tokens or len(h)
        out, taken = [], []
        for part in (slice(first, first + most) for first in range(0, len(h), most)):
            made, of_part = self._ops[block_size](
                h[part],
                (cos[part], sin[part]),
                batch.positions[part],
                paged.slot_mapping[part],
                sequences[part],
                paged.block_tables,
                kv_cache,
                None if batch.budgets is None else batch.budgets.part(part),
            )
            out.append(made)
            taken.append(of_part)
        if batch.taken is not None:
            torch.cat(taken, 1, out=batch.taken)
        return out[0] if len(out) == 1 else torch.cat(out)

    def _stored(self) -> StoredWeights | None:
        if not self._stored_experts:
            return None
        slots = next(iter(self._stored_experts.values())).slots
        hold = DecodeHolder(self._stored_experts, self._config.num_experts_per_tok, self._config.hidden_size)
        return StoredWeights(hold, slots.gate_up, slots.down)


def _shape(c: ModelConfig) -> DecodeShape:
    has_groups = c.topk_method != "greedy"
    return DecodeShape(
        hidden=c.hidden_size,
        heads=c.num_attention_heads,
        nope=c.qk_nope_head_dim,
        rope=c.qk_rope_head_dim,
        value=c.v_head_dim,
        latent=c.kv_lora_rank,
        topk=c.num_experts_per_tok,
        groups=c.n_group if has_groups else 1,
        kept_groups=c.topk_group if has_groups else 1,
        sigmoid=c.scoring_func == "sigmoid",
        top2_of_groups=c.topk_method == "noaux_tc",
        normalize=c.norm_topk_prob,
        routed_scale=c.routed_scaling_factor,
        softmax_scale=c.softmax_scale,
        norm_eps=c.rms_norm_eps,
        latent_norm_eps=LATENT_NORM_EPS,
    )


def _weights(layer: DecoderLayer) -> DecodeWeights:
    attention, mlp = layer.self_attn, layer.mlp
    low_rank = hasattr(attention, "q_a_proj")
    router = bias = shared = None
    experts: PackedExperts | PackedMLP | StoredExperts
    if isinstance(mlp, MoE):
        router, bias = mlp.gate.weight.data, mlp.gate.e_score_correction_bias
        experts, shared = mlp.experts, mlp.shared_experts  # type: ignore[assignment]
        assert isinstance(experts, PackedExperts | StoredExperts), f"{type(experts).__name__} is not packed"
    else:
        experts = _as(PackedMLP, mlp)
    return DecodeWeights(
        input_norm=layer.input_layernorm.weight.data,
        q_a=_stack(attention.q_a_proj) if low_rank else None,
        q_a_norm=attention.q_a_layernorm.weight.data if low_rank else None,
        q_b=_stack(attention.q_b_proj if low_rank else attention.q_proj),
        kv_a=_stack(attention.kv_a_proj_with_mqa),
        kv_a_norm=attention.kv_a_layernorm.weight.data,
        kv_b=attention.kv_b_proj.weight.data.to(torch.bfloat16),
        o=_stack(attention.o_proj),
        post_norm=layer.post_attention_layernorm.weight.data,
        router=router,
        router_bias=None if bias is None else bias.data,
        gate_up=experts.stack("gate_up"),
        down=experts.stack("down"),
        shared_gate_up=None if shared is None else _as(PackedMLP, shared).stack("gate_up"),
        shared_down=None if shared is None else _as(PackedMLP, shared).stack("down"),
    )


def _stack(linear: object) -> PackedStack:
    return _as(PackedLinear, linear).stack("packed")


def _as(kind: type[T], module: object) -> T:
    assert isinstance(module, kind), f"{type(module).__name__} is not packed"
    return module
