"""Runs on files: batches, exact resume under every way of computing, and what happens when a run cannot go on."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openk2.chat.template import ChatTemplate
from openk2.config import ModelConfig
from openk2.errors import CheckpointError, ConfigError, DataError, TrainingError
from openk2.models import ForwardBatch, K2Model
from openk2.training.assemble import open_run
from openk2.training.data import conversations
from openk2.training.export import export_model
from openk2.training.files import collect_conversations, collect_texts
from openk2.training.init import random_init_
from openk2.training.recipe import DataConfig, Recipe, StageConfig
from openk2.training.schedule import WarmupStableDecay
from openk2.training.source import BatchSource, MessageSource, TextSource
from openk2.training.state import write_state
from openk2.training.trainer import Trainer

STAGE = StageConfig(batch_tokens=150)


@pytest.fixture
def small(tiny_config: ModelConfig, tmp_path: Path) -> Recipe:
    """A run on texts whose every step is quick; the byte vocabulary is in the run's folder already."""
    texts = [{"text": f"{i}: " + "the cat sat on the mat. " * (i % 9)} for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    return Recipe(
        model=replace(tiny_config, hidden_size=32, num_hidden_layers=2, q_lora_rank=16, kv_lora_rank=16),
        schedule=WarmupStableDecay(warmup_tokens=100, stable_tokens=900, decay_tokens=200),
        stages=(STAGE,),
        data=DataConfig(kind="text", files=(str(tmp_path / "texts.jsonl"),), held_out=0.1),
        init="random",
    )


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """A file of conversations of growing length; the last is longer than any window here."""
    file = tmp_path / "talks.jsonl"
    with file.open("w") as out:
        for i in range(12):
            said = "again " * (i if i < 11 else 2000)
            messages = [{"role": "user", "content": said + "?"}, {"role": "assistant", "content": f"{i}."}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return file


def trainer_of(recipe: Recipe, template: ChatTemplate, folder: Path) -> Trainer:
    documents = collect_texts([Path(f) for f in recipe.data.files])
    return Trainer(recipe, TextSource(template, documents, seed=3, max_length=120, held_out=0.1), folder)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_text_batches_are_full_and_learn_each_token_once(small: Recipe, template: ChatTemplate) -> None:
    documents = collect_texts([Path(small.data.files[0])])
    source = TextSource(template, documents, seed=3, max_length=120, held_out=0.1)
    learned = 0
    number = 0
    while source.order.epoch == 0:
        batch = source.batch(number, STAGE)
        assert STAGE.batch_tokens - 16 < len(batch.input_ids) <= STAGE.batch_tokens and max(batch.lengths) <= 120
        assert torch.equal(batch.supervised, batch.labels >= 0)
        learned += int(batch.supervised.sum())
        number += 1
    sizes = [len(template.tokenizer.encode(documents.read(i).text)) + 1 for i in source.members]
    once = sum(size - 1 for size in sizes)
    assert once <= learned < once + STAGE.batch_tokens, "what is above is of the next epoch"


def test_a_stream_goes_on_where_it_was_cut(small: Recipe, talks: Path, template: ChatTemplate) -> None:
    texts, conversations = collect_texts([Path(small.data.files[0])]), collect_conversations([talks])
    make: list[Callable[[], Any]] = [
        lambda: TextSource(template, texts, seed=3, max_length=120, held_out=0.1),
        lambda: MessageSource(template, conversations, seed=3, max_length=120, held_out=0.3),
    ]
    for source in make:
        whole, stage = source(), replace(STAGE, prompt_weight=0.3)
        batches = [whole.batch(i, stage) for i in range(12)]
        for cut in (1, 4, 7):
            first = source()
            for i in range(cut):
                first.batch(i, stage)
            second = source()
            second.seek(json.loads(json.dumps(first.position())))
            for i in range(cut, 12):
                again = second.batch(i, stage)
                assert torch.equal(again.input_ids, batches[i].input_ids)
                assert torch.equal(again.supervised, batches[i].supervised)
    with pytest.raises(CheckpointError, match="other data"):
        make[0]().seek(make[1]().position())


def test_a_window_too_short_for_generated_conversations_is_told(template: ChatTemplate) -> None:
    source = BatchSource(template, lambda seed, stage: conversations(seed, "train", stage=stage), seed=0, max_length=9)
    with pytest.raises(DataError, match=r"do not fit model.max_position_embeddings \(9 tokens\)"):
        source.batch(0, STAGE)


def test_conversations_too_long_for_the_window_are_counted(talks: Path, template: ChatTemplate) -> None:
    source = MessageSource(template, collect_conversations([talks]), seed=3, max_length=400, held_out=0.0)
    for i in range(30):
        source.batch(i, STAGE)
    assert source.order.epoch == 2
    assert source.position()["left_out"] in (source.order.epoch, source.order.epoch + 1)
    with pytest.raises(DataError, match="longer than"):
        MessageSource(template, collect_conversations([talks]), seed=3, max_length=5, held_out=0.0).batch(0, STAGE)


@pytest.mark.parametrize(
    "ways",
    [{}, {"accumulate": 2, "recompute": True, "dtype": "bfloat16"}],
    ids=["plain", "accumulate, recompute, bfloat16"],
)
def test_a_run_cut_anywhere_goes_on_bit_identically(
    small: Recipe, template: ChatTemplate, tmp_path: Path, ways: dict[str, Any]
) -> None:
    recipe = replace(small, **ways)
    whole = trainer_of(recipe, template, tmp_path / "whole")
    for _ in range(4):
        whole.train_step()
    for cut in (1, 3):
        first = trainer_of(recipe, template, tmp_path / f"cut{cut}")
        for _ in range(cut):
            first.train_step()
        first.save()
        second = trainer_of(recipe, template, tmp_path / f"cut{cut}")
        assert second.resume()
        for _ in range(4 - cut):
            second.train_step()
        assert (second.step, second.tokens, second.batches) == (whole.step, whole.tokens, whole.batches)
        assert second.source.position() == whole.source.position()
        resumed = weights(second)
        assert all(torch.equal(value, resumed[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("lr", [6e-4, 3e-4])
def test_a_run_goes_on_with_other_rates(lr: float, small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    """Parameters of one rate are one group: another rate makes other groups."""
    trainer = trainer_of(small, template, tmp_path)
    for _ in range(3):
        trainer.train_step()
    trainer.save()
    changed = replace(small, optimizer=replace(small.optimizer, lr=lr, weight_decay=0.05))
    again = trainer_of(changed, template, tmp_path)
    assert again.resume()
    before, after = trainer.optimizer, again.optimizer
    theirs, ours = dict(trainer.model.named_parameters()), dict(again.model.named_parameters())
    assert [len(group["params"]) for group in before.param_groups] != [len(g["params"]) for g in after.param_groups]
    for name, parameter in ours.items():
        assert after.state[parameter].keys() == before.state[theirs[name]].keys(), name
        for key, value in after.state[parameter].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(before.state[theirs[name]][key])), (name, key)
    assert {group["weight_decay"] for group in after.param_groups} == {0.05}
    assert again.train_step()["lr"] == pytest.approx(lr)


def test_a_state_from_before_accumulation_goes_on(small: Recipe, tmp_path: Path) -> None:
    generated = replace(small, data=DataConfig(), init="random", tokenizer=replace(small.tokenizer, samples=400))
    trainer, _ = open_run(generated, tmp_path)
    trainer.train_step()
    trainer.save()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if k not in ("batches", "data", "recipe")}, tmp_path / "state.pt")
    again, _ = open_run(generated, tmp_path)
    assert again.resume() and again.batches == again.step == 1
    with pytest.raises(CheckpointError, match="other data"):
        open_run(replace(small, model=generated.model), tmp_path)[0].resume()


def test_recomputation_changes_no_bit(small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    plain = trainer_of(small, template, tmp_path / "a")
    again = trainer_of(replace(small, recompute=True), template, tmp_path / "b")
    for _ in range(2):
        kept, made = plain.train_step(), again.train_step()
        assert {k: v for k, v in kept.items() if k != "tokens_per_second"} == {
            k: v for k, v in made.items() if k != "tokens_per_second"
        }
    assert torch.equal(plain.expert_load, again.expert_load)
    other = weights(again)
    assert all(torch.equal(value, other[name]) for name, value in weights(plain).items())


def test_recomputation_keeps_less_for_the_backward_pass(small: Recipe) -> None:
    model = K2Model(replace(small.model, num_hidden_layers=6)).float()
    random_init_(model, 0)
    kept = {}
    for recompute in (False, True):
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model(torch.arange(300), replace(ForwardBatch.packed([300]), recompute=recompute))
            kept[recompute] = sum(size for at, size in storages.items() if at not in weights)
            hidden.sum().backward()
    assert kept[True] < kept[False] / 8


def test_accumulated_gradients_are_those_of_one_large_batch(
    small: Recipe, template: ChatTemplate, talks: Path, tmp_path: Path
) -> None:
    """Two batches of one conversation each, of different lengths, against one batch of both."""
    lines = talks.read_text().splitlines()[:2]
    lines[1] = lines[1].replace('"1."', '"A longer answer than the other one."')
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    documents = collect_conversations([tmp_path / "two.jsonl"])
    grads = []
    for accumulate, tokens in ((1, 1000), (2, 10)):
        recipe = replace(small, accumulate=accumulate, stages=(StageConfig(batch_tokens=tokens),))
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, lr=0.0, embedding_lr=0.0, head_lr=0.0))
        source = MessageSource(template, documents, seed=3, max_length=120, held_out=0.0)
        trainer = Trainer(recipe, source, tmp_path / f"by{accumulate}")
        kept: dict[str, torch.Tensor] = {}
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name, kept=kept: kept.__setitem__(name, p.grad.clone())  # type: ignore[misc]
                )
        record = trainer.train_step()
        # the first batch of 1,000 tokens holds several epochs of the two: compare with as many of them
        grads.append((record, kept))
    one, two = grads
    assert two[0]["supervised"] * round(one[0]["supervised"] / two[0]["supervised"]) == one[0]["supervised"]
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-5)
    for name, value in two[1].items():
        torch.testing.assert_close(value, one[1][name], atol=1e-6, rtol=1e-4)


def test_bfloat16_passes_train_float32_weights(small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    trainer = trainer_of(replace(small, dtype="bfloat16"), template, tmp_path)
    exact = trainer_of(small, template, tmp_path)
    for _ in range(2):
        rounded, record = trainer.train_step(), exact.train_step()
    assert rounded["loss"] == pytest.approx(record["loss"], rel=0.02) and rounded["loss"] != record["loss"]
    worker = dict(trainer.workshop.worker.named_parameters())
    for name, master in trainer.model.named_parameters():
        assert master.dtype == torch.float32
        assert torch.equal(worker[name], master.to(worker[name].dtype)), name
    assert worker["model.layers.0.self_attn.o_proj.weight"].dtype == torch.bfloat16
    assert worker["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


def test_as_many_states_are_kept_as_asked(small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    trainer = trainer_of(replace(small, keep=2), template, tmp_path)
    for _ in range(3):
        trainer.train_step()
        trainer.save()
    assert sorted(p.name for p in tmp_path.glob("*.pt*")) == ["state-00000002.pt", "state-00000003.pt", "state.pt"]
    assert torch.load(tmp_path / "state-00000002.pt", weights_only=True)["step"] == 2
    (tmp_path / "state.pt").write_bytes(b"broken")  # and state-00000003.pt with it, which is the same file
    with pytest.raises(CheckpointError, match=r"rename state-00000002\.pt to it"):
        trainer_of(small, template, tmp_path).resume()


def test_a_run_that_went_back_keeps_its_new_states(tmp_path: Path) -> None:
    for step in (1, 2, 9):
        write_state({"step": step}, tmp_path, keep=3)
    (tmp_path / "state-00000001.pt").rename(tmp_path / "state.pt")
    for step in (2, 3):
        write_state({"step": step}, tmp_path, keep=2)
        assert torch.load(tmp_path / f"state-{step:08}.pt", weights_only=True)["step"] == step
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["state-00000002.pt", "state-00000003.pt", "state.pt"]


def test_a_full_disk_leaves_the_old_state(small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    trainer = trainer_of(small, template, tmp_path)
    trainer.train_step()
    trainer.save()
    before = (tmp_path / "state.pt").read_bytes()
    trainer.train_step()
    aside = tmp_path / f".state.pt.writing-{os.getpid()}"
    aside.symlink_to("/dev/full")
    with pytest.raises(
        TrainingError, match=r"state of step 2 .*No space left on device; the last state, .*, is intact"
    ):
        trainer.save()
    assert (tmp_path / "state.pt").read_bytes() == before and not aside.is_symlink()
    trainer.save()


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Makes every write past so many bytes of a file fail, as one on a full disk does, until the test's end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_under_the_log_stops_the_run(
    small: Recipe, template: ChatTemplate, tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    full_disk(1000)
    with pytest.raises(TrainingError, match=r"cannot write .*log\.jsonl: File too large; the last state is intact"):
        trainer_of(small, template, tmp_path).run([])
    assert (tmp_path / "log.jsonl").stat().st_size == 1000
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    trainer_of(small, template, tmp_path).run([])
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()][:5] == [
        1,
        2,
        3,
        1,
        2,
    ]


def test_a_full_disk_under_the_export_is_told(small: Recipe, tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    trainer, _ = open_run(replace(small, model=replace(small.model, vocab_size=516)), tmp_path / "run")
    full_disk(2000)
    with pytest.raises(TrainingError, match="cannot write the model to .*out: .*; the run's state is intact"):
        export_model(trainer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves_is_not_the_logs_fault(small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    def gone(record: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        trainer_of(small, template, tmp_path).run([], report=gone)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_a_loss_that_is_no_number_stops_the_run(small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    trainer = trainer_of(small, template, tmp_path)
    trainer.train_step()
    trainer.save()
    before = (tmp_path / "state.pt").read_bytes()
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = torch.nan
    kept = weights(trainer)
    with pytest.raises(TrainingError, match=r"step 2 at .* the loss is nan.*state\.pt, is intact"):
        trainer.run([])
    assert (tmp_path / "state.pt").read_bytes() == before
    assert all(torch.equal(value.nan_to_num(), kept[name].nan_to_num()) for name, value in weights(trainer).items())


def test_a_recipe_on_files_runs_validates_and_refuses_other_data(small: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only 519 tokens.* set model.vocab_size=519"):
        open_run(replace(small, model=replace(small.model, vocab_size=560)), tmp_path / "run")
    recipe = replace(small, model=replace(small.model, vocab_size=516), validate_every_tokens=500, name="files")
    trainer, held = open_run(recipe, tmp_path / "run")
    trainer.run(held)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    validations = [r for r in records if "held_loss" in r]
    assert len(validations) == 3 and validations[-1]["held_loss"] < validations[0]["held_loss"]
    assert validations[-1]["held_exact_turns"] == {} and sum(validations[-1]["expert_load"][1]) > 0
    assert 0.1 < records[0]["update_rms"] < 0.3
    again, _ = open_run(recipe, tmp_path / "run")
    assert again.resume() and again.tokens >= recipe.schedule.total_tokens
    changes = [
        (replace(recipe, seed=1), "seed is 1 in the recipe, and 0 in the run of .*state.pt: set it back"),
        (replace(recipe, data=replace(recipe.data, held_out=0.2)), "data.held_out is 0.2 in the recipe, and 0.1"),
        (replace(recipe, optimizer=replace(recipe.optimizer, kind="adamw")), "optimizer.kind is 'adamw'"),
    ]
    for changed, message in changes:
        with pytest.raises(CheckpointError, match=message):
            open_run(changed, tmp_path / "run")[0].resume()
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "one more"}\n')
    added = replace(recipe, data=replace(recipe.data, files=(*recipe.data.files, str(more))))
    with pytest.raises(CheckpointError, match=r"data.files: .*more.jsonl was not among them"):
        open_run(added, tmp_path / "run")[0].resume()
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(CheckpointError, match=r"data.files: .*other data .*texts.jsonl has changed.* --output"):
        open_run(recipe, tmp_path / "run")[0].resume()
    moved = (tmp_path / "texts.jsonl").rename(tmp_path / "moved.jsonl")
    with pytest.raises(CheckpointError, match=r"texts.jsonl is not among them"):
        open_run(replace(recipe, data=replace(recipe.data, files=(str(moved),))), tmp_path / "run")[0].resume()


def test_files_may_move(small: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    trainer = trainer_of(small, template, tmp_path)
    trainer.train_step()
    trainer.save()
    moved = Path(small.data.files[0]).rename(tmp_path / "elsewhere.jsonl")
    again = trainer_of(replace(small, data=replace(small.data, files=(str(moved),))), template, tmp_path)
    assert again.resume()
