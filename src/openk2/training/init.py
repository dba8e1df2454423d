"""First weights of a model to be trained: plain random ones, or with the circuits of copying laid out beforehand.

A small model spends its first tens of millions of tokens on discovering induction (find an earlier occurrence
of the present token, copy what followed it; Olsson et al., arXiv:2209.11895). `structured_init_` starts it with that
circuit; training is free to change it.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from openk2.checkpoint import load_model
from openk2.config import ModelConfig
from openk2.errors import ConfigError
from openk2.models import K2Model
from openk2.models.attention import MLAttention
from openk2.training.widen import WIDTHS, can_widen, widen_

OUTPUTS = ("o_proj.weight", "down_proj.weight", "down_proj")
"""How the names of the matrices that write to the residual stream end."""
STACKED_SHARE = 0.5
"""Of a copied attention's output, in an added layer: the loss barely rises, and falls again within minutes."""


def first_model(config: ModelConfig, init: str, seed: int) -> K2Model:
    """A float32 model before its first step; `init` is `structured`, `random`, or a checkpoint folder to go on from.

    Raises ConfigError when the checkpoint is of another architecture. Fewer layers and smaller widths are no
    difference: it is grown (`widen.WIDTHS`). Nor is a shorter window: it is extended (`extends`).
    """
    model = K2Model(config).float()
    if init == "structured":
        structured_init_(model, seed)
    elif init == "random":
        random_init_(model, seed)
    else:
        source = load_model(init, dtype=torch.float32)
        theirs, ours = source.config.to_hf(), config.to_hf()
        widths = (*WIDTHS, "num_key_value_heads") if can_widen(source.config, config) else ()
        window = ("rope_scaling", "max_position_embeddings") if extends(source.config, config) else ()
        free = {"torch_dtype", "num_hidden_layers", *widths, *window}
        differing = [k for k, v in theirs.items() if ours.get(k) != v and k not in free]
        if differing or source.config.num_hidden_layers > config.num_hidden_layers:
            names = ", ".join(differing) or "num_hidden_layers"
            raise ConfigError(f"{init} differs from the recipe's model in {names}", param="init")
        wide = dataclasses.replace(config, num_hidden_layers=source.config.num_hidden_layers)
        if source.config != wide:
            narrow, source = source, K2Model(wide).float()
            random_init_(source, seed)
            widen_(source, narrow)
        grow_(model, source, seed)
    return model


def extends(source: ModelConfig, target: ModelConfig) -> bool:
    """Whether `target` reads at least as far as `source`, by YaRN over positions that `source` was trained on.

    A window that was extended before keeps its original; else the original may be shorter than the window, of a model
    that was trained on shorter sequences.
    """
    before, after = source.rope_scaling, target.rope_scaling
    if target.max_position_embeddings < source.max_position_embeddings:
        return False
    if after is None:
        return before is None and target.max_position_embeddings == source.max_position_embeddings
    if before is None:
        return after.original_max_position_embeddings <= source.max_position_embeddings
    same_original = after.original_max_position_embeddings == before.original_max_position_embeddings
    return same_original and after.factor >= before.factor


@torch.no_grad()
def grow_(model: K2Model, source: K2Model, seed: int) -> None:
    """Give `model` the weights of `source`, which may have fewer layers.

    The added layers stand before the last one. Their attention is that of the first layers, in order, at a share of
    its strength (progressive stacking, Gong et al. 2019, for attention alone); their feed-forward parts write nothing
    at first. Added attention that starts from random weights stays without a use for millions of tokens.
    """
    random_init_(model, seed)
    added = model.config.num_hidden_layers - source.config.num_hidden_layers
    last = source.config.num_hidden_layers - 1
    weights, targets = dict(source.named_parameters()), dict(model.named_parameters())
    for name, parameter in targets.items():
        if name.endswith(OUTPUTS):
            parameter.zero_()
    for name, parameter in weights.items():
        targets[name.replace(f"layers.{last}.", f"layers.{last + added}.")].copy_(parameter)
    for index in range(added):
        copied, new = f"layers.{index % (last + 1)}.", f"layers.{last + index}."
        for name, parameter in weights.items():
            if copied + "self_attn." in name or copied + "input_layernorm." in name:
                share = STACKED_SHARE if name.endswith("o_proj.weight") else 1.0
                targets[name.replace(copied, new)].copy_(parameter * share)


@torch.no_grad()
def random_init_(model: K2Model, seed: int) -> None:
    """Normal weights of standard deviation fan_in^-0.5 (embedding and head: `initializer_range`), unit norms.

    Matrices that write to the residual stream are a tenth of that, so that every block starts near the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith("e_score_correction_bias"):
            parameter.zero_()
        else:
            std = parameter.shape[-1] ** -0.5
            if "embed_tokens" in name or "lm_head" in name:
                std = model.config.initializer_range
            elif name.endswith(OUTPUTS):
                std *= 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


@torch.no_grad()
def structured_init_(model: K2Model, seed: int) -> None:
    """`random_init_`, then an induction circuit through the first two layers.

    The residual stream is divided into a constant, three equal parts A, B, C and a rest. The embedding writes the
    constant and a random code of the token to A. In layer 0, half of the heads look one position back, by rotary
    phase alone, and copy that token's code from A to B. In layer 1, half of the heads match the present token's code
    (A) with the keys' previous one (B) and copy the code they find (A) to C, which the head reads.

    Needs a low-rank query, and kv_lora_rank of at least one part plus qk_nope_head_dim.
    """
    random_init_(model, seed)
    c = model.config
    part = (c.hidden_size - 1) // 3
    a, b, out = (slice(1 + i * part, 1 + (i + 1) * part) for i in range(3))
    generator = torch.Generator().manual_seed(seed + 1)
    codes = torch.randn(c.vocab_size, part, generator=generator)
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    embedding.zero_()
    embedding[:, 0] = part**0.5
    embedding[:, a] = codes
    head[:, out] += 0.15 * codes
    first, second = (layer.self_attn for layer in model.decoder_layers[:2])
    _previous_token_heads(first, part, a, b)
    _matching_heads(second, part, a, b, out, generator)


def _previous_token_heads(attention: MLAttention, part: int, a: slice, b: slice) -> None:
    """Rotary pair i of the query lags by the angle of one position: the score sums cos(theta_i (distance - 1))."""
    c = attention.config
    heads = c.num_attention_heads // 2
    pairs = torch.arange(c.qk_rope_head_dim // 2)
    angle = c.rope_theta ** (-2 * pairs / c.qk_rope_head_dim)
    turning = angle > 0.05
    attention.q_a_proj.weight[0].zero_()
    attention.q_a_proj.weight[0, 0] = 1.0
    attention.kv_a_proj_with_mqa.weight.zero_()
    attention.kv_a_proj_with_mqa.weight[torch.arange(part), torch.arange(a.start, a.stop)] = 1.0
    # The constant has about the size 8 after the norm; the query's row, scaled by its own norm, about 5.
    key_rows = attention.kv_a_proj_with_mqa.weight[c.kv_lora_rank :]
    key_rows[0::2, 0] = 0.5 * turning
    gain = 8.0 / (c.softmax_scale * 4.0 * 5.0)
    query = attention.q_b_proj.weight.view(c.num_attention_heads, c.qk_head_dim, -1)
    rotary = query[:heads, c.qk_nope_head_dim :]
    query[:heads].zero_()
    rotary[:, 0::2, 0] = gain * torch.cos(angle) * turning
    rotary[:, 1::2, 0] = -gain * torch.sin(angle) * turning
    _copy_heads(attention, heads, part, torch.arange(part), b, gain=0.5)


def _matching_heads(
    attention: MLAttention, part: int, a: slice, b: slice, out: slice, generator: torch.Generator
) -> None:
    """Query and key are one random projection of the present token's code and of the previous one's."""
    c = attention.config
    heads, nope = c.num_attention_heads // 2, c.qk_nope_head_dim
    projection = torch.linalg.qr(torch.randn(max(part, nope), min(part, nope), generator=generator)).Q
    projection = projection.T if projection.shape[0] == part else projection
    projection = projection[:nope]
    attention.q_a_proj.weight[: projection.shape[0]].zero_()
    attention.q_a_proj.weight[: projection.shape[0], a] = projection
    attention.kv_a_proj_with_mqa.weight.zero_()
    attention.kv_a_proj_with_mqa.weight[torch.arange(part), torch.arange(a.start, a.stop)] = 1.0
    attention.kv_a_proj_with_mqa.weight[part : part + projection.shape[0], b] = 2 * projection
    query = attention.q_b_proj.weight.view(c.num_attention_heads, c.qk_head_dim, -1)
    keys = attention.kv_b_proj.weight.view(c.num_attention_heads, nope + c.v_head_dim, -1)
    query[:heads].zero_()
    keys[:heads, :nope].zero_()
    gain = math.sqrt(18.0 / (c.softmax_scale * nope))
    for i in range(projection.shape[0]):
        query[:heads, i, i] = gain
        keys[:heads, i, part + i] = gain
    _copy_heads(attention, heads, part, torch.arange(part), out, gain=1.0)


def _copy_heads(attention: MLAttention, heads: int, part: int, latent: Tensor, target: slice, gain: float) -> None:
    """The first `heads` heads, each a share of the code, copy latent entries to the residual dimensions `target`."""
    c = attention.config
    values = attention.kv_b_proj.weight.view(c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim, -1)
    share = -(-part // heads)
    if share > c.v_head_dim:
        raise ValueError(f"{heads} heads of {c.v_head_dim} cannot copy {part} values")
    for head in range(heads):
        values[head, c.qk_nope_head_dim :].zero_()
        attention.o_proj.weight[:, head * c.v_head_dim : (head + 1) * c.v_head_dim].zero_()
        for j, entry in enumerate(latent[head * share : (head + 1) * share].tolist()):
            values[head, c.qk_nope_head_dim + j, entry] = 1.0
            attention.o_proj.weight[target.start + head * share + j, head * c.v_head_dim + j] = gain
