"""The compiled RMSNorm against its definition, in every instruction set of this machine."""

from __future__ import annotations

import shutil

import pytest
import torch

from openk2 import ops
from openk2.errors import EnvironmentFault
from openk2.ops import cpu
from openk2.ops.reference import rms_norm

needs_extension = pytest.mark.skipif(not cpu.available(), reason="the extension is not built")
EPS = 1e-6
SHAPES = [(1,), (1, 1), (3, 7), (5, 16), (2, 3, 17), (4, 31), (7, 320), (3, 1001), (2, 7168), (0, 8)]
TOLERANCE = {torch.float32: 5e-7, torch.bfloat16: 8e-3}
"""Largest difference over largest value: a few units of the last place, from another order of the sum."""


def sample(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3
    weight = torch.randn(shape[-1], generator=generator)
    return x.to(dtype), weight.to(dtype)


def test_the_extension_is_built_where_a_compiler_is() -> None:
    assert cpu.available() or shutil.which("c++") is None, "the native build failed; pip install -v . shows why"


@needs_extension
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", cpu.supported_isas())
def test_parity(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = sample(shape, dtype)
    before = x.clone()
    got, want = cpu.rms_norm(x, weight, EPS, isa_name=isa), rms_norm(x, weight, EPS)
    assert got.dtype == dtype and got.shape == want.shape and torch.equal(x, before)
    if x.numel():
        assert (got.float() - want.float()).abs().max() <= TOLERANCE[dtype] * want.float().abs().max()


@needs_extension
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_instruction_set_gives_the_same_bits(dtype: torch.dtype) -> None:
    x, weight = sample((5, 1003), dtype)
    first, *others = [cpu.rms_norm(x, weight, EPS, isa_name=isa) for isa in cpu.supported_isas()]
    assert all(torch.equal(first, other) for other in others)


@needs_extension
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    x, weight = sample((9, 323), dtype)
    whole = cpu.rms_norm(x, weight, EPS)
    for row in range(9):
        assert torch.equal(cpu.rms_norm(x[row : row + 1], weight, EPS)[0], whole[row])


@needs_extension
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e30, 1e-30])
def test_extreme_values_as_the_definition(value: float, dtype: torch.dtype) -> None:
    x, weight = sample((2, 19), dtype)
    x[1, 3] = value
    got, want = cpu.rms_norm(x, weight, EPS), rms_norm(x, weight, EPS)
    torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=1e-6, equal_nan=True)


@needs_extension
def test_bfloat16_rounds_ties_to_even() -> None:
    """Unit weight 1 and an x of root mean square 1: what remains is the rounding of x * weight."""
    x = torch.ones(1, 2048, dtype=torch.bfloat16)
    weight = torch.arange(2048, dtype=torch.int16).add(0x3F00).view(torch.bfloat16)
    assert torch.equal(cpu.rms_norm(x, weight, 0.0), rms_norm(x, weight, 0.0))


@needs_extension
def test_the_dispatcher_takes_it_and_training_in_bfloat16_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cpu, "rms_norm", lambda *arguments: calls.append(arguments) or arguments[0])
    x, weight = sample((2, 8), torch.float32)
    ops.rms_norm(x, weight, EPS)
    assert len(calls) == 1
    ops.rms_norm(x.bfloat16(), weight.bfloat16().requires_grad_(), EPS)
    ops.rms_norm(x.t().contiguous().t(), weight.detach(), EPS)
    assert len(calls) == 1


@needs_extension
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(2, 8), torch.ones(7)),
        (torch.ones(2, 8), torch.ones(8, dtype=torch.bfloat16)),
        (torch.ones(2, 8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)),
        (torch.ones(8, 2).t(), torch.ones(8)),
        (torch.ones(2, 8), torch.ones(16)[::2]),
        (torch.ones(2, 0), torch.ones(0)),
    ],
)
def test_refuses_what_would_read_elsewhere(x: torch.Tensor, weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="rms_norm wants"):
        cpu.rms_norm(x, weight, EPS)


@needs_extension
@pytest.mark.parametrize("isa", cpu.supported_isas())
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 3, 17), (5, 32), (600, 20), (2, 1001)])
def test_its_gradient_equals_the_definitions(isa: str, shape: tuple[int, ...]) -> None:
    x, weight = sample(shape, torch.float32)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    inputs = [t.double().requires_grad_() for t in (x, weight)]
    x64 = inputs[0] * torch.rsqrt(inputs[0].square().mean(-1, keepdim=True) + EPS) * inputs[1]
    expected = torch.autograd.grad(x64, inputs, grad.double())
    for got, want in zip(cpu.rms_norm_backward(grad, x, weight, EPS, isa_name=isa), expected, strict=True):
        torch.testing.assert_close(got, want.float(), atol=2e-6 * max(1.0, float(want.abs().max())), rtol=1e-5)


@needs_extension
def test_its_gradient_has_the_same_bits_on_any_number_of_threads() -> None:
    x, weight = sample((1500, 40), torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(cpu.rms_norm_backward(x * 2, x, weight, EPS))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_extension
def test_where_a_gradient_is_wanted_the_compiled_one_comes() -> None:
    x, weight = sample((6, 32), torch.float32)
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    out = ops.rms_norm(*inputs, EPS)
    assert out.grad_fn is not None and "CompiledNorm" in type(out.grad_fn).__name__
    grads = [torch.autograd.grad(o.square().sum(), inputs) for o in (out, rms_norm(*inputs, EPS))]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@needs_extension
@pytest.mark.parametrize("wrong", ["grad", "weight", "dtype"])
def test_its_gradient_refuses_what_does_not_fit(wrong: str) -> None:
    x, weight = sample((4, 8), torch.float32)
    grad = x[:3] if wrong == "grad" else x.double() if wrong == "dtype" else x
    with pytest.raises(ValueError, match="rms_norm_backward wants"):
        cpu.rms_norm_backward(grad, x, weight[:7] if wrong == "weight" else weight, EPS)


@needs_extension
def test_forced_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = cpu.isa.__wrapped__  # past the cache: the choice is made once in a process
    assert choose() == cpu.supported_isas()[-1]
    for wanted in cpu.supported_isas():
        monkeypatch.setenv("OPENK2_ISA", wanted)
        assert choose() == wanted
    monkeypatch.setenv("OPENK2_ISA", "avx1024")
    with pytest.raises(EnvironmentFault, match="OPENK2_ISA=avx1024 is not available on this machine; it has: portable"):
        choose()
