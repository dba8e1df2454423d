"""Rotary embedding in the checkpoint's interleaved layout: pair i is (2i, 2i + 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of the last axis.

    x: (T, R) or (T, H, R); cos, sin: (T, R/2) float32. Computed in float32, returned in x's dtype, still interleaved.
    """
    if x.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)
