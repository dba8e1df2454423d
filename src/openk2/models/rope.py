"""Rotary frequencies with YaRN, arXiv:2309.00071, as DeepSeek configures it.

Angles are float32(position) x float32(inv_freq): what the models were trained with. Exact angles differ by more than
0.01 rad near 262k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openk2.config import ModelConfig
from openk2.config.model_config import yarn_mscale


def inv_freq(config: ModelConfig) -> Tensor:
    """Radians per position of each rotary pair: (qk_rope_head_dim / 2,) float32.

    YaRN leaves the pairs that turn more than `beta_fast` times in the original window alone, divides those that turn
    less than `beta_slow` times by `factor`, and ramps linearly in between.
    """
    dim, base, scaling = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    freq = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if scaling is not None:

        def pair_turning(times: float) -> float:
            window = scaling.original_max_position_embeddings
            return dim * math.log(window / (2 * math.pi * times)) / (2 * math.log(base))

        low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
        high: float = min(math.ceil(pair_turning(scaling.beta_slow)), dim - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
        freq = freq * ((1 - ramp) + ramp / scaling.factor)
    return freq.float()


def rotary_tables(positions_T: Tensor, inv_freq_R: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin (T, qk_rope_head_dim / 2), float32, times YaRN's ratio of temperatures (1 in K2)."""
    angles = positions_T.float()[:, None] * inv_freq_R
    cos, sin = angles.cos(), angles.sin()
    scaling = config.rope_scaling
    if scaling is not None:
        ratio = yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim or 0.0)
        if ratio != 1.0:
            cos, sin = cos * ratio, sin * ratio
    return cos, sin
