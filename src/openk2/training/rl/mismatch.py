"""How far the engine that answers and the model that is trained are apart on the same tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mismatch(engine_N: Tensor, trainer_N: Tensor) -> dict[str, Any]:
    """Of the log-probabilities that both gave to the tokens that the engine drew.

    `kl` estimates KL(engine || trainer) per token by the mean of exp(d) - 1 - d over those tokens, d = trainer -
    engine: unbiased, and never negative (J. Schulman, "Approximating KL divergence", 2020).
    """
    apart = trainer_N.double() - engine_N.double()
    return {
        "tokens": len(apart),
        "mean_abs": float(apart.abs().mean()) if len(apart) else 0.0,
        "max_abs": float(apart.abs().max()) if len(apart) else 0.0,
        "kl": float((torch.expm1(apart) - apart).mean()) if len(apart) else 0.0,
    }
