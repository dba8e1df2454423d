"""Models without a checkpoint: random weights of a trained model's size, for tests and speed measurements."""

from __future__ import annotations

import torch

from openk2.config import ModelConfig
from openk2.models import K2Model
from openk2.models.packed import Quantization, pack_modules, packed_stacks
from openk2.models.packed_decode import finish_packing
from openk2.quant import random_stack


@torch.no_grad()
def random_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
) -> K2Model:
    """A model in evaluation mode with normal weights of `initializer_range` and unit norms, equal for equal seeds.

    With `quantization` the large matrices are drawn in the packed layout itself, so that a model's size is bound by its
    packed bytes; its numbers are then others than without.
    """
    with torch.device("meta"):
        model = K2Model(config)
    if quantization is not None:
        pack_modules(model, quantization)
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("e_score_correction_bias"):
            parameter.zero_()
        else:
            parameter.normal_(0.0, config.initializer_range, generator=generator)
    for _, stack in packed_stacks(model):
        random_stack(stack, config.initializer_range, generator)
    if quantization is not None:
        finish_packing(model)
    return model.eval()
