"""The trainable fast paths against the definitions, values and gradients."""

from __future__ import annotations

import pytest
import torch

from openk2 import ops
from openk2.ops import blockwise_attention, cpu, grouped_experts, reference
from openk2.ops.cpu import attention_inputs, trained_experts
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


def routed(tokens: int, topk: int, experts: int, width: int, hidden: int) -> list[torch.Tensor]:
    """x, ids, weights, gate_up and down; the last expert gets nothing, where there are enough."""
    torch.manual_seed(tokens)
    ids = torch.rand(tokens, max(topk, experts - 1)).topk(topk).indices
    weights = torch.rand(tokens, topk)
    weights[::3, -1] = 0.0  # a token on fewer experts
    stacks = torch.randn(experts, 2 * width, hidden) / 4, torch.randn(experts, hidden, width) / 4
    return [torch.randn(tokens, hidden), ids, weights, *stacks]


@pytest.mark.parametrize("isa", cpu.supported_isas())
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 32, 32),
        (7, 2, 3, 32, 64),
        (129, 8, 11, 64, 96),  # tiles of 64 pairs: one and a bit
        (1030, 2, 5, 32, 32),  # blocks of 512 tokens: two and a bit
    ],
)
def test_compiled_experts_equal_the_definition(isa, sizes) -> None:
    x, ids, weights, gate_up, down = routed(*sizes)
    inputs = [t.double().requires_grad_() for t in (x, weights, gate_up, down)]
    theirs = reference.moe_experts(inputs[0], ids, *inputs[1:])
    grad = torch.randn(x.shape)
    expected = torch.autograd.grad((theirs * grad).sum(), inputs)
    ours, projected = trained_experts.forward(x, ids, weights, gate_up, down, isa_name=isa)
    made = trained_experts.backward(grad, x, ids, weights, gate_up, down, projected, isa_name=isa)
    torch.testing.assert_close(ours, theirs.float(), atol=2e-5, rtol=1e-5)
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b.float(), atol=2e-5 * float(b.abs().max()), rtol=1e-5)


def test_compiled_experts_give_the_same_bits_on_any_number_of_threads() -> None:
    x, ids, weights, gate_up, down = routed(1500, 4, 9, 32, 64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out, projected = trained_experts.forward(x, ids, weights, gate_up, down)
            results.append((out, *trained_experts.backward(x, x, ids, weights, gate_up, down, projected)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compiled_experts_refuse_what_does_not_fit() -> None:
    x, ids, weights, gate_up, down = routed(5, 2, 3, 32, 32)
    with pytest.raises(ValueError, match="expert 3 of 3"):
        trained_experts.forward(x, ids + 2, weights, gate_up, down)
    for wrong in (
        (x[:, :31], ids, weights),
        (x[:4], ids, weights),
        (x.double(), ids, weights),
        (x, ids[:, :1], weights),
    ):
        with pytest.raises(ValueError, match="trained_experts wants"):
            trained_experts.forward(*wrong, gate_up, down)


def test_training_on_a_cpu_takes_the_compiled_experts() -> None:
    x, ids, weights, gate_up, down = routed(40, 2, 4, 32, 32)
    inputs = [t.requires_grad_() for t in (x, weights, gate_up, down)]
    ours = grouped_experts.moe_experts(x, ids, weights, gate_up, down)
    assert ours.grad_fn is not None and "CompiledExperts" in type(ours.grad_fn).__name__
    theirs = reference.moe_experts(x, ids, weights, gate_up, down)
    for a, b in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_grouped_experts_without_the_compiled_ones_equal_the_definition(monkeypatch) -> None:
    monkeypatch.setattr(trained_experts, "available", lambda: False)
    x, ids, weights, gate_up, down = routed(33, 3, 6, 32, 32)
    inputs = [t.requires_grad_() for t in (x, weights, gate_up, down)]
    ours, theirs = (f.moe_experts(x, ids, weights, gate_up, down) for f in (grouped_experts, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for a, b in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def projections(tokens: int, heads: int, nope: int, rope: int, value: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """q, kv and k_pe (a view with rows further apart), and angles."""
    torch.manual_seed(tokens)
    joined = torch.randn(tokens, rope + 3)
    q, kv = torch.randn(tokens, heads, nope + rope), torch.randn(tokens, heads, nope + value)
    return [q, kv, joined[:, 3:]], torch.randn(tokens, rope // 2)


@pytest.mark.parametrize("isa", cpu.supported_isas())
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2, 1), (5, 3, 7, 4, 5), (300, 8, 32, 16, 32)])
def test_compiled_attention_inputs_equal_the_definition(isa, sizes) -> None:
    inputs, angle = projections(*sizes)
    cos, sin = angle.cos(), angle.sin()
    leaves = [t.clone().requires_grad_() for t in inputs]
    theirs = reference.attention_inputs(*leaves, cos, sin)
    grads = [torch.randn(t.shape) for t in theirs]
    expected = torch.autograd.grad(theirs, leaves, grads)
    for ours, want in zip(attention_inputs.forward(*inputs, cos, sin, isa_name=isa), theirs, strict=True):
        torch.testing.assert_close(ours, want.detach(), atol=1e-6, rtol=1e-6)
    for ours, want in zip(attention_inputs.backward(*grads, cos, sin, isa_name=isa), expected, strict=True):
        torch.testing.assert_close(ours, want, atol=2e-6, rtol=1e-5)


def test_training_on_a_cpu_takes_the_compiled_attention_inputs() -> None:
    inputs, angle = projections(6, 2, 4, 2, 3)
    leaves = [t.clone().requires_grad_() for t in inputs]
    made = ops.attention_inputs(*leaves, angle.cos(), angle.sin())
    assert all("CompiledInputs" in type(t.grad_fn).__name__ for t in made)
    expected = reference.attention_inputs(*leaves, angle.cos(), angle.sin())
    for a, b in zip(
        *(torch.autograd.grad(sum(t.square().sum() for t in x), leaves) for x in (made, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_compiled_attention_inputs_refuse_what_does_not_fit() -> None:
    (q, kv, k_pe), angle = projections(6, 2, 4, 2, 3)
    for wrong in ((q[:5], kv, k_pe), (q, kv[:, :1], k_pe), (q.double(), kv, k_pe), (q[..., :2], kv, k_pe)):
        with pytest.raises(ValueError, match="attention_inputs wants"):
            attention_inputs.forward(*wrong, angle, angle)
