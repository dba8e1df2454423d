"""The K2 family's model: pre-norm blocks of latent attention and (mixture-of-experts) SwiGLU.

Architecture only: no sampling, no scheduling, no loading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from openk2.config import ModelConfig
from openk2.models.attention import MLAttention
from openk2.models.forward_batch import ForwardBatch
from openk2.models.layers import MLP, Linear, RMSNorm
from openk2.models.moe import MoE, RoutedExperts
from openk2.models.recompute import recomputed
from openk2.models.rope import inv_freq, rotary_tables

Decode = Callable[[Tensor, ForwardBatch, tuple[Tensor, Tensor], Sequence[Tensor]], Tensor]


class DecoderLayer(nn.Module):
    """h + Attn(norm(h)), then h + FFN(norm(h))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MLP | MoE
        if config.is_moe_layer(layer):
            self.mlp = MoE(config, layer)
        else:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, h: Tensor, batch: ForwardBatch, rotary: tuple[Tensor, Tensor], kv_cache: Tensor | None) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), batch, rotary, kv_cache)
        return h + self.mlp(self.post_attention_layernorm(h), batch)


class Backbone(nn.Module):
    """Everything between token ids and the last hidden state: the `model.` part of the checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._inv_freq: Tensor | None = None  # not a buffer: a cast of the model must not round it
        self.decode: Decode | None = None
        """All layers for generated tokens at once; None: layer by layer."""

    def forward(self, input_ids: Tensor, batch: ForwardBatch, kv_cache: Sequence[Tensor] | None = None) -> Tensor:
        if self._inv_freq is None or self._inv_freq.device != input_ids.device:
            self._inv_freq = inv_freq(self.config).to(input_ids.device)
        rotary = rotary_tables(batch.positions, self._inv_freq, self.config)
        h = self.embed_tokens(input_ids)
        # One call for all layers says nothing of the choices made inside.
        if self.decode is not None and batch.per_row and kv_cache is not None and batch.chosen_ids is None:
            return self.norm(self.decode(h, batch, rotary, kv_cache))
        for index, layer in enumerate(self.layers):
            if batch.recompute:
                h = recomputed(layer, h, batch, rotary)
            else:
                h = layer(h, batch, rotary, None if kv_cache is None else kv_cache[index])
        return self.norm(h)


class K2Model(nn.Module):
    """Token ids in, hidden states and logits out.

    Parameters are uninitialised (or on the meta device): fill them from a checkpoint, or with
    `openk2.training.init`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids: Tensor, batch: ForwardBatch, kv_cache: Sequence[Tensor] | None = None) -> Tensor:
        """Hidden states (T, hidden) of T packed tokens; `kv_cache` holds one paged tensor per layer."""
        return self.model(input_ids, batch, kv_cache)

    def compute_logits(self, hidden: Tensor, *, per_row: bool = False) -> Tensor:
        """(T, hidden) to (T, vocab), float32; `per_row` as in the batch that the hidden states are from."""
        return self.lm_head(hidden, per_row).float()

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The blocks in order (`model.layers`, typed)."""
        return [layer for layer in self.model.layers if isinstance(layer, DecoderLayer)]

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its published name, as a view of this model's memory: for loading and export."""
        stacks = {name for name, module in self.named_modules() if isinstance(module, RoutedExperts)}
        for name, parameter in self.named_parameters():
            owner = name.rpartition(".")[0]
            if owner not in stacks:
                yield name, parameter.data
            elif name.endswith(".gate_up_proj"):
                for suffix, view in self.get_submodule(owner).checkpoint_tensors():  # type: ignore[operator]
                    yield f"{owner}.{suffix}", view


def num_parameters(config: ModelConfig) -> int:
    """Exact count, without allocating anything."""
    with torch.device("meta"):
        return sum(p.numel() for p in K2Model(config).parameters())


def num_active_parameters(config: ModelConfig) -> int:
    """Those that one token uses: all but the routed experts that were not chosen for it; embedding table included."""
    total = num_parameters(config)
    if config.n_routed_experts is None:
        return total
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    return total - moe_layers * (config.n_routed_experts - config.num_experts_per_tok) * expert
