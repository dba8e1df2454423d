"""Matrix product with a weight stored [out, in]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (T, in) times weight (out, in) transposed: (T, out)."""
    return F.linear(x, weight)
