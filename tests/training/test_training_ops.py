"""The trainable fast paths against the definitions, values and gradients."""

from __future__ import annotations

import pytest
import torch

from openk2.ops import blockwise_attention, cpu, grouped_experts, reference
from openk2.ops.cpu import causal_attention as compiled


def gradients(outputs: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((outputs * weights).sum(), inputs))


def test_blockwise_attention_equals_the_definition(monkeypatch) -> None:
    monkeypatch.setattr(blockwise_attention, "QUERY_BLOCK", 16)
    monkeypatch.setattr(cpu, "available", lambda: False)
    torch.manual_seed(0)
    lengths = (0, 5, 55, 71)
    q, k = (torch.randn(71, 3, 12, requires_grad=True) for _ in range(2))
    v = torch.randn(71, 3, 8, requires_grad=True)
    ours, top = blockwise_attention.causal_attention(q, k, v, lengths, 0.3)
    theirs, expected_top = reference.causal_attention(q, k, v, lengths, 0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(top, expected_top)
    for a, b in zip(gradients(ours, [q, k, v]), gradients(theirs, [q, k, v]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("isa", cpu.supported_isas())
@pytest.mark.parametrize(
    ("heads", "key_dim", "value_dim", "borders"),
    [
        (1, 1, 1, (0, 1)),
        (3, 5, 3, (0, 2, 7)),
        (2, 48, 32, (0, 31, 32, 33, 131, 200)),  # blocks of 32 queries: just under, one, just over, several
        (2, 192, 128, (0, 97)),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_attention_equals_the_definition(isa, heads, key_dim, value_dim, borders, threads) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(borders[-1], heads, key_dim, requires_grad=True) for _ in range(2))
    v = torch.randn(borders[-1], heads, value_dim, requires_grad=True)
    theirs, expected_top = reference.causal_attention(q.double(), k.double(), v.double(), borders, 0.2)
    weights = torch.randn(theirs.shape)
    expected = torch.autograd.grad((theirs * weights).sum(), [q, k, v])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, lse, top = compiled.forward(q.detach(), k.detach(), v.detach(), borders, 0.2, isa_name=isa)
        made = compiled.backward(weights, q.detach(), k.detach(), v.detach(), ours, lse, borders, 0.2, isa_name=isa)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(top, expected_top.float())
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_compiled_attention_of_far_scores_stays_finite() -> None:
    q = torch.tensor([[[300.0]], [[-300.0]], [[300.0]]])
    out, lse, top = compiled.forward(q, q, q, (0, 3), 1.0)
    expected, expected_top = reference.causal_attention(q, q, q, (0, 3), 1.0)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(top, expected_top)
    made = compiled.backward(torch.ones_like(q), q, q, q, out, lse, (0, 3), 1.0)
    assert all(torch.isfinite(t).all() for t in made)


@pytest.mark.parametrize("borders", [(0,), (0, 2), (1, 3), (0, 2, 2, 3), (0, 4)])
def test_compiled_attention_refuses_borders_that_are_not_the_tokens(borders) -> None:
    q = torch.randn(3, 1, 2)
    with pytest.raises(ValueError, match="borders"):
        compiled.forward(q, q, q, borders, 1.0)


def test_training_on_a_cpu_takes_the_compiled_attention() -> None:
    q, k = (torch.randn(9, 2, 6, requires_grad=True) for _ in range(2))
    v = torch.randn(9, 2, 4, requires_grad=True)
    out, _ = blockwise_attention.causal_attention(q, k, v, (0, 4, 9), 0.3)
    assert out.grad_fn is not None and "CompiledAttention" in type(out.grad_fn).__name__
    theirs, _ = reference.causal_attention(q, k, v, (0, 4, 9), 0.3)
    for a, b in zip(gradients(out, [q, k, v]), gradients(theirs, [q, k, v]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_grouped_experts_equal_the_definition() -> None:
    torch.manual_seed(0)
    x = torch.randn(33, 16, requires_grad=True)
    gate_up, down = torch.randn(6, 16, 16, requires_grad=True), torch.randn(6, 16, 8, requires_grad=True)
    ids = torch.stack([torch.randperm(5)[:3] for _ in range(33)])  # expert 5 gets nothing
    weights = torch.rand(33, 3, requires_grad=True)
    ours = grouped_experts.moe_experts(x, ids, weights, gate_up, down)
    theirs = reference.moe_experts(x, ids, weights, gate_up, down)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    inputs = [x, weights, gate_up, down]
    for a, b in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
