"""What a model will take of memory, counted before it is loaded; and what is then left for its routed experts."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from openk2.checkpoint import Quantization
from openk2.checkpoint.expert_store import least_slots
from openk2.config import ModelConfig, show_bytes
from openk2.engine.engine import EngineConfig
from openk2.engine.kv_cache import DEFAULT_BYTES, block_bytes, default_num_blocks
from openk2.engine.model_runner import LOGIT_ROWS
from openk2.engine.scheduler import most_step_tokens
from openk2.errors import ConfigError
from openk2.models import K2Model
from openk2.models.packed import PackedExperts, pack_modules, packed_stacks
from openk2.ops import cpu
from openk2.ops.row_attention import KEY_TILE, QUERY_ROWS

LIBRARY_BYTES = 64 << 20
"""That torch, the tokenizer and its grammars take beyond what the process has before it loads a model."""
WORK_BYTES = 96 << 20
"""Beside one tensor of the checkpoint while it is packed; beside what is counted of a step, while one runs."""
CACHE_SHARE = 8
"""The latent cache takes at most one part in so many, unless one whole sequence needs more."""


@dataclass(frozen=True)
class MemoryPlan:
    """Terms in bytes; together at most what was promised."""

    promised: int
    process: int
    """What this process had before, and its libraries will have."""
    weights: int
    """All but the routed experts, where those can stay on disk."""
    latent_cache: int
    buffers: int
    experts: int
    """All routed experts that can stay on disk, packed."""
    least_experts: int
    """Of those, what must be in memory."""
    num_blocks: int
    """Of the latent cache."""

    @property
    def left(self) -> int:
        return self.promised - self.process - self.weights - self.latent_cache - self.buffers

    @property
    def expert_cache_bytes(self) -> int | None:
        """None: all experts are in memory."""
        return None if self.left >= self.experts else self.left

    def check(self) -> None:
        """Raises ConfigError, which tells the missing bytes, for a promise that cannot be kept."""
        if self.left < self.least_experts:
            missing = self.least_experts - self.left
            terms = {
                "this process and its libraries": self.process,
                "weights": self.weights,
                "latent cache": self.latent_cache,
                "buffers": self.buffers,
                "the routed experts of one token": self.least_experts,
            }
            told = ", ".join(f"{name} {show_bytes(size)}" for name, size in terms.items() if size)
            raise ConfigError(
                f"memory of {show_bytes(self.promised)} cannot hold this model: {missing:,} bytes are missing "
                f"({told}); a smaller max_model_len shrinks cache and buffers",
                param="memory",
            )


def plan_memory(
    config: ModelConfig,
    promised: int,
    *,
    quantization: Quantization | None,
    dtype: torch.dtype,
    engine: EngineConfig,
    largest_tensor_bytes: int = 0,
) -> MemoryPlan:
    """`dtype`: of what is not packed. `largest_tensor_bytes`: of the checkpoint, read whole while it is loaded.

    Raises ConfigError for a promise that cannot be kept.
    """
    with torch.device("meta"):
        model = K2Model(config).to(dtype)
    if quantization is not None:
        pack_modules(model, quantization)
    experts = least = 0
    for module in model.modules():
        if isinstance(module, PackedExperts):
            size = sum(layout.count * layout.matrix_bytes for layout in module.layouts.values())
            experts += size
            least = least_slots(config.num_experts_per_tok) * size // module.layouts["down"].count
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    weights += sum(stack.data.numel() for _, stack in packed_stacks(model)) - experts
    if quantization is not None:  # a decode step reads kv_b_proj in bfloat16
        weights += sum(2 * layer.self_attn.kv_b_proj.weight.numel() for layer in model.decoder_layers)
    window = engine.max_model_len or config.max_position_embeddings
    num_blocks = engine.num_blocks or default_num_blocks(
        config,
        block_size=engine.block_size,
        max_model_len=window,
        max_num_seqs=engine.max_num_seqs,
        dtype=dtype,
        most_bytes=min(DEFAULT_BYTES, promised // CACHE_SHARE),
    )
    plan = MemoryPlan(
        promised=promised,
        process=resident_bytes() + LIBRARY_BYTES,
        weights=weights,
        latent_cache=num_blocks * block_bytes(config, engine.block_size, dtype),
        buffers=max(2 * largest_tensor_bytes, _step_bytes(config, engine, window)) + WORK_BYTES,
        experts=experts,
        least_experts=least,
        num_blocks=num_blocks,
    )
    plan.check()
    return plan


def _step_bytes(c: ModelConfig, engine: EngineConfig, window: int) -> int:
    """Of the largest step's tensors, which are float32: those of one layer live at once, then those of the logits."""
    tokens, heads = most_step_tokens(engine.max_num_batched_tokens, window), c.num_attention_heads
    key, value = c.qk_nope_head_dim + c.qk_rope_head_dim, c.v_head_dim
    if cpu.available():  # each thread: a head's weights, a block of keys as cached and expanded, the step's queries
        expanded = c.qk_nope_head_dim + value + QUERY_ROWS
        thread = (c.kv_lora_rank + KEY_TILE) * expanded + KEY_TILE * (c.latent_dim + QUERY_ROWS)
        thread += (tokens + 2 * QUERY_ROWS) * (key + value + 2)
        context = torch.get_num_threads() * thread + window * 2 * c.latent_dim
    else:  # keys and values of the whole context, twice while they are laid out, and the scores of a tile of queries
        context = window * (heads * (2 * (c.qk_nope_head_dim + value) + key + 3 * QUERY_ROWS) + 2 * c.latent_dim)
    width = max(c.moe_intermediate_size, c.intermediate_size // max(c.num_experts_per_tok, 1))
    pairs = tokens * max(c.num_experts_per_tok, 1) * (3 * c.hidden_size + 2 * width)
    rows = tokens * (8 * c.hidden_size + 3 * heads * (key + value))
    logits = 4 * c.vocab_size * (engine.max_num_seqs + LOGIT_ROWS)
    return 4 * (max(context, pairs) + rows + logits)


def resident_bytes() -> int:
    """Memory of this process: now on Linux, else the most it has had."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
