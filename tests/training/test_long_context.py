"""Extending a window: the recipe's keys, the model that comes out, and the conversations that it learns from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.conftest import pair_of, relative_error

from openk2.chat.template import ChatTemplate
from openk2.checkpoint import load_model, save_model
from openk2.config import ModelConfig, RopeScaling
from openk2.errors import CheckpointError, ConfigError, DataError
from openk2.models import ForwardBatch, K2Model
from openk2.training.assemble import open_run
from openk2.training.bpe import byte_order
from openk2.training.data import Conversation, conversations
from openk2.training.data.long import long_conversations
from openk2.training.export import export_model
from openk2.training.init import extends, first_model, random_init_
from openk2.training.long_source import LongSource, cut, drawn_length, held_long
from openk2.training.recipe import Recipe, StageConfig, load_recipe
from openk2.training.trainer import Trainer
from openk2.training.vocabulary import write_tokenizer

WINDOW = 1024
YARN = RopeScaling(factor=4, original_max_position_embeddings=WINDOW, mscale_all_dim=1.0)
RECIPE = """
name = "long"
init = "{init}"
seed = 3
validation_conversations = 2
save_every_tokens = 1_000_000
validate_every_tokens = 1_000_000
[model]
max_position_embeddings = 4096
[model.rope_scaling]
type = "yarn"
factor = 4
original_max_position_embeddings = 1024
mscale_all_dim = 1.0
[data]
kind = "long"
[schedule]
warmup_tokens = 100
stable_tokens = 8_000
decay_tokens = 2_000
[[stages]]
batch_tokens = 3_000
sequence_tokens = 3_500
"""


@pytest.fixture
def short(tiny_config: ModelConfig, tmp_path: Path) -> ModelConfig:
    """The config of a checkpoint, in the folder `short`, of a model with a short window and its tokenizer."""
    config = replace(
        tiny_config, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16,
        max_position_embeddings=WINDOW,
    )  # fmt: skip
    model = K2Model(config).float()
    random_init_(model, 5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.mul_(20)  # so that attention moves the logits
    save_model(model, tmp_path / "short", dtype=torch.float32)
    write_tokenizer({token: rank for rank, token in enumerate(byte_order())}, tmp_path / "short")
    return config


def recipe_of(tmp_path: Path, *overrides: str) -> Recipe:
    file = tmp_path / "long.toml"
    file.write_text(RECIPE.replace("{init}", str(tmp_path / "short")))
    return load_recipe(file, overrides)


def test_a_recipe_extends_its_checkpoint(short: ModelConfig, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert recipe.model == replace(
        load_model(tmp_path / "short").config, rope_scaling=YARN, max_position_embeddings=4096
    )
    before = load_model(tmp_path / "short", dtype=torch.float32)
    extended = first_model(recipe.model, recipe.init, 0)
    theirs = dict(before.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in extended.named_parameters())


def test_the_exported_model_is_what_transformers_makes_of_its_config(short: ModelConfig, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    trainer, held = open_run(recipe, tmp_path / "run")
    assert [made.kind for made in held].count("long") == 1
    trainer.train_step()
    export_model(trainer, tmp_path / "export")
    raw = json.loads((tmp_path / "export" / "config.json").read_text())
    assert raw["max_position_embeddings"] == 4096
    assert raw["rope_scaling"] == {
        "type": "yarn", "factor": 4, "original_max_position_embeddings": WINDOW,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip
    pair = pair_of(load_model(tmp_path / "export", dtype=torch.float32))
    ids = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(1))
    for start in (0, 4000):
        ours = pair.ours_logits(ids, ForwardBatch.packed([40], start=start))
        assert relative_error(ours, pair.theirs_logits(ids[None], start)[0]) < 1e-4
    plain = K2Model(replace(pair.config, rope_scaling=None)).float()
    plain.load_state_dict(pair.ours.state_dict())
    other = replace(pair, ours=plain).ours_logits(ids, ForwardBatch.packed([40], start=4000))
    assert relative_error(other, ours) > 1e-3, "the scaling is seen in the logits"


def test_a_run_goes_on_bit_identically(short: ModelConfig, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "validation_conversations=0", "stages=[{batch_tokens=900, sequence_tokens=1100}]")
    whole, _ = open_run(recipe, tmp_path / "whole")
    for _ in range(3):
        whole.train_step()
    first, _ = open_run(recipe, tmp_path / "cut")
    first.train_step()
    first.save()
    second, _ = open_run(recipe, tmp_path / "cut")
    assert second.resume()
    for _ in range(2):
        second.train_step()
    assert (second.tokens, second.source.position()) == (whole.tokens, whole.source.position())
    resumed = dict(second.model.named_parameters())
    assert all(torch.equal(p, resumed[name]) for name, p in whole.model.named_parameters())
    changed = recipe_of(tmp_path, "model.rope_scaling.factor=8")
    with pytest.raises(CheckpointError, match="another architecture"):
        open_run(changed, tmp_path / "cut")[0].resume()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.rope_scaling.type=linear", "type must be yarn, not 'linear'"),
        ("model.rope_scaling.facto=8", r"\[model.rope_scaling\] unknown recipe key 'facto'; there are beta_fast"),
        ("model.rope_scaling.factor=0.5", "rope_scaling.factor must be at least 1"),
        ("model.rope_scaling=8", "model.rope_scaling must be a section"),
        ("model.rope_scaling.factor=2", "max_position_embeddings is 4096, and rope_scaling reaches 2048"),
        ("stages=[{batch_tokens=9, sequence_tokens=5000}]", "sequence_tokens of 5000 is beyond .* which is 4096"),
        ("stages=[{batch_tokens=9, sequence_tokens=-1}]", "sequence_tokens must be at least 0"),
        ("data.files=['a']", "takes no data.files"),
    ],
)
def test_what_cannot_be_is_refused_by_name(short: ModelConfig, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(tmp_path, override)


@pytest.mark.parametrize(
    ("source", "target", "does"),
    [
        ({}, {"rope_scaling": YARN, "max_position_embeddings": 4096}, True),
        ({}, {"rope_scaling": YARN}, True),
        ({}, {}, True),
        ({}, {"max_position_embeddings": 4096}, False),
        ({}, {"rope_scaling": replace(YARN, original_max_position_embeddings=512)}, True),
        ({}, {"rope_scaling": replace(YARN, original_max_position_embeddings=2048)}, False),
        ({"rope_scaling": YARN}, {"rope_scaling": replace(YARN, factor=16), "max_position_embeddings": 16384}, True),
        ({"rope_scaling": YARN}, {"rope_scaling": replace(YARN, factor=2)}, False),
        ({"rope_scaling": YARN}, {}, False),
        ({"rope_scaling": YARN}, {"rope_scaling": replace(YARN, original_max_position_embeddings=512)}, False),
        ({}, {"rope_scaling": YARN, "max_position_embeddings": 512}, False),
    ],
)
def test_what_extends_what(
    tiny_config: ModelConfig, source: dict[str, Any], target: dict[str, Any], does: bool
) -> None:
    base = replace(tiny_config, max_position_embeddings=WINDOW)
    assert extends(replace(base, **source), replace(base, **target)) is does


def test_a_window_that_nothing_extends_is_refused(short: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="differs from the recipe's model in max_position_embeddings"):
        first_model(replace(short, max_position_embeddings=4096), str(tmp_path / "short"), 0)


def test_late_turns_need_what_earlier_turns_brought() -> None:
    """Every call's value stands in what the user or a tool said before; many only in results turns ago."""
    far = 0
    for seed in range(4):
        made = next(long_conversations(seed, 6000))
        assert made == next(long_conversations(seed, 6000))
        results: list[str] = []
        asked = ""
        for message in made.messages:
            if message.role == "user":
                asked = message.text
            if message.role == "tool":
                results.append(message.text)
            for call in message.tool_calls:
                values = [v for v in json.loads(call.arguments).values() if isinstance(v, str) and len(v) > 4]
                far += any(v not in asked and any(v in one for one in results[:-2]) for v in values)
    assert far > 20
    assert next(long_conversations(1, 500)) != next(long_conversations(1, 500, "held"))


def source_of(template: ChatTemplate, max_length: int) -> LongSource:
    def stream(seed: int, stage: int) -> Any:
        return conversations(seed, "train", stage=stage)

    return LongSource(template, stream, seed=2, max_length=max_length)


def test_batches_begin_with_a_long_conversation_and_end_with_ordinary_ones(template: ChatTemplate) -> None:
    source = source_of(template, 20_000)
    stage = StageConfig(batch_tokens=9000, sequence_tokens=8000, data_stage=1)
    shares = []
    for number in range(6):
        batch = source.batch(number, stage)
        assert len(batch.input_ids) <= 9000
        length = drawn_length(2 * 1_000_003 + number, 8000)
        assert 1000 <= length <= 8000 and length - 1200 < batch.lengths[0] <= length
        assert torch.equal(batch.input_ids, source_of(template, 20_000).batch(number, stage).input_ids)
        shares.append(len(batch.lengths) > 1)
    assert any(shares)
    alone = source.batch(0, replace(stage, batch_tokens=10))
    assert len(alone.lengths) == 1, "one sequence at least"


def test_what_does_not_fit_is_left_out_and_counted(template: ChatTemplate) -> None:
    source = source_of(template, 1300)
    stage = StageConfig(batch_tokens=1300, data_stage=0)
    for number in range(4):
        assert max(source.batch(number, stage).lengths) <= 1300
    assert source.left_out > 0
    again = source_of(template, 1300)
    again.seek(json.loads(json.dumps(source.position())))
    assert again.left_out == source.left_out
    with pytest.raises(CheckpointError, match="other data than long conversations"):
        again.seek({})
    with pytest.raises(DataError, match=r"do not fit model.max_position_embeddings \(60 tokens\)"):
        source_of(template, 60).batch(0, stage)


def test_a_cut_conversation_is_whole_turns(template: ChatTemplate) -> None:
    made = next(long_conversations(4, 3000))
    whole = len(template.render(made.messages, made.tools, add_generation_prompt=False))
    assert cut(template, made, whole) == made and cut(template, made, 50) is None
    shorter = cut(template, made, whole - 1)
    assert isinstance(shorter, Conversation) and shorter.messages == made.messages[: len(shorter.messages)]
    assert made.messages[len(shorter.messages)].role == "user"
    for one in held_long(template, 0, 4000, 3):
        assert len(template.render(one.messages, one.tools, add_generation_prompt=False)) <= 4000


def test_the_trainer_takes_sequences_longer_than_a_batch(
    short: ModelConfig, template: ChatTemplate, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path)
    trainer = Trainer(recipe, source_of(template, 4096), tmp_path / "run")
    record = trainer.train_step()
    assert record["loss"] > 0 and trainer.tokens > 400
