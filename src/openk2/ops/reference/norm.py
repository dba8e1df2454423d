"""RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale the last axis to unit root mean square, then by `weight` (D,).

    The statistics are float32 whatever x's dtype; the product with `weight` is in x's dtype, as in the published
    modelling code. x: (..., D).
    """
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * x32.to(x.dtype)
