"""Models without a checkpoint: random weights of a trained model's size, for tests and speed measurements."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from openk2.checkpoint.expert_store_file import ExpertWriter
from openk2.checkpoint.expert_store_pack import attach_store, draw_experts
from openk2.config import ModelConfig
from openk2.models import K2Model
from openk2.models.packed import Quantization, pack_modules, packed_stacks
from openk2.models.packed_decode import finish_packing
from openk2.models.packed_stored import store_experts
from openk2.quant import random_stack


@torch.no_grad()
def random_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    packed_folder: Path | None = None,
    expert_cache_bytes: int | None = None,
) -> K2Model:
    """A model in evaluation mode with normal weights of `initializer_range` and unit norms, equal for equal seeds.

    With `quantization` the large matrices are drawn in the packed layout itself, so that a model's size is bound by its
    packed bytes; its numbers are then others than without. `expert_cache_bytes`: as in `load_model`, with the same
    numbers as without it.
    """
    with torch.device("meta"):
        model = K2Model(config)
    if quantization is not None:
        pack_modules(model, quantization)
    order = [(name, stack.layout) for name, stack in packed_stacks(model)]
    if expert_cache_bytes is not None:
        store_experts(model)
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("e_score_correction_bias"):
            parameter.zero_()
        else:
            parameter.normal_(0.0, config.initializer_range, generator=generator)
    if expert_cache_bytes is None:
        for _, stack in packed_stacks(model):
            random_stack(stack, config.initializer_range, generator)
    else:
        assert quantization is not None and packed_folder is not None, "packed experts, and a folder for them"
        here, std = dict(packed_stacks(model)), config.initializer_range

        def draw(writer: ExpertWriter) -> None:
            for name, layout in order:
                if name in here:
                    random_stack(here[name], std, generator)
                else:
                    draw_experts(model, name, layout, std, generator, writer)

        key = hashlib.sha256(f"{config}\n{quantization.code}\n{seed}".encode()).hexdigest()[:24]
        path = packed_folder / f"random-{key[:8]}-{quantization.experts}.experts"
        path.unlink(missing_ok=True)  # what is drawn after an expert depends on its being drawn
        attach_store(model, path, key, expert_cache_bytes, draw)
    if quantization is not None:
        finish_packing(model)
    return model.eval()
