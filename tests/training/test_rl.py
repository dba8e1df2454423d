"""Reinforcement learning: objective, rewards, replayed routing, and runs on a toy task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openk2.chat.builtin_tools import CALCULATE
from openk2.chat.messages import Completion, FinishReason, Message, ToolCall, ToolSpec
from openk2.chat.template import ChatTemplate
from openk2.config import ModelConfig
from openk2.errors import ConfigError, DataError
from openk2.evals.cases import Case, ExpectedCall
from openk2.training.data import Conversation
from openk2.training.recipe import Recipe, StageConfig, load_recipe
from openk2.training.rl.config import RLConfig
from openk2.training.rl.critique import critique
from openk2.training.rl.mismatch import mismatch
from openk2.training.rl.objective import advantages, policy_loss
from openk2.training.rl.passes import Lesson, LessonBatch
from openk2.training.rl.reward import verified
from openk2.training.rl.rollout import Answer, distinct, roll_out
from openk2.training.rl.tasks import TaskSource, turns
from openk2.training.rl.trainer import RLTrainer, lessons
from openk2.training.schedule import WarmupStableDecay
from openk2.training.source import BatchSource

ADD = ToolSpec.function("add", "Add.", {"type": "object", "properties": {"n": {"type": "integer"}}})


def test_the_gradient_is_the_papers_objectives() -> None:
    """Against (r - mean r - tau log ratio)^2 written down as in the paper, answer by answer."""
    torch.manual_seed(0)
    lengths, tau, rewards = [3, 1, 4], 0.3, [1.0, 0.0, 0.2]
    old = torch.randn(sum(lengths))
    now = (old + 0.1 * torch.randn(sum(lengths))).requires_grad_()
    gains = [r - sum(rewards) / 3 for r in rewards]
    parts = (now - old).split(lengths)
    direct = sum((gain - tau * part.sum()) ** 2 for gain, part in zip(gains, parts, strict=True)) / 3
    (expected,) = torch.autograd.grad(direct / (2 * tau), now)  # type: ignore[arg-type]
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    loss = policy_loss(now, old, owner, torch.tensor(advantages(rewards)), torch.full((3,), 1 / 3), tau)
    (found,) = torch.autograd.grad(loss, now)
    torch.testing.assert_close(found, expected)
    offset = sum(gain**2 for gain in gains) / 3
    torch.testing.assert_close(loss.detach(), ((direct - offset) / (2 * tau)).detach())  # type: ignore[operator]


def test_without_tau_it_is_the_policy_gradient() -> None:
    now = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = policy_loss(now, now.detach(), torch.tensor([0, 1]), torch.tensor([0.5, -0.5]), torch.full((2,), 0.5), 0.0)
    (gradient,) = torch.autograd.grad(loss, now)
    assert gradient.tolist() == [-0.25, 0.25]


def reply(text: str | None = None, *calls: tuple[str, dict[str, Any]], reason: FinishReason = "stop") -> Completion:
    made = tuple(ToolCall(f"functions.{name}:{i}", name, json.dumps(given)) for i, (name, given) in enumerate(calls))
    return Completion(Message("assistant", text, tool_calls=made), reason)


def case(kind: Any, *calls: ExpectedCall, tools: tuple[ToolSpec, ...] = (ADD, CALCULATE), **more: Any) -> Case:
    return Case("c", "rl", kind, tools, (Message("user", "?"),), calls, **more)


ONE = case("single", ExpectedCall("add", {"n": 1}))
SUM = case("single", ExpectedCall("calculate", {"expression": "12 * 7"}))


@pytest.mark.parametrize(
    ("asked", "given", "value", "right"),
    [
        (ONE, reply(None, ("add", {"n": 1})), 1.0, True),
        (ONE, reply(None, ("add", {"n": 2})), 0.2, False),
        (ONE, reply(None, ("calculate", {"expression": "1"})), 0.0, False),
        (ONE, reply(None, ("add", {"n": 1}), ("add", {"n": 1})), 0.0, False),
        (ONE, reply("It is 1."), 0.0, False),
        (ONE, reply("It is", reason="length"), -0.5, False),
        (SUM, reply(None, ("calculate", {"expression": "7*12"})), 1.0, True),
        (SUM, reply(None, ("calculate", {"expression": "7*13"})), 0.2, False),
        (SUM, reply(None, ("calculate", {"expression": "seven"})), 0.2, False),
        (case("ask_back"), reply("Please tell me the number."), 1.0, True),
        (case("ask_back"), reply("Done."), 0.0, False),
        (case("no_tool"), reply("Sorry, no."), 1.0, True),
        (case("no_tool"), reply(None, ("add", {"n": 1})), 0.0, False),
        (case("answer", contains=("84",)), reply("It is 84."), 1.0, True),
        (case("answer", contains=("84",)), reply("It is 48."), 0.0, False),
        (case("chat"), reply(""), 0.0, False),
    ],
)
def test_rewards_of_answers_made_by_hand(asked: Case, given: Completion, value: float, right: bool) -> None:
    found = verified(asked, given, RLConfig())
    assert (found.value, found.right) == (pytest.approx(value), right)


def test_an_undeclared_calculate_is_not_run() -> None:
    own = ToolSpec.function("calculate", "Mine.", {"type": "object", "properties": {"expression": {"type": "string"}}})
    asked = replace(SUM, tools=(own,))
    assert not verified(asked, reply(None, ("calculate", {"expression": "7*12"})), RLConfig()).right


def test_mismatch_of_equal_and_of_shifted_probabilities() -> None:
    told = torch.tensor([-1.0, -2.0])
    assert mismatch(told, told) == {"tokens": 2, "mean_abs": 0.0, "max_abs": 0.0, "kl": 0.0}
    found = mismatch(told, told + torch.tensor([0.1, -0.3]))
    assert (found["mean_abs"], found["max_abs"]) == (pytest.approx(0.2), pytest.approx(0.3))
    assert found["kl"] == pytest.approx(((2.718281828**0.1 - 1.1) + (2.718281828**-0.3 - 0.7)) / 2)


def test_equal_answers_are_one_lesson() -> None:
    answers = [Answer([1, 2]), Answer([3]), Answer([1, 2])]
    assert [(a.token_ids, at) for a, at in distinct(answers)] == [([1, 2], [0, 2]), ([3], [1])]


def letters(seed: int, stage: int) -> Iterator[Conversation]:
    """Answer with one `a`: a byte that random weights give one time in five hundred, and a check can tell."""
    for index in range(seed % 1000, seed % 1000 + 1000):
        yield Conversation("chat", (), (Message("user", f"{index % 7}?"), Message("assistant", "a")))


@pytest.fixture
def toy(recipe: Recipe, tiny_config: ModelConfig) -> Recipe:
    model = replace(tiny_config, hidden_size=32, num_hidden_layers=2, q_lora_rank=16, kv_lora_rank=16)
    return replace(
        recipe,
        model=model,
        init="random",
        schedule=WarmupStableDecay(warmup_tokens=0, stable_tokens=10**6, decay_tokens=1),
        stages=(StageConfig(batch_tokens=400),),
        optimizer=replace(recipe.optimizer, lr=3e-3, weight_decay=0.0),
        rl=RLConfig(
            prompts=4, samples=8, updates=2, kinds={"chat": 1.0}, temperature=(1.0, 1.0), ptx_weight=0.0,
            budget_factor=0.0, budget_tokens=3,
        ),
    )  # fmt: skip


def trainer_of(recipe: Recipe, template: ChatTemplate, folder: Path) -> RLTrainer:
    length = recipe.model.max_position_embeddings
    source = BatchSource(template, letters, seed=recipe.seed, max_length=length)
    return RLTrainer(recipe, source, letters, folder)


def test_replayed_routing_gives_the_engines_probabilities(toy: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    """At 1e-5 in float32, prompts shared or not; and other choices give other probabilities."""
    trainer = trainer_of(toy, template, tmp_path)
    tasks = trainer.tasks.draw(0, 0)
    stops = frozenset({template.tokenizer.im_end_id})
    groups = roll_out(trainer.model, tasks, 3, temperature=1.0, seed="s", stop_token_ids=stops)
    judged = trainer._judged(toy.stages[0], 1.0)
    assert [len(one.answers) for one in judged] == [8] * 4
    found = [Lesson(t, a, 1.0, 1.0) for t, group in zip(tasks, groups, strict=True) for a in group]
    batch = LessonBatch.of(found, "cpu")
    told = batch.logprobs(batch.logits(trainer.model), 1.0)  # with gradients
    torch.testing.assert_close(told.detach(), batch.engine_logprobs_N, rtol=0, atol=1e-5)
    others = replace(batch, topk_ids=(batch.topk_ids + 1) % (toy.model.n_routed_experts or 1))
    apart = others.logprobs(others.logits(trainer.model), 1.0) - batch.engine_logprobs_N
    assert apart.abs().max() > 1e-4


def test_only_answers_are_learned(toy: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    trainer = trainer_of(toy, template, tmp_path)
    (task, *_) = trainer.tasks.draw(0, 0)
    (answers,) = roll_out(trainer.model, [task], 2, temperature=1.0, seed="s", stop_token_ids=frozenset())
    batch = LessonBatch.of([Lesson(task, a, 1.0, 0.5) for a in answers], "cpu")
    assert batch.labels_N.tolist() == [token for a in answers for token in a.token_ids]
    whole = [token for a in answers for token in (*task.prompt_ids, *a.token_ids[:-1])]
    assert batch.input_ids.tolist() == whole
    assert batch.rows_N[0] == len(task.prompt_ids) - 1 and len(batch.rows_N) == len(batch.labels_N) == 6


def test_a_run_raises_the_reward(toy: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    """The end of the turn is to come within twelve tokens: random answers seldom do that."""
    assert toy.rl is not None
    rl = replace(toy.rl, updates=1, budget_tokens=12)
    optimizer = replace(toy.optimizer, head_lr=3e-2, embedding_lr=3e-3)
    trainer = trainer_of(replace(toy, rl=rl, optimizer=optimizer), template, tmp_path)
    records = [trainer.train_step() for _ in range(14)]
    first, last = (sum(r["reward"] for r in part) / 3 for part in (records[:3], records[-3:]))
    assert first < -0.3 and last > first + 0.6
    assert max(r["mismatch"]["max_abs"] for r in records if r["mismatch"]) < 1e-4
    assert records[-1]["tokens"] == trainer.tokens > 0


@pytest.mark.parametrize("change", [{}, {"ptx_weight": 0.5, "critique_weight": 0.1}, {"rollout": "bf16"}])
def test_resumed_runs_end_with_the_same_bits(
    toy: Recipe, template: ChatTemplate, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert toy.rl is not None
    recipe = replace(toy, rl=replace(toy.rl, **change))
    whole = trainer_of(recipe, template, tmp_path / "whole")
    logs = [whole.train_step() for _ in range(4)]
    cut = trainer_of(recipe, template, tmp_path / "cut")
    for _ in range(2):
        cut.train_step()
    cut.save()
    resumed = trainer_of(recipe, template, tmp_path / "cut")
    assert resumed.resume()
    again = [resumed.train_step() for _ in range(2)]
    timed = ("tokens_per_second", "rollout_seconds")
    for one, other in zip(logs[2:], again, strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_packed_copy_follows_the_policy(toy: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    """The engine's answers are those of the weights after the update, but for rounding to bfloat16."""
    assert toy.rl is not None
    trainer = trainer_of(replace(toy, rl=replace(toy.rl, rollout="bf16")), template, tmp_path)
    records = [trainer.train_step() for _ in range(3)]
    assert all(0 < r["mismatch"]["mean_abs"] < 0.02 for r in records if r["mismatch"])


def test_groups_worth_the_same_are_left_out(toy: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    judged = trainer_of(toy, template, tmp_path)._judged(toy.stages[0], 1.0)
    same = [replace(one, values=[0.5] * len(one.values)) for one in judged]
    assert lessons(same) == []
    mixed = [replace(judged[0], values=[1.0] + [0.0] * 7), *same[1:]]
    found = lessons(mixed)
    assert sum(lesson.weight for lesson in found) == pytest.approx(1 / 4)
    assert sum(lesson.weight * lesson.advantage for lesson in found) == pytest.approx(0)


def test_critique_is_a_share_and_depends_on_the_answer(toy: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    model = trainer_of(toy, template, tmp_path).model
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    scores = critique(model, template, [(case("chat"), reply("a")), (case("chat"), reply("Nonsense!"))], ("Good?",))
    assert all(0 < score < 1 for score in scores) and scores[0] != scores[1]


def test_turns_become_cases() -> None:
    call = ToolCall("functions.add:0", "add", '{"n": 1}')
    talk = (
        Message("user", "add"),
        Message("assistant", "Please tell me the number."),
        Message("user", "1"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", '{"sum": 2}', tool_call_id=call.id),
        Message("assistant", "It is 2."),
        Message("user", "sing"),
        Message("assistant", "Sorry, I cannot."),
    )
    found = [c for c, _ in turns(Conversation("missing", (ADD,), talk), "t")]
    assert [c.kind for c in found] == ["ask_back", "single", "answer", "no_tool"]
    assert found[1].calls == (ExpectedCall("add", {"n": 1}),) and found[2].contains == ("2",)


def test_prompts_that_are_not_there_are_told(toy: Recipe, template: ChatTemplate) -> None:
    config = RLConfig(prompts=2, kinds={"parallel": 1.0})
    with pytest.raises(DataError, match="too few prompts of kind 'parallel'"):
        TaskSource(template, letters, config, seed=0, max_length=500).draw(0, 0)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("samples = 1", "rl.samples must be at least 2"),
        ("tau = -1.0", "rl.tau must not be negative"),
        ("kinds = { singel = 1 }", "no kind 'singel'"),
        ("kinds = { single = 0 }", "one above 0"),
        ("temperature = [1.0, 0.0]", "two numbers above 0"),
        ('rollout = "fp3"', "quantization 'fp3'"),
        ("prompts = 2\nupdates = 3", "cannot exceed"),
        ("taus = 1", "unknown recipe key 'taus'"),
    ],
)
def test_a_wrong_section_is_one_line(tmp_path: Path, section: str, said: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        f"[schedule]\nwarmup_tokens = 1\nstable_tokens = 1\ndecay_tokens = 1\n[[stages]]\nbatch_tokens = 9\n"
        f"[rl]\n{section}\n"
    )
    with pytest.raises(ConfigError, match=said) as error:
        load_recipe(file)
    assert "\n" not in str(error.value)
