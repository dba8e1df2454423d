"""Answers as packed batches for the training pass, and the policy's log-probabilities of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.models import ForwardBatch, K2Model
from openk2.training.rl.rollout import Answer
from openk2.training.rl.tasks import Task


@dataclass(frozen=True)
class Lesson:
    """A distinct answer and what is to be learned from it."""

    task: Task
    answer: Answer
    advantage: float
    weight: float
    """Of the objective's mean over prompts and answers: how often it was drawn, over the number of answers."""

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer; the last token is not looked at."""
        return len(self.task.prompt_ids) + len(self.answer.token_ids) - 1


@dataclass(frozen=True)
class LessonBatch:
    """Several lessons end to end: T tokens, N of which are followed by a token of an answer, of S answers."""

    input_ids: Tensor
    """(T,) int64."""
    lengths: tuple[int, ...]
    rows_N: Tensor
    """int64: the tokens that are followed by an answer's."""
    labels_N: Tensor
    """int64: the answers' tokens. Only they are learned."""
    answer_N: Tensor
    """int64: whose token each is."""
    topk_ids: Tensor
    """(layers, T, K) int64: the experts that the engine chose."""
    engine_logprobs_N: Tensor
    """float32, at temperature 1."""
    advantages_S: Tensor
    weights_S: Tensor

    @classmethod
    def of(cls, lessons: Sequence[Lesson], device: str) -> LessonBatch:
        ids: list[int] = []
        rows: list[int] = []
        labels: list[int] = []
        owner: list[int] = []
        told: list[float] = []
        for number, lesson in enumerate(lessons):
            prompt, answer = lesson.task.prompt_ids, lesson.answer.token_ids
            rows += range(len(ids) + len(prompt) - 1, len(ids) + lesson.num_tokens)
            ids += [*prompt, *answer[:-1]]
            labels += answer
            owner += [number] * len(answer)
            told += lesson.answer.logprobs
        routing = [lesson.answer.routing for lesson in lessons if lesson.answer.routing is not None]
        assert len(routing) == len(lessons), "the engine records its choices"
        return cls(
            torch.tensor(ids, device=device),
            tuple(lesson.num_tokens for lesson in lessons),
            torch.tensor(rows, device=device),
            torch.tensor(labels, device=device),
            torch.tensor(owner, device=device),
            torch.cat(routing).transpose(0, 1).long().to(device),
            torch.tensor(told, device=device),
            torch.tensor([lesson.advantage for lesson in lessons], device=device),
            torch.tensor([lesson.weight for lesson in lessons], device=device),
        )

    def logits(self, model: K2Model, **observers: Any) -> Tensor:
        """(N, vocab), float32, with the engine's choices replayed; `observers` as `ForwardBatch`'s fields."""
        batch = ForwardBatch.packed(self.lengths, device=self.input_ids.device, topk_ids=self.topk_ids)
        hidden = model(self.input_ids, replace(batch, **observers))
        return model.compute_logits(hidden[self.rows_N])

    def logprobs(self, logits: Tensor, temperature: float) -> Tensor:
        """(N,): of the answers' tokens."""
        return -F.cross_entropy(logits / temperature, self.labels_N, reduction="none")


def packed_lessons(lessons: Sequence[Lesson], most_tokens: int, device: str) -> Iterator[LessonBatch]:
    """In order, at most `most_tokens` a batch, but always one lesson."""
    part: list[Lesson] = []
    for lesson in lessons:
        if part and sum(one.num_tokens for one in part) + lesson.num_tokens > most_tokens:
            yield LessonBatch.of(part, device)
            part = []
        part.append(lesson)
    if part:
        yield LessonBatch.of(part, device)
