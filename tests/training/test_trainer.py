"""The loop learns, logs, resumes exactly and refuses what does not fit; its parts do what they say."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from tests.training.conftest import numbered

from openk2.chat.template import ChatTemplate
from openk2.checkpoint import save_model
from openk2.errors import CheckpointError, ConfigError
from openk2.models import ForwardBatch, K2Model
from openk2.training.balance import update_router_bias_
from openk2.training.bpe import copy_friendly, train_ranks
from openk2.training.init import STACKED_SHARE, structured_init_
from openk2.training.packing import IGNORE, collate, render_example
from openk2.training.recipe import Recipe, load_recipe
from openk2.training.schedule import WarmupStableDecay
from openk2.training.source import BatchSource
from openk2.training.trainer import Trainer
from openk2.training.validate import validate

RECIPES = Path(__file__).parents[2] / "recipes"


def make_trainer(recipe: Recipe, template: ChatTemplate, folder: Path) -> Trainer:
    return Trainer(recipe, BatchSource(template, numbered, seed=recipe.seed, max_length=4096), folder)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_a_cut_run_goes_on_bit_identically(recipe: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    whole = make_trainer(recipe, template, tmp_path / "whole")
    for _ in range(5):
        whole.train_step()
    first = make_trainer(recipe, template, tmp_path / "cut")
    for _ in range(2):
        first.train_step()
    first.save()
    second = make_trainer(recipe, template, tmp_path / "cut")
    assert second.resume()
    for _ in range(3):
        second.train_step()
    assert (second.step, second.tokens) == (whole.step, whole.tokens)
    resumed = weights(second)
    for name, value in weights(whole).items():
        assert torch.equal(value, resumed[name]), name


def test_a_run_learns_logs_and_ends(recipe: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    trainer = make_trainer(recipe, template, tmp_path)
    held = list(islice(numbered(5000, 0), 4))
    before = validate(trainer.model, template, held)
    trainer.run(held)
    after = validate(trainer.model, template, held)
    assert after.loss < before.loss - 0.5
    assert after.exact_turns["single"][1] == 4 and after.exact_turns["text"][1] == 4
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["tokens"] >= recipe.schedule.total_tokens and "held_loss" in records[-1]
    assert all({"loss", "max_logit", "imbalance", "lr_scale"} <= r.keys() for r in records if "step" in r)


def test_resume_refuses_another_architecture_and_a_broken_file(
    recipe: Recipe, template: ChatTemplate, tmp_path: Path
) -> None:
    from dataclasses import replace

    trainer = make_trainer(recipe, template, tmp_path)
    assert not trainer.resume()
    trainer.save()
    other = replace(recipe, model=replace(recipe.model, intermediate_size=64))
    with pytest.raises(CheckpointError, match="another architecture"):
        make_trainer(other, template, tmp_path).resume()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        make_trainer(recipe, template, tmp_path).resume()


def test_a_run_can_go_on_from_a_checkpoint(recipe: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    from dataclasses import replace

    first = make_trainer(recipe, template, tmp_path / "first")
    save_model(first.model, tmp_path / "checkpoint", dtype=torch.float32)
    second = make_trainer(replace(recipe, init=str(tmp_path / "checkpoint"), seed=5), template, tmp_path / "second")
    resumed = weights(second)
    assert all(torch.equal(value, resumed[name]) for name, value in weights(first).items())
    second.train_step()
    changed = [name for name, value in weights(second).items() if not torch.equal(value, resumed[name])]
    assert set(changed) >= {name for name in resumed if "norm" not in name}
    other = replace(recipe, init=str(tmp_path / "checkpoint"), model=replace(recipe.model, intermediate_size=64))
    with pytest.raises(ConfigError, match="intermediate_size"):
        make_trainer(other, template, tmp_path / "third")


def test_a_grown_model_adds_to_what_its_source_computes_and_trains(
    recipe: Recipe, template: ChatTemplate, tmp_path: Path
) -> None:
    from dataclasses import replace

    first = make_trainer(recipe, template, tmp_path / "first")
    save_model(first.model, tmp_path / "checkpoint", dtype=torch.float32)
    deeper = replace(recipe, init=str(tmp_path / "checkpoint"), model=replace(recipe.model, num_hidden_layers=5))
    second = make_trainer(deeper, template, tmp_path / "second")
    grown, layers = weights(second), second.model.model.layers
    for added, copied in ((2, 0), (3, 1)):
        for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
            share = STACKED_SHARE if part == "o_proj" else 1.0
            source = grown[f"model.layers.{copied}.self_attn.{part}.weight"]
            torch.testing.assert_close(grown[f"model.layers.{added}.self_attn.{part}.weight"], share * source)
    ids = torch.arange(50)
    with torch.no_grad():
        for added in (2, 3):  # without what the copied attention says, it is the source
            layers[added].self_attn.o_proj.weight.zero_()
        a, b = (t.model.compute_logits(t.model(ids, ForwardBatch.packed([50]))) for t in (first, second))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    before = weights(second)
    for _ in range(2):  # the outputs move first, then what feeds them
        second.train_step()
    still = [n for n, v in weights(second).items() if "layers.3." in n and torch.equal(v, before[n])]
    assert all("norm" in name for name in still), still


def test_exactly_the_assistants_tokens_are_supervised(template: ChatTemplate) -> None:
    conversation = next(numbered(7, 0))
    example = render_example(template, conversation.tools, conversation.messages)
    ids = [i for i, s in zip(example.token_ids, example.supervised, strict=True) if s]
    text = template.tokenizer.decode(ids)
    assert text == (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
        '{"n": 7}<|tool_call_end|><|tool_calls_section_end|><|im_end|>Done 7.<|im_end|>'
    )
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":  # a prompt as at inference ends where supervision begins
            prompt = template.render(conversation.messages[:index], conversation.tools)
            assert example.token_ids[: len(prompt)] == prompt
            assert example.supervised[len(prompt)] and not example.supervised[len(prompt) - 1]


def test_packed_labels_never_cross_a_border(template: ChatTemplate) -> None:
    examples = [render_example(template, c.tools, c.messages) for c in islice(numbered(1, 0), 3)]
    batch = collate(examples)
    for end in batch.cu_seqlens[1:]:
        assert batch.labels[end - 1] == IGNORE and not batch.supervised[end - 1]
    inner = batch.labels != IGNORE
    assert torch.equal(batch.labels[:-1][inner[:-1]], batch.input_ids[1:][inner[:-1]])


def test_structured_init_copies(tiny_config) -> None:  # type: ignore[no-untyped-def]
    """Repeated random text: the second time round, most tokens are predicted from the first."""
    model = K2Model(tiny_config)
    structured_init_(model, 0)
    ids = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:120]
    ids = torch.cat((ids, ids))
    with torch.no_grad():
        logits = model.compute_logits(model(ids, ForwardBatch.packed([240])))
    right = (logits[120:-1].argmax(-1) == ids[121:]).float().mean()
    assert right > 0.5


def test_router_bias_moves_towards_balance(tiny_config) -> None:  # type: ignore[no-untyped-def]
    model = K2Model(tiny_config)
    structured_init_(model, 0)
    load = torch.full((3, 32), 10.0)
    load[1, 0], load[1, 1] = 40.0, 0.0
    update_router_bias_(model, load, 0.01)
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    assert bias[0] < bias[2] < bias[1] and abs(float(bias.sum())) < 1e-6
    assert torch.all(model.model.layers[2].mlp.gate.e_score_correction_bias == 0)


def test_schedule_warms_up_holds_and_decays() -> None:
    schedule = WarmupStableDecay(warmup_tokens=100, stable_tokens=200, decay_tokens=100, final_scale=0.1)
    assert [round(schedule.scale(t), 3) for t in (50, 100, 299, 350, 400, 1000)] == [0.5, 1, 1, 0.55, 0.1, 0.1]


def test_vocabulary_keeps_what_is_copied_apart() -> None:
    ranks = train_ranks(['{"city": "Paris", "n": 1234}'] * 50 + ["getWeather get_weather the weather"] * 50, 330)
    tokens = set(ranks)
    assert b"weather" in tokens and b'":' in tokens
    assert all(len(t) == 1 or not any(c in b"0123456789_" for c in t) for t in tokens)
    assert all(len(t) == 1 or not (t[:1] == b" " and t[1:2].isalpha()) for t in tokens)
    assert sorted(ranks.values()) == list(range(len(ranks)))
    assert not copy_friendly(b"1", b"2") and not copy_friendly(b"a", b"B") and copy_friendly(b"P", b"aris")


def test_recipes_of_the_repository_load() -> None:
    for path in RECIPES.glob("*/*.toml"):
        assert load_recipe(path, ["init=random"]).stages  # the second stage starts from what the first one exports


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.rate=1", "unknown recipe key 'rate'"),
        ("colour=1", "unknown recipe key"),
        ("init=odd", "init must be"),
    ],
)
def test_recipe_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(RECIPES / "k2-nano" / "stage1.toml", [override])
