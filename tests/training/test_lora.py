"""Adapters: they start from the model, train alone, resume exactly, and merge to base + adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.conftest import numbered
from typer.testing import CliRunner

from openk2.chat.template import ChatTemplate
from openk2.checkpoint import load_model, save_model
from openk2.cli.train import app
from openk2.config import ModelConfig
from openk2.errors import CheckpointError, ConfigError
from openk2.models import ForwardBatch, K2Model
from openk2.training.adapter_files import merge_adapter_, read_adapter
from openk2.training.export import export_model
from openk2.training.init import random_init_
from openk2.training.lora import LoraConfig, adapters, merge_adapters_
from openk2.training.recipe import Recipe, StageConfig, load_recipe
from openk2.training.schedule import WarmupStableDecay
from openk2.training.source import BatchSource
from openk2.training.trainer import Trainer

IDS = torch.arange(5, 45)


@pytest.fixture(scope="module")
def base(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(tiny_config, hidden_size=32, num_hidden_layers=2, q_lora_rank=16, kv_lora_rank=16)
    model = K2Model(config).float()
    random_init_(model, 3)
    return save_model(model, tmp_path_factory.mktemp("base") / "checkpoint", dtype=torch.float32)


@pytest.fixture
def tuned(base: Path) -> Recipe:
    from openk2.checkpoint import load_config

    return Recipe(
        model=load_config(base),
        init=str(base),
        lora=LoraConfig(rank=4, alpha=8.0, targets=("q_b_proj", "o_proj", "down_proj")),
        schedule=WarmupStableDecay(warmup_tokens=100, stable_tokens=10_000, decay_tokens=0),
        stages=(StageConfig(batch_tokens=600),),
    )


def trainer_of(recipe: Recipe, template: ChatTemplate, folder: Path) -> Trainer:
    return Trainer(recipe, BatchSource(template, numbered, seed=1, max_length=4096), folder)


def logits(model: K2Model) -> torch.Tensor:
    with torch.no_grad():
        return model.compute_logits(model(IDS, ForwardBatch.packed([len(IDS)])))


def test_training_starts_from_the_model_and_leaves_it(
    tuned: Recipe, base: Path, template: ChatTemplate, tmp_path: Path
) -> None:
    trainer = trainer_of(tuned, template, tmp_path)
    plain = load_model(base)
    assert torch.equal(logits(trainer.model), logits(plain))
    losses = [trainer.train_step()["loss"] for _ in range(6)]
    assert losses[-1] < losses[0] - 0.05
    frozen = dict(plain.named_parameters())
    named = dict(trainer.model.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in frozen.items())
    assert len(named) - len(frozen) == 2 * len(list(adapters(trainer.model)))
    names = [name for name, _ in adapters(trainer.model)]
    assert names == [
        "model.layers.0.self_attn.q_b_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_b_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.shared_experts.down_proj",
    ]
    assert all(torch.any(a.lora_B.weight != 0) for _, a in adapters(trainer.model))


@pytest.mark.parametrize("ways", [{}, {"dtype": "bfloat16", "recompute": True, "accumulate": 2}], ids=["plain", "all"])
def test_a_cut_run_of_adapters_goes_on_bit_identically(
    tuned: Recipe, template: ChatTemplate, tmp_path: Path, ways: dict[str, Any]
) -> None:
    recipe = replace(tuned, **ways)
    whole = trainer_of(recipe, template, tmp_path / "whole")
    first = trainer_of(recipe, template, tmp_path / "cut")
    for _ in range(3):
        whole.train_step()
    first.train_step()
    first.save()
    state = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    assert all("lora_" in name for name in state["model"])
    second = trainer_of(recipe, template, tmp_path / "cut")
    assert second.resume()
    for _ in range(2):
        second.train_step()
    resumed = dict(second.model.named_parameters())
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, resumed[name]), name
    with pytest.raises(CheckpointError, match=r"another \[lora\] section"):
        trainer_of(replace(recipe, lora=LoraConfig(rank=2, alpha=8.0)), template, tmp_path / "cut").resume()


def test_merged_is_base_plus_adapter_from_memory_and_from_files(
    tuned: Recipe, base: Path, template: ChatTemplate, tmp_path: Path
) -> None:
    trainer = trainer_of(tuned, template, tmp_path / "run")
    for _ in range(3):
        trainer.train_step()
    adapted = logits(trainer.model)
    export_model(trainer, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (described["peft_type"], described["r"], described["lora_alpha"]) == ("LORA", 4, 8.0)
    expected = {n: p.detach().clone() for n, p in load_model(base).named_parameters()}
    for name in described["target_modules"]:
        a, b = (stored[f"base_model.model.{name}.lora_{f}.weight"] for f in "AB")
        expected[f"{name}.weight"] += 8.0 / 4 * b @ a
    result = CliRunner().invoke(
        app, ["merge", str(base), str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]
    )
    assert result.exit_code == 0 and "6 matrices merged" in result.output
    merge_adapters_(trainer.model)
    for merged in (trainer.model, load_model(tmp_path / "merged")):
        weights = dict(merged.named_parameters())
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name].detach(), value, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(logits(merged), adapted, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_an_expert_is_merged_into_its_stack(base: Path, tmp_path: Path) -> None:
    """PEFT names each expert's matrix where the model holds a stack."""
    name = "model.layers.1.mlp.experts.3.up_proj"
    model = load_model(base)
    width, hidden = 32, 32
    a, b = torch.randn(2, hidden), torch.randn(model.config.moe_intermediate_size, 2)
    save_file(
        {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    before = model.model.layers[1].mlp.experts.gate_up_proj.detach().clone()
    assert merge_adapter_(model, tmp_path) == 1
    change = model.model.layers[1].mlp.experts.gate_up_proj.detach() - before
    assert width == model.config.moe_intermediate_size
    torch.testing.assert_close(change[3, width:], 2 * b @ a, atol=1e-5, rtol=1e-5)
    assert not change[:3].any() and not change[4:].any() and not change[3, :width].any()


def test_adapters_that_cannot_be_merged_are_refused(base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    with pytest.raises(CheckpointError, match="no readable adapter"):
        read_adapter(tmp_path)
    key = "base_model.model.model.layers.0.self_attn.o_proj.lora_{}.weight"
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file({key.format("A"): torch.zeros(2, 7), key.format("B"): torch.zeros(32, 2)}, file)
    config.write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": true}')
    with pytest.raises(CheckpointError, match="uses use_dora"):
        merge_adapter_(model, tmp_path)
    config.write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    with pytest.raises(CheckpointError, match="does not fit the model's"):
        merge_adapter_(model, tmp_path)
    save_file({key.format("A"): torch.zeros(2, 7)}, file)
    with pytest.raises(CheckpointError, match="no lora_B"):
        merge_adapter_(model, tmp_path)
    for tensors, said in (
        ({key.format("B"): torch.zeros(32, 2)}, "is no part of a plain LoRA adapter"),
        ({key.format("A"): torch.zeros(7), key.format("B"): torch.zeros(32, 2)}, "is of no matrix"),
        ({}, "holds no matrix"),
    ):
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=said):
            merge_adapter_(model, tmp_path)
    for wrong in ('"r": 0', '"r": "many"', '"r": null'):
        config.write_text(f'{{"peft_type": "LORA", {wrong}, "lora_alpha": 4}}')
        with pytest.raises(CheckpointError, match="no readable adapter"):
            merge_adapter_(model, tmp_path)


def test_mistakes_in_the_section_are_named(tuned: Recipe, base: Path, template: ChatTemplate, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no matrix 'k_proj'; it has down_proj, gate_proj"):
        trainer_of(replace(tuned, lora=LoraConfig(rank=2, alpha=1, targets=("k_proj",))), template, tmp_path)
    with pytest.raises(ConfigError, match="num_hidden_layers; leave"):
        trainer_of(replace(tuned, model=replace(tuned.model, num_hidden_layers=3)), template, tmp_path)
    file = tmp_path / "r.toml"
    text = "[schedule]\nwarmup_tokens = 1\nstable_tokens = 1\ndecay_tokens = 1\n[[stages]]\nbatch_tokens = 9\n"
    file.write_text(text + "[lora]\nrank = 4\nalpha = 8\n")
    with pytest.raises(ConfigError, match="needs a checkpoint folder"):
        load_recipe(file)
    recipe = load_recipe(file, [f"init={base}"])
    assert recipe.lora == LoraConfig(rank=4, alpha=8) and recipe.model == tuned.model, "the checkpoint's own shape"
    with pytest.raises(ConfigError, match="above 0"):
        load_recipe(file, [f"init={base}", "lora.rank=0"])
