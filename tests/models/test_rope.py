"""YaRN's frequencies: published spot values, the ramp, and transformers bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openk2.config import preset
from openk2.models.rope import inv_freq, rotary_tables


@pytest.mark.parametrize(
    ("name", "pair20", "pair31"),
    [
        ("k2", 3.6140467735726306e-05, 8.764412911589874e-07),
        ("k2-0905", 1.8070233867863153e-05, 4.382206455794937e-07),
    ],
)
def test_spot_values(name: str, pair20: float, pair31: float) -> None:
    freq = inv_freq(preset(name))
    assert freq.dtype == torch.float32 and freq.shape == (32,)
    got = [freq[i].item() for i in (0, 1, 19, 20, 31)]
    assert got == pytest.approx([1.0, 0.713111084911932, 0.0016217599081159522, pair20, pair31], rel=3e-7)


def test_equal_betas_make_a_hard_step_and_k2_5_a_ramp() -> None:
    plain = inv_freq(preset("moonlight"))  # theta 50000, no scaling
    ratio = plain / inv_freq(preset("k2-0905"))
    assert torch.allclose(ratio[:20], torch.ones(20)) and torch.allclose(ratio[20:], torch.full((12,), 64.0))
    v3 = inv_freq(preset("deepseek-v3"))
    unscaled = 10000 ** -(torch.arange(0, 64, 2) / 64)
    keep = (v3 / unscaled - 1 / 40) / (1 - 1 / 40)
    assert torch.all(keep.diff() <= 1e-6) and 3 < int(((keep > 0.01) & (keep < 0.99)).sum()) < 20


def test_equal_to_transformers_bit_for_bit(pair: Any) -> None:
    assert torch.equal(inv_freq(pair.config), pair.theirs.model.rotary_emb.inv_freq)


def test_tables_carry_no_temperature_in_the_published_models() -> None:
    for name in ("k2-0905", "deepseek-v2-lite", "moonlight"):
        config = preset(name)
        cos, sin = rotary_tables(torch.tensor([0, 5]), inv_freq(config), config)
        assert cos[0].eq(1).all() and sin[0].eq(0).all()
        assert torch.allclose(cos**2 + sin**2, torch.ones_like(cos))
