"""Answers of the policy, by the engine that serves it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openk2.config import SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.errors import TrainingError
from openk2.models import K2Model
from openk2.models.packed import Quantization, pack_modules, packing_sinks, plain_sinks
from openk2.models.packed_decode import finish_packing
from openk2.training.rl.tasks import Task

MOST_AT_ONCE = 64
"""Answers that the engine writes at once."""
STEP_TOKENS = 2048
"""Of one engine step, the prompts' chunks included."""


@dataclass
class Answer:
    """One answer to a task, as the engine gave it."""

    token_ids: list[int] = field(default_factory=list)
    """The token that ended it included."""
    logprobs: list[float] = field(default_factory=list)
    """The engine's, of each token, at temperature 1."""
    cut: bool = False
    """It reached the task's budget."""
    routing: Tensor | None = None
    """(prompt and answer less 1, layers, experts per token), as `StepOutput.routing`."""


class PackedCopy:
    """The policy once more, packed for the native kernels, and filled again after each of its updates.

    Every matrix is packed anew: each of them has changed, so what is cheap is to keep the modules and their memory.
    """

    def __init__(self, policy: K2Model, quantization: Quantization) -> None:
        self.policy = policy
        with torch.device("meta"):
            model = K2Model(policy.config)
        pack_modules(model, quantization)
        self.model = model.float().to_empty(device="cpu").eval()

    @torch.no_grad()
    def refresh(self) -> K2Model:
        """With the policy's present weights."""
        sinks = plain_sinks(self.model) | packing_sinks(self.model)
        for name, tensor in self.policy.checkpoint_tensors():
            sinks[name](tensor)
        finish_packing(self.model)
        return self.model


def roll_out(
    model: K2Model,
    tasks: Sequence[Task],
    samples: int,
    *,
    temperature: float,
    seed: str,
    stop_token_ids: frozenset[int],
) -> list[list[Answer]]:
    """`samples` answers to each task, drawn without a grammar: what the form of a call is, the policy is to know.

    A function of weights, tasks, temperature and seed: the engine's answers do not depend on who runs beside them. The
    engine is made anew, because latents of earlier weights must not be found in its cache. Raises TrainingError for an
    answer that it could not give.
    """
    longest = max(len(task.prompt_ids) + task.budget for task in tasks)
    size = EngineConfig.block_size
    blocks = -(-longest // size) * min(MOST_AT_ONCE, len(tasks) * samples) + 1
    engine = Engine(
        model,
        EngineConfig(
            num_blocks=blocks,
            max_num_seqs=MOST_AT_ONCE,
            max_num_batched_tokens=STEP_TOKENS,
            max_model_len=longest,
            record_routing=True,
        ),
    )
    answers = [[Answer() for _ in range(samples)] for _ in tasks]
    # The first answer to each prompt begins alone, so that the others find the prompt in the cache.
    for first, last in ((0, 1), (1, samples)):
        for number, task in enumerate(tasks):
            for sample in range(first, last):
                sampling = SamplingParams(
                    temperature=temperature,
                    max_tokens=task.budget,
                    seed=_number(f"{seed}/{number}/{sample}"),
                    logprobs=0,
                )
                request = EngineRequest(f"{number}/{sample}", task.prompt_ids, sampling, stop_token_ids)
                engine.add_request(request)
        while engine.has_work if last == samples else _unbegun(answers):
            for output in engine.step():
                task_number, sample_number = map(int, output.request_id.split("/"))
                answer = answers[task_number][sample_number]
                if output.finish_reason == "error":
                    raise TrainingError(f"the engine failed on a rollout: {output.error}")
                answer.token_ids += output.token_ids
                answer.logprobs += [told.logprob for told in output.logprobs]
                answer.cut = output.finish_reason == "length"
                answer.routing = output.routing
    return answers


def _unbegun(answers: Sequence[Sequence[Answer]]) -> bool:
    return not all(group[0].token_ids for group in answers)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def distinct(answers: Sequence[Answer]) -> Iterator[tuple[Answer, list[int]]]:
    """Each different answer once, with the places where it stands: equal ones have equal gradients."""
    places: dict[tuple[int, ...], list[int]] = {}
    for at, answer in enumerate(answers):
        places.setdefault(tuple(answer.token_ids), []).append(at)
    for found in places.values():
        yield answers[found[0]], found
