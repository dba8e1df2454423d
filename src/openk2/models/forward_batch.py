"""What one forward pass works on, beside the token ids: packed tokens of several sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from openk2.ops import ExpertBudgets


@dataclass(frozen=True)
class PagedBatch:
    """Where the tokens of a serving step stand in the paged latent cache.

    B sequences, T tokens; sequence b owns the tokens `query_starts[b]` to `query_starts[b + 1]`.
    """

    slot_mapping: Tensor
    """(T,) int64: the cache slot (block * block_size + offset) that each token writes."""
    block_tables: Tensor
    """(B, max_blocks) int64; entries past the context are 0 and ignored."""
    query_starts: tuple[int, ...]
    context_lens: tuple[int, ...]
    """Tokens of each sequence in the cache after this step."""
    generated: Tensor
    """(T,) bool, on the host: a generated token (absorbed attention) or one of the prompt (expanded). Within a
    sequence the prompt's tokens come first."""


@dataclass(frozen=True)
class ForwardBatch:
    """T packed tokens. Without `paged`, whole sequences attend to themselves and nothing is cached."""

    positions: Tensor
    """(T,) int64."""
    cu_seqlens: tuple[int, ...] = ()
    """Borders of the packed sequences, from 0 to T."""
    paged: PagedBatch | None = None
    per_row: bool = False
    """Compute each token's matrix products by themselves (`ops.single_rows`): for tokens that were all generated."""
    budgets: ExpertBudgets | None = None
    """How many experts each token takes; None is the trained number."""
    taken: Tensor | None = None
    """(layers, T) int64, into which with `budgets` is written how many experts each token took; 0 in dense layers."""
    topk_ids: Tensor | None = None
    """(layers, T, K) int64: each token's experts, given in place of the router's choice, as when a rollout is replayed.
    The router still weighs them. Layers without experts ignore their part."""
    chosen_ids: Tensor | None = None
    """(layers, T, K) int64, into which the experts of each token are written."""
    max_logits: Tensor | None = None
    """(layers, heads) float32, raised in place to the largest attention logits seen: for QK-Clip."""
    expert_load: Tensor | None = None
    """(layers, experts) float32, to which the tokens that chose each expert are added: for load balancing."""
    observe_attention: Callable[[int, Tensor, Tensor, float], None] | None = None
    """Given each layer's index, queries and keys (T, H, D), and softmax scale: for a loss on attention itself."""
    recompute: bool = False
    """Keep only the layers' inputs for the backward pass, which runs them again, unobserved. Not with
    `observe_attention`."""

    @classmethod
    def packed(
        cls, lengths: Sequence[int], *, start: int = 0, device: torch.device | str = "cpu", **extra: Tensor | None
    ) -> ForwardBatch:
        """Whole sequences of these lengths, each at positions from `start`."""
        positions = torch.cat([torch.arange(start, start + n) for n in lengths])
        return cls(positions.to(device), (0, *accumulate(lengths)), **extra)  # type: ignore[arg-type]
