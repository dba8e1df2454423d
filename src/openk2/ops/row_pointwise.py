"""Elementwise functions that give one value per input on every code path: for serving.

PyTorch's sigmoid and silu take one exponential in their vector loop and another in the loop's scalar tail, so an
element's last bit depends on where it stands. `exp` has one path for all; the arithmetic around it is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) in float32."""
    return torch.exp(-x.float()).add_(1).reciprocal_()


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """As `reference.silu_mul`."""
    g = gate.float()
    return (g / torch.exp(-g).add_(1)).to(gate.dtype) * up
