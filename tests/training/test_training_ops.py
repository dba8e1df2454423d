"""The trainable fast paths against the definitions, values and gradients."""

from __future__ import annotations

import torch

from openk2.ops import blockwise_attention, grouped_experts, reference


def gradients(outputs: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((outputs * weights).sum(), inputs))


def test_blockwise_attention_equals_the_definition(monkeypatch) -> None:
    monkeypatch.setattr(blockwise_attention, "QUERY_BLOCK", 16)
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
