"""A widened model computes what its source did, and every added weight learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.conftest import numbered

from openk2.chat.template import ChatTemplate
from openk2.checkpoint import save_model
from openk2.config import ModelConfig
from openk2.errors import ConfigError
from openk2.models import ForwardBatch, K2Model
from openk2.training.init import first_model, random_init_
from openk2.training.recipe import Recipe
from openk2.training.source import BatchSource
from openk2.training.trainer import Trainer
from openk2.training.widen import widen_

WIDER = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "q_lora_rank": 80,
    "kv_lora_rank": 120,
    "intermediate_size": 128,
    "moe_intermediate_size": 48,
}


def narrow(config: ModelConfig) -> K2Model:
    """Random weights, norms included, and outputs of full size: all that could be got wrong shows."""
    model = K2Model(config).float()
    random_init_(model, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.mul_(10)
            elif name.endswith("e_score_correction_bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif "embed_tokens" in name:
                parameter.mul_(50)
    return model


def logits(model: K2Model) -> torch.Tensor:
    with torch.no_grad():
        return model.compute_logits(model(torch.arange(60) * 3, ForwardBatch.packed([35, 25])))


@pytest.mark.parametrize("width", [*WIDER, "all"])
def test_the_function_is_kept(tiny_config: ModelConfig, width: str) -> None:
    source = narrow(tiny_config)
    changed = WIDER if width == "all" else {width: WIDER[width]}
    model = K2Model(replace(tiny_config, **changed)).float()  # type: ignore[arg-type]
    random_init_(model, 3)
    before = logits(model)
    widen_(model, source)
    torch.testing.assert_close(logits(model), logits(source), atol=2e-5, rtol=1e-4)
    assert (before - logits(source)).abs().max() > 0.1


def test_a_run_goes_on_wider_and_deeper_and_all_that_was_added_learns(
    recipe: Recipe, template: ChatTemplate, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    source = narrow(tiny_config)
    save_model(source, tmp_path / "narrow", dtype=torch.float32)
    target = replace(tiny_config, num_hidden_layers=4, **WIDER)  # type: ignore[arg-type]
    plan = replace(recipe, init=str(tmp_path / "narrow"), model=target)
    trainer = Trainer(plan, BatchSource(template, numbered, seed=1, max_length=4096), tmp_path / "run")
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    for _ in range(3):
        trainer.train_step()
    for name, parameter in trainer.model.named_parameters():
        if parameter.ndim > 1 and "embed_tokens" not in name:
            moved = (parameter != start[name]).float().mean()
            assert moved > 0.5, name  # of experts, those that tokens went to


def test_a_narrower_target_is_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    save_model(narrow(tiny_config), tmp_path / "wide", dtype=torch.float32)
    with pytest.raises(ConfigError, match="q_lora_rank"):
        first_model(replace(tiny_config, hidden_size=96, q_lora_rank=32), str(tmp_path / "wide"), 1)
