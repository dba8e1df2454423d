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
    """Radians per position of each rotary pair: (qk_rope_head_dim / 2,) float32, on the CPU.

    YaRN leaves the pairs that turn more than `beta_fast` times in the original window alone, divides those that turn
    less than `beta_slow` times by `factor`, and ramps linearly in between. Every step is float32, in the order of the
    published code: one rounding more or less turns the angle by 0.02 rad at position 262,143.
    """
    dim, base, scaling = config.qk_rope_head_dim, float(config.rope_theta), config.rope_scaling
    period = base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    freq = 1.0 / period
    if scaling is not None:

        def pair_turning(times: float) -> float:
            window = scaling.original_max_position_embeddings
            return dim * math.log(window / (2 * math.pi * times)) / (2 * math.log(base))

        low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
        high: float = min(math.ceil(pair_turning(scaling.beta_slow)), dim - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
        keep = 1 - ramp
        freq = 1.0 / (scaling.factor * period) * (1 - keep) + freq * keep
    return freq


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
