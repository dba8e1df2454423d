"""Activation recomputation (Chen et al., arXiv:1604.06174): a layer's inside is computed again instead of kept."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openk2.models.forward_batch import ForwardBatch


def recomputed(layer: nn.Module, h: Tensor, batch: ForwardBatch, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """`layer(h, batch, rotary, None)`, of which only `h` is kept for the backward pass.

    The second run is without the batch's observers, which would count every token twice.
    """
    runs = [batch]

    def run(hidden: Tensor) -> Tensor:
        given = runs.pop() if runs else replace(batch, max_logits=None, expert_load=None)
        return layer(hidden, given, rotary, None)

    return checkpoint(run, h, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
