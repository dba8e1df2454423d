"""Warmup, stable, decay (WSD): the learning-rate schedule that K2 was trained with (arXiv:2507.20534, section 2.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openk2.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Fractions of the peak learning rate over a run measured in tokens."""

    warmup_tokens: int
    stable_tokens: int
    """Tokens after the warmup at the peak."""
    decay_tokens: int
    """Tokens of the final cosine decay; 0 for none."""
    final_scale: float = 0.1
    """What is left of the peak at the end."""

    def __post_init__(self) -> None:
        for name in ("warmup_tokens", "stable_tokens", "decay_tokens", "final_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"schedule.{name} must be at least 0, not {getattr(self, name)}", param=name)

    @property
    def total_tokens(self) -> int:
        return self.warmup_tokens + self.stable_tokens + self.decay_tokens

    def scale(self, tokens: int) -> float:
        """The factor on the peak learning rate once `tokens` have been trained on."""
        if tokens < self.warmup_tokens:
            return max(tokens, 1) / self.warmup_tokens
        past = tokens - self.warmup_tokens - self.stable_tokens
        if past <= 0 or self.decay_tokens == 0:
            return 1.0
        progress = min(past / self.decay_tokens, 1.0)
        return self.final_scale + (1 - self.final_scale) * 0.5 * (1 + math.cos(math.pi * progress))
