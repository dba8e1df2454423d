"""Tiny models shaped like the published ones, and transformers' implementation of the same weights as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openk2.config import ModelConfig, preset
from openk2.models import ForwardBatch, K2Model, PagedBatch

SHAPES = ("k2-0905", "deepseek-v3", "moonlight", "deepseek-v2-lite")
BLOCK = 16

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 262144,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "num_nextn_predict_layers": 0,
}


def tiny_config(name: str) -> ModelConfig:
    """The preset `name` with small sizes; routing, groups, YaRN, epsilon and layer kinds stay the preset's."""
    config = preset(name)
    groups = config.n_group
    return replace(
        config,
        **TINY,
        q_lora_rank=None if config.q_lora_rank is None else 20,
        first_k_dense_replace=1,
        n_routed_experts=32 if groups > 1 else 16,
        num_experts_per_tok=min(config.num_experts_per_tok, 6),
    )


def randomise(model: K2Model, seed: int = 0) -> None:
    """Weights of a trained model's scale; norms off 1, and a router that spreads and is moved by its bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("e_score_correction_bias"):
                parameter.copy_(0.1 * noise)
            elif name.endswith("gate.weight"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


@dataclass
class Pair:
    """Our model and transformers' with equal float32 weights."""

    config: ModelConfig
    ours: K2Model
    theirs: Any

    def theirs_logits(self, ids: Tensor, start: int = 0, past: Any = None, mask: Tensor | None = None) -> Tensor:
        """(B, S) ids at positions from `start` to (B, S, vocab)."""
        positions = torch.arange(start, start + ids.shape[1])[None].expand_as(ids)
        if mask is not None:
            positions = (mask.cumsum(-1) - 1).clamp(min=0) + start
        with torch.no_grad():
            out = self.theirs(
                input_ids=ids,
                position_ids=positions,
                past_key_values=past,
                attention_mask=mask,
                use_cache=past is not None,
            )
        return out.logits

    def ours_logits(self, ids: Tensor, batch: ForwardBatch, kv_cache: list[Tensor] | None = None) -> Tensor:
        """(T,) packed ids to (T, vocab)."""
        with torch.no_grad():
            return self.ours.compute_logits(self.ours(ids, batch, kv_cache))


class PagedCache:
    """Sequences in a paged cache with shuffled blocks, so that a wrong table cannot pass."""

    def __init__(self, config: ModelConfig, sequences: int, max_len: int) -> None:
        per_sequence = -(-max_len // BLOCK)
        blocks = sequences * per_sequence
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)) + 1
        self.tables = order.view(sequences, per_sequence)
        shape = (blocks + 1, BLOCK, config.latent_dim)
        self.layers = [torch.full(shape, torch.nan) for _ in range(config.num_hidden_layers)]
        self.lengths = [0] * sequences

    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        return self.tables[sequence][positions // BLOCK] * BLOCK + positions % BLOCK

    def fill(self, sequence: int, entries: list[Tensor]) -> None:
        """Write `entries` (one (S, latent_dim) per layer) as the sequence's first tokens."""
        count = entries[0].shape[0]
        slots = self.slots(sequence, torch.arange(count))
        for layer, values in zip(self.layers, entries, strict=True):
            layer.view(-1, layer.shape[-1])[slots] = values
        self.lengths[sequence] = count

    def batch(self, counts: list[int], generated: bool) -> ForwardBatch:
        """The next `counts[b]` tokens of each sequence."""
        positions, slots, starts = [], [], [0]
        for sequence, count in enumerate(counts):
            at = torch.arange(self.lengths[sequence], self.lengths[sequence] + count)
            positions.append(at)
            slots.append(self.slots(sequence, at))
            starts.append(starts[-1] + count)
            self.lengths[sequence] += count
        paged = PagedBatch(
            slot_mapping=torch.cat(slots),
            block_tables=self.tables,
            query_starts=tuple(starts),
            context_lens=tuple(self.lengths),
            generated=torch.full((starts[-1],), generated),
        )
        return ForwardBatch(positions=torch.cat(positions), paged=paged)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest logit."""
    assert torch.isfinite(ours).all()
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="session")
def make_pair() -> Callable[[str], Pair]:
    """Builds (once) the pair of a preset's name."""
    built: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in built:
            ours = K2Model(tiny_config(name))
            randomise(ours)
            built[name] = pair_of(ours)
        return built[name]

    return make


def pair_of(ours: K2Model) -> Pair:
    """`ours` and transformers' model of its config with its weights."""
    transformers = pytest.importorskip("transformers")
    config = ours.config
    v2 = config.model_type == "deepseek_v2"
    raw = config.to_hf()
    raw["model_type"] = "deepseek_v2" if v2 else "deepseek_v3"  # transformers does not know kimi_k2
    hf_config = (transformers.DeepseekV2Config if v2 else transformers.DeepseekV3Config)(**raw)
    hf_config._attn_implementation = "eager"
    theirs = (transformers.DeepseekV2ForCausalLM if v2 else transformers.DeepseekV3ForCausalLM)(hf_config)
    theirs.set_experts_implementation("eager")
    # The fused expert stacks have the same names and layout there, so the parameters map one to one.
    result = theirs.load_state_dict(dict(ours.named_parameters()), strict=False)
    assert not result.unexpected_keys and not result.missing_keys, result
    return Pair(config, ours.eval(), theirs.eval().float())


@pytest.fixture
def paged_cache() -> type[PagedCache]:
    return PagedCache


@pytest.fixture
def error() -> Callable[[Tensor, Tensor], float]:
    return relative_error


@pytest.fixture(params=SHAPES)
def pair(request: pytest.FixtureRequest, make_pair: Callable[[str], Pair]) -> Pair:
    return make_pair(request.param)
