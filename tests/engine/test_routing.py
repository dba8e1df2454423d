"""The experts that answers went through: recorded by the engine, replayed in a pass with gradients."""

from __future__ import annotations

import pytest
import torch
from tests.engine.conftest import prompt, random_model, tiny_config
from torch import Tensor

from openk2.config import SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.models import ForwardBatch, K2Model


def answers(model: K2Model, **config: int | bool) -> dict[str, tuple[list[int], Tensor]]:
    """Tokens (prompt and answer) and routing of four requests, of which three share a prompt."""
    engine = Engine(model, EngineConfig(record_routing=True, block_size=4, **config))  # type: ignore[arg-type]
    prompts = {"a": prompt(21), "b": prompt(21), "c": prompt(21), "d": prompt(9, seed=3)}
    tokens, routing = {name: list(ids) for name, ids in prompts.items()}, {}
    engine = Engine(model, EngineConfig(record_routing=True, block_size=4, **config))  # type: ignore[arg-type]
    for name, ids in prompts.items():
        engine.add_request(EngineRequest(name, ids, SamplingParams(temperature=1.0, seed=ord(name), max_tokens=7)))
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            if output.routing is not None:
                routing[output.request_id] = output.routing
    return {name: (tokens[name], routing[name]) for name in prompts}


@pytest.mark.parametrize("config", [{}, {"max_num_batched_tokens": 5}, {"num_blocks": 13}, {"max_num_seqs": 1}])
def test_every_computed_token_has_the_experts_of_a_whole_pass(model: K2Model, config: dict[str, int]) -> None:
    """In chunks, after preemptions, and where the prefix cache computed the prompt for another request."""
    c = model.config
    for tokens, routing in answers(model, **config).values():
        seen = tokens[:-1]  # the last token is never computed
        chosen = torch.zeros(c.num_hidden_layers, len(seen), c.num_experts_per_tok, dtype=torch.int64)
        with torch.no_grad():
            model(torch.tensor(seen), ForwardBatch.packed([len(seen)], chosen_ids=chosen))
        assert routing.shape == (len(seen), c.num_hidden_layers, c.num_experts_per_tok)
        torch.testing.assert_close(routing.long().sort(-1)[0], chosen.transpose(0, 1).sort(-1)[0], rtol=0, atol=0)


def test_choices_given_are_taken_and_weighed_with_gradients() -> None:
    """Given the router's own choices nothing changes, to the bit; given others, those experts work."""
    model = random_model(tiny_config("k2-0905"))
    c = model.config
    ids = torch.tensor(prompt(12))
    chosen = torch.zeros(c.num_hidden_layers, 12, c.num_experts_per_tok, dtype=torch.int64)
    own = model(ids, ForwardBatch.packed([12], chosen_ids=chosen))
    replayed = model(ids, ForwardBatch.packed([12], topk_ids=chosen))
    assert torch.equal(own, replayed)
    others = (chosen + 1) % (c.n_routed_experts or 1)
    load = torch.zeros(c.num_hidden_layers, c.n_routed_experts or 0)
    moved = model(ids, ForwardBatch.packed([12], topk_ids=others, expert_load=load))
    assert not torch.allclose(own, moved, atol=1e-3)
    for layer in range(1, 3):
        assert torch.equal(load[layer], others[layer].flatten().bincount(minlength=16).float())
    moved.square().sum().backward()
    gate = model.decoder_layers[1].mlp.gate.weight.grad  # type: ignore[union-attr]
    assert gate is not None and gate.abs().max() > 0


def test_nothing_is_recorded_unless_asked(model: K2Model) -> None:
    engine = Engine(model, EngineConfig())
    engine.add_request(EngineRequest("r", prompt(5), SamplingParams(temperature=0.0, max_tokens=1)))
    (output,) = engine.step()
    assert output.finish_reason == "length" and output.routing is None
