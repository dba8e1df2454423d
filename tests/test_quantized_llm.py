"""k2-nano with quantised weights, through the engine and by its distributions, against the plain model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from openk2 import LLM, SamplingParams, assets
from openk2.chat.template import ChatTemplate
from openk2.checkpoint import Quantization, load_model
from openk2.models import ForwardBatch, K2Model
from openk2.tokenizer import Tokenizer
from openk2.training.data import held_cases

FOLDER = assets.path("k2-nano")
KINDS = ("single", "choice", "parallel_same", "parallel_different", "chain", "missing", "no_fit", "builtin")
CLOSE = 1e-3
"""A gap between the two likeliest logits (whose size is about 10) that rounding may turn."""
MOST_KL = {"int8": 0.01, "int4,attention=int8,head=int8": 0.02}
"""Nats a token, as docs/quantization.md states them."""


@dataclass(frozen=True)
class Case:
    prompt: list[int]
    whole: list[int]
    """With the answer that is expected."""


def cases(n: int) -> Iterator[Case]:
    """`n` of each kind."""
    template = ChatTemplate.from_folder(Tokenizer.from_folder(FOLDER), FOLDER)
    for kind in KINDS:
        for tools, messages, expected in held_cases(1, n, kind):
            whole = template.render([*messages, expected], tools, add_generation_prompt=False)
            yield Case(template.render(messages, tools), whole)


@torch.inference_mode()
def logits(model: K2Model, ids: list[int], first: int) -> Tensor:
    """What follows `ids` up to each position from `first` - 1 on: (positions, vocab)."""
    hidden = model(torch.tensor(ids), ForwardBatch.packed([len(ids)]))
    return model.compute_logits(hidden[first - 1 :])


@pytest.mark.parametrize("n", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_greedy_text_in_packed_bfloat16_is_the_plain_model_s(n: int) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=24)
    plain = load_model(FOLDER, dtype=torch.float32)
    with LLM("k2-nano", dtype=torch.float32) as one, LLM("k2-nano", quantization="bf16") as other:
        for case in cases(n):
            ours, packed = (list(llm.generate(case.prompt, sampling).token_ids) for llm in (one, other))
            if ours == packed:
                continue
            same = next(i for i, (a, b) in enumerate(zip(ours, packed, strict=False)) if a != b)
            best = logits(plain, [*case.prompt, *ours[:same]], len(case.prompt) + same)[-1].topk(2).values
            assert best[0] - best[1] < CLOSE, (ours, packed)


@pytest.mark.parametrize("formats", MOST_KL)
def test_quantised_distributions_are_as_near_as_stated(formats: str) -> None:
    plain = load_model(FOLDER, dtype=torch.float32)
    packed = load_model(FOLDER, quantization=Quantization.parse(formats))
    divergences = []
    for case in cases(2):
        p, q = (logits(model, case.whole[:-1], len(case.prompt)).log_softmax(-1) for model in (plain, packed))
        divergences.append((p.exp() * (p - q)).sum(-1))
    assert torch.cat(divergences).mean() < MOST_KL[formats]
