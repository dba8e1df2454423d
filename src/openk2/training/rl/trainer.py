"""Reinforcement learning: the trainer whose step takes the policy's own answers."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openk2.chat.ids import count_calls
from openk2.chat.messages import Completion
from openk2.chat.parser import parse_ids
from openk2.errors import ConfigError
from openk2.evals.cases import CALLING_KINDS
from openk2.models import K2Model
from openk2.models.packed import Quantization
from openk2.training.recipe import Recipe, StageConfig
from openk2.training.rl.config import RLConfig
from openk2.training.rl.critique import critique
from openk2.training.rl.mismatch import mismatch
from openk2.training.rl.objective import advantages, policy_loss
from openk2.training.rl.passes import Lesson, LessonBatch, packed_lessons
from openk2.training.rl.reward import Reward, verified
from openk2.training.rl.rollout import Answer, PackedCopy, distinct, roll_out
from openk2.training.rl.tasks import Stream, Task, TaskSource
from openk2.training.source import Source
from openk2.training.trainer import Trainer


@dataclass(frozen=True)
class Judged:
    """A task's answers and their rewards, in order."""

    task: Task
    answers: list[Answer]
    replies: list[Completion]
    rewards: list[Reward]
    values: list[float]
    """The rewards as they are learned from: what the critique adds included."""


class RLTrainer(Trainer):
    """A step: prompts from the data, answers by the engine, their rewards, and one or several updates.

    What a step does follows from the weights, the optimizer and the step's number: a run that was cut goes on exactly,
    as with the other data. Tokens of the schedule are those generated and those that passes with gradients took.
    """

    def __init__(self, recipe: Recipe, source: Source, stream: Stream, folder: Path, *, device: str = "cpu") -> None:
        """`stream` gives the conversations that prompts are cut out of; `source` the batches beside them."""
        super().__init__(recipe, source, folder, device=device)
        if recipe.rl is None:
            raise ConfigError("the recipe has no [rl] section", param="rl")
        self.rl: RLConfig = recipe.rl
        self.tasks = TaskSource(
            source.template,
            stream,
            self.rl,
            seed=recipe.seed,
            max_length=recipe.model.max_position_embeddings,
        )
        self.packed: PackedCopy | None = None
        if self.rl.rollout != "shared":
            self.packed = PackedCopy(self.model, Quantization.parse(self.rl.rollout))

    @property
    def temperature(self) -> float:
        """Of the present step's answers."""
        first, last = self.rl.temperature
        return first + (last - first) * min(self.tokens / self.total_tokens, 1.0)

    def train_step(self) -> dict[str, Any]:
        """One step. Returns its record: see docs/training.md for the fields.

        Raises DivergedError as `Trainer` does, TrainingError when the engine fails; DataError when prompts run out.
        """
        started = time.perf_counter()
        stage, temperature = self.recipe.stage(self.tokens), self.temperature
        judged = self._judged(stage, temperature)
        rolled = time.perf_counter()
        parts = [judged[i :: self.rl.updates] for i in range(self.rl.updates)]
        passes = [list(packed_lessons(lessons(part), stage.batch_tokens, self.device)) for part in parts]
        old = [[self._told(batch, temperature) for batch in batches] for batches in passes]
        record: dict[str, Any] = {}
        trained = 0
        for batches, logprobs in zip(passes, old, strict=True):
            updated = self._learn(batches, [at for at, _ in logprobs], temperature, stage)
            trained += updated.pop("trained")
            record |= updated
        generated = sum(len(answer.token_ids) for one in judged for answer in one.answers)
        self.step += 1
        self.tokens += generated + trained
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        engine = [batch.engine_logprobs_N for batches in passes for batch in batches]
        plain = [told for logprobs in old for _, told in logprobs]
        return {
            "step": self.step,
            "tokens": self.tokens,
            **_rewards(judged),
            **record,
            "temperature": temperature,
            "generated_tokens": generated,
            "trained_tokens": trained,
            "mismatch": mismatch(torch.cat(engine), torch.cat(plain)) if engine else None,
            "rollout_seconds": round(rolled - started, 3),
            "tokens_per_second": (generated + trained) / elapsed,
        }

    def _judged(self, stage: StageConfig, temperature: float) -> list[Judged]:
        rl, template = self.rl, self.source.template
        tasks = self.tasks.draw(self.step, stage.data_stage)
        stops = frozenset({template.tokenizer.im_end_id, template.tokenizer.eos_id})
        groups = roll_out(
            self.workshop.worker if self.packed is None else self.packed.refresh(),
            tasks,
            rl.samples,
            temperature=temperature,
            seed=f"{self.recipe.seed}/{self.step}",
            stop_token_ids=stops,
        )
        judged = []
        for task, answers in zip(tasks, groups, strict=True):
            replies = [self._reply(task, answer) for answer in answers]
            rewards = [verified(task.case, reply, rl) for reply in replies]
            judged.append(Judged(task, answers, replies, rewards, [reward.value for reward in rewards]))
        if rl.critique_weight > 0:
            _add_critique(self.workshop.worker, self.source, judged, rl)
        return judged

    def _reply(self, task: Task, answer: Answer) -> Completion:
        return parse_ids(
            self.source.template.tokenizer,
            [token for token in answer.token_ids if token < self.source.template.tokenizer.vocab_size],
            "length" if answer.cut else "stop",
            first_index=count_calls(task.case.messages),
            names=[tool.name for tool in task.case.tools],
        )

    @torch.no_grad()
    def _told(self, batch: LessonBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """The policy's log-probabilities before its update, at the answers' temperature and at 1."""
        logits = batch.logits(self.workshop.worker)
        return batch.logprobs(logits, temperature), batch.logprobs(logits, 1.0)

    def _learn(
        self, batches: Sequence[LessonBatch], old: Sequence[Tensor], temperature: float, stage: StageConfig
    ) -> dict[str, Any]:
        """One update, by these lessons and by batches of the data; without either, none. Its part of the record."""
        rl, recipe, worker = self.rl, self.recipe, self.workshop.worker
        max_logits, load = self._observed()
        policy = 0.0
        for batch, before in zip(batches, old, strict=True):
            logits = batch.logits(worker, max_logits=max_logits, expert_load=load, recompute=recipe.recompute)
            now = batch.logprobs(logits, temperature)
            loss = policy_loss(now, before, batch.answer_N, batch.advantages_S, batch.weights_S, rl.tau)
            loss.backward()  # type: ignore[no-untyped-call]
            self.workshop.gather()
            policy += float(loss.detach())
        ptx, trained = 0.0, sum(len(batch.input_ids) for batch in batches)
        if rl.ptx_weight > 0:
            kept = [self.source.batch(self.batches + i, stage).to(self.device) for i in range(recipe.accumulate)]
            self.batches += len(kept)
            supervised = sum(int(data.supervised.sum()) for data in kept)
            for data in kept:
                share = int(data.supervised.sum()) / supervised
                ptx += self._backward(data, rl.ptx_weight * share, max_logits, load)[0] * share
                trained += len(data.input_ids)
        total = policy + rl.ptx_weight * ptx
        updated = self._update(total, max_logits, load) if trained else {}
        return {"loss": total, "policy_loss": policy, "ptx_loss": ptx, "trained": trained, **updated}


def lessons(part: Sequence[Judged]) -> list[Lesson]:
    """What an update learns from: each distinct answer, weighed by how often it was drawn.

    A prompt whose answers are worth the same has no gradient but the log-ratio's, which is none at a step's first
    update: it is left out, but counts in the mean.
    """
    found = []
    for one in part:
        if len(set(one.values)) == 1:
            continue
        gains = advantages(one.values)
        answers = len(part) * len(one.answers)
        found += [Lesson(one.task, a, gains[at[0]], len(at) / answers) for a, at in distinct(one.answers)]
    return found


def _add_critique(model: K2Model, source: Source, judged: Sequence[Judged], rl: RLConfig) -> None:
    """To the answers in text of cases that want text: checks judge calls alone."""
    places = [
        (one, at)
        for one in judged
        if one.task.case.kind not in CALLING_KINDS
        for at, reply in enumerate(one.replies)
        if not reply.message.tool_calls and not one.rewards[at].cut
    ]
    scores = critique(model, source.template, [(one.task.case, one.replies[at]) for one, at in places], rl.rubric)
    for (one, at), score in zip(places, scores, strict=True):
        one.values[at] += rl.critique_weight * score


def _rewards(judged: Sequence[Judged]) -> dict[str, Any]:
    kinds: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        kinds[one.task.case.kind] += [float(reward.right) for reward in one.rewards]
    values = [value for one in judged for value in one.values]
    rewards = [reward for one in judged for reward in one.rewards]
    added = [
        (reward.right, value - reward.value)
        for one in judged
        for value, reward in zip(one.values, one.rewards, strict=True)
        if value != reward.value
    ]
    sides = [[gain for right, gain in added if right is side] for side in (True, False)]
    return {
        "reward": statistics.fmean(values),
        "right": statistics.fmean(float(reward.right) for reward in rewards),
        "right_by_kind": {kind: round(statistics.fmean(shares), 4) for kind, shares in sorted(kinds.items())},
        "cut": statistics.fmean(float(reward.cut) for reward in rewards),
        "informative": statistics.fmean(float(len(set(one.values)) > 1) for one in judged),
        "critic_gap": statistics.fmean(sides[0]) - statistics.fmean(sides[1]) if all(sides) else None,
    }
