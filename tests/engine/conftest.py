"""Tiny models with random weights, and an engine that keeps the logits it sampled from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from openk2.config import ModelConfig, SamplingParams, preset
from openk2.engine import Engine, EngineConfig, EngineRequest, TokenConstraint
from openk2.engine.request import ExpertUse
from openk2.models import K2Model

VOCAB = 97


def tiny_config(name: str) -> ModelConfig:
    """Shaped like the preset `name`, with sizes that are no multiples of a vector."""
    config = preset(name)
    return replace(
        config,
        vocab_size=VOCAB,
        hidden_size=40,
        intermediate_size=52,
        moe_intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=3,
        q_lora_rank=None if config.q_lora_rank is None else 28,
        kv_lora_rank=24,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=12,
        first_k_dense_replace=1,
        n_routed_experts=16,
        num_experts_per_tok=4,
        max_position_embeddings=512,
        rope_scaling=None,
    )


def random_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> K2Model:
    model = K2Model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("e_score_correction_bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
    return model.to(dtype)


@pytest.fixture(scope="session")
def model() -> K2Model:
    return random_model(tiny_config("k2-0905"))


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    """What each sampled token was sampled from."""
    finish_reason: str | None = None
    cached_tokens: int = 0
    error: str | None = None
    expert_use: ExpertUse | None = None


class Recorder:
    """Runs requests on an engine and keeps every row of logits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.answers: dict[str, Answer] = {}
        run = engine.runner.run

        def recording(chunks):  # type: ignore[no-untyped-def]
            logits = run(chunks)
            samplers = [chunk.request.request_id for chunk in chunks if chunk.samples]
            for request_id, row in zip(samplers, logits.clone(), strict=True):
                self.answers[request_id].logits.append(row)
            return logits

        engine.runner.run = recording  # type: ignore[method-assign]

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[int] = (),
        constraint: TokenConstraint | None = None,
        **sampling: object,
    ) -> Answer:
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **sampling})  # type: ignore[arg-type]
        self.engine.add_request(EngineRequest(request_id, prompt_token_ids, params, frozenset(stop), constraint))
        self.answers[request_id] = Answer()
        return self.answers[request_id]

    def step(self) -> None:
        for output in self.engine.step():
            answer = self.answers[output.request_id]
            assert answer.finish_reason is None, "output after the end"
            answer.tokens += output.token_ids
            answer.finish_reason, answer.error = output.finish_reason, output.error
            answer.cached_tokens, answer.expert_use = output.cached_tokens, output.expert_use

    def run(self) -> None:
        for _ in range(2000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine does not finish")


@pytest.fixture
def recorder(model: K2Model) -> Callable[..., Recorder]:
    return lambda **config: Recorder(Engine(model, EngineConfig(**config)))
