"""Packed matrices: the layout, the number formats, and the compiled products in every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from openk2.ops import cpu, reference
from openk2.ops.packed import FORMATS, Format, PackedLayout, PackedStack, pack, unpack
from openk2.quant import dequantize, empty_stack, pack_into, quantize, random_stack

needs_extension = pytest.mark.skipif(not cpu.available(), reason="the extension is not built")
SHAPES = [(1, 1, 1), (1, 16, 32), (3, 17, 33), (5, 31, 97), (4, 7, 320), (67, 131, 64), (2, 96, 1003)]
"""(tokens, rows, cols)."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(matrices: Tensor, format: Format) -> PackedStack:
    stack = empty_stack(PackedLayout(format, *matrices.shape))
    for index, matrix in enumerate(matrices):
        pack_into(stack, index, matrix)
    return stack


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 33), (130, 100)])
def test_unpack_gives_back_what_was_packed(shape: tuple[int, int], format: Format) -> None:
    values, scales = quantize(randn(*shape), format)
    layout = PackedLayout(format, 1, *shape)
    data = pack(layout, values, scales)
    assert data.shape == (layout.matrix_bytes,)
    got_values, got_scales = unpack(layout, data)
    assert torch.equal(got_values, values)
    assert scales is None if got_scales is None else torch.equal(got_scales, scales)  # type: ignore[arg-type]


def test_where_an_int4_value_lies() -> None:
    """Row 5, column 22 of a tile: byte 4 * 5 + 2 of the second group of 64, upper half; its scale is the sixth."""
    values, scales = torch.zeros(16, 32, dtype=torch.int8), torch.arange(16.0).to(torch.bfloat16)[:, None]
    values[5, 22] = 7
    data = pack(PackedLayout("int4", 1, 16, 32), values, scales)
    assert torch.equal(data[:32].view(torch.bfloat16), scales[:, 0])
    quants = data[32:].clone()
    assert quants[64 + 4 * 5 + 2] == (15 << 4 | 8)
    quants[64 + 4 * 5 + 2] = 0x88
    assert (quants == 0x88).all()


@pytest.mark.parametrize(("format", "largest"), [("bf16", 0.0025), ("int8", 0.007), ("int4", 0.12)])
def test_error_of_the_formats(format: Format, largest: float) -> None:
    matrix = randn(64, 256)
    error = (dequantize(packed(matrix[None], format)) - matrix).norm() / matrix.norm()
    assert largest / 4 < error < largest


def test_every_int4_of_a_published_grid_survives() -> None:
    """K2-Thinking's numbers: -8 to 7 times a bfloat16 scale."""
    grid = torch.arange(-8, 8).repeat(4, 2).float() * torch.tensor([0.5, 0.0625, 3.0, 1.0])[:, None]
    values, scales = torch.arange(-8, 8).repeat(4, 2).to(torch.int8), torch.tensor([[0.5], [0.0625], [3.0], [1.0]])
    layout = PackedLayout("int4", 1, 4, 32)
    stack = PackedStack(layout, pack(layout, values, scales.to(torch.bfloat16))[None])
    assert torch.equal(dequantize(stack), grid)


@needs_extension
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", cpu.supported_isas())
def test_linear_parity(isa: str, shape: tuple[int, int, int], format: Format) -> None:
    tokens, rows, cols = shape
    x, weight = randn(tokens, cols, seed=1), packed(randn(1, rows, cols), format)
    got, want = cpu.packed_linear(x, weight, isa_name=isa), reference.packed_linear(x, weight)
    if format == "bf16":
        assert (got - want).abs().max() <= 2e-6 * want.abs().max() * max(1.0, cols / 64)
    else:
        assert torch.equal(got, want)


@needs_extension
@pytest.mark.parametrize(("format", "least", "most"), [("int8", -127, 127), ("int4", -8, 7)])
@pytest.mark.parametrize("isa", cpu.supported_isas())
def test_the_largest_products_are_exact(isa: str, format: Format, least: int, most: int) -> None:
    """Some instruction sets add up pairs, or a whole group, in 16 bits."""
    ends = torch.tensor([[least, least], [most, most], [least, most]])
    weight = pack(PackedLayout(format, 1, 3, 64), ends.repeat(1, 32).to(torch.int8), torch.ones(3, 2).bfloat16())
    stack = PackedStack(PackedLayout(format, 1, 3, 64), weight[None])
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0]]).repeat(1, 32)  # 127 and -127 in int8
    assert torch.equal(cpu.packed_linear(x, stack, isa_name=isa), reference.packed_linear(x, stack))


@needs_extension
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 8, 3, 16, 32), (5, 6, 2, 33, 40), (40, 16, 4, 20, 97), (3, 1, 1, 100, 64)])
@pytest.mark.parametrize("isa", cpu.supported_isas())
def test_experts_parity(isa: str, shape: tuple[int, int, int, int, int], format: Format) -> None:
    tokens, experts, topk, width, hidden = shape
    x = randn(tokens, hidden, seed=1)
    gate_up = packed(randn(2 * experts, width, hidden, seed=2) * hidden**-0.5, format)
    down = packed(randn(experts, hidden, width, seed=3) * width**-0.5, format)
    ids = randn(tokens, experts, seed=4).topk(topk).indices
    weights = randn(tokens, topk, seed=5).abs()
    weights[1::2, -1] = 0.0
    got = cpu.packed_experts(x, ids, weights, gate_up, down, isa_name=isa)
    want = reference.packed_experts(x, ids, weights, gate_up, down)
    # A hidden value at a rounding border may fall on either side: exp is not torch's.
    assert (got - want).abs().max() <= {"bf16": 1e-5, "int8": 2e-2, "int4": 2e-2}[format] * want.abs().max()
    assert (got - want).norm() <= 5e-3 * want.norm()


@needs_extension
@pytest.mark.parametrize("format", FORMATS)
def test_no_bit_depends_on_batch_threads_or_instruction_set(format: Format, threads: None, shared_loops: None) -> None:
    tokens, experts, topk, width, hidden = 37, 8, 3, 50, 129
    x = randn(tokens, hidden, seed=1)
    head = packed(randn(1, 333, hidden), format)
    gate_up, down = packed(randn(16, width, hidden) * 0.1, format), packed(randn(8, hidden, width) * 0.1, format)
    ids, weights = randn(tokens, experts, seed=4).topk(topk).indices, randn(tokens, topk, seed=5).abs()

    def both(rows: slice, isa: str) -> tuple[Tensor, Tensor]:
        part = cpu.packed_experts(x[rows], ids[rows], weights[rows], gate_up, down, isa_name=isa)
        return cpu.packed_linear(x[rows], head, isa_name=isa), part

    torch.set_num_threads(1)
    expected = both(slice(None), "portable")
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for isa in cpu.supported_isas():
            for size in (1, 5, tokens):
                parts = [both(slice(i, i + size), isa) for i in range(0, tokens, size)]
                for want, got in zip(expected, zip(*parts, strict=True), strict=True):
                    assert torch.equal(torch.cat(got), want)


@needs_extension
@pytest.mark.parametrize("isa", cpu.supported_isas())
@pytest.mark.parametrize(
    ("weights", "x", "expected"),
    [
        # The product has more bits than float32, of which the sum leaves the last.
        ([-(1 + 2**-7), 1 + 2**-7], [1.0, 1 + 2**-23], 2**-23 + 2**-30),
        # 1 + 2^-24 + 2^-54: rounded to float64 on the way, it would fall to 1.
        ([1.0, 205 * 2**-24], [1.0, 10475530 * 2**-31], 1 + 2**-23),
        ([-1.0, -205 * 2**-24], [1.0, 10475530 * 2**-31], -1 - 2**-23),
    ],
)
def test_bf16_products_and_their_sum_are_rounded_once(
    weights: list[float], x: list[float], expected: float, isa: str
) -> None:
    weight = packed(torch.tensor([[weights]]), "bf16")
    assert cpu.packed_linear(torch.tensor([x]), weight, isa_name=isa).item() == expected


@needs_extension
def test_bf16_bits_over_the_whole_range_of_floats() -> None:
    """Sums that cancel, results too small for a normal number, infinities and NaNs."""
    powers = torch.randint(-20, 20, (16, 128), generator=torch.Generator().manual_seed(3))
    x = randn(16, 128, seed=1) * 10.0**powers
    x[:, 1::2] = -x[:, ::2]
    matrix = randn(40, 128, seed=2) * 10.0 ** (powers[0] - 18.0)
    matrix[:, 1::2] = matrix[:, ::2]
    matrix[0], x[0, 3], x[1, 5] = 1e38, torch.inf, torch.nan
    matrix[1] = 0.0
    matrix[1, 7], x[4, 7] = 2.0**-70, 2.0**-70
    weight = packed(matrix[None], "bf16")
    results = [cpu.packed_linear(x, weight, isa_name=isa) for isa in cpu.supported_isas()]
    assert results[0][4, 1] == 2.0**-140 and results[0].isinf().any()
    for result in results[1:]:
        assert torch.equal(result.nan_to_num(nan=7.0), results[0].nan_to_num(nan=7.0))


@needs_extension
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 1e-38, 0.0])
def test_extreme_activations_as_the_definition(value: float, format: Format) -> None:
    x, weight = randn(3, 70), packed(randn(1, 20, 70), format)
    x[1, 40] = value
    x[2] = value
    for isa in cpu.supported_isas():
        got = cpu.packed_linear(x, weight, isa_name=isa)
        torch.testing.assert_close(got, reference.packed_linear(x, weight), rtol=1e-4, atol=1e-4, equal_nan=True)


@needs_extension
def test_what_does_not_fit_is_refused() -> None:
    weight = packed(randn(1, 8, 40), "int4")
    with pytest.raises(ValueError, match="packed_linear wants"):
        cpu.packed_linear(torch.zeros(2, 39), weight)
    with pytest.raises(ValueError, match="packed_linear wants"):
        cpu.packed_linear(torch.zeros(2, 40), PackedStack(weight.layout, weight.data[:, :-1]))
    gate_up, down = packed(randn(4, 8, 40), "int4"), packed(randn(2, 40, 8), "int4")
    with pytest.raises(ValueError, match="do not fit"):
        cpu.packed_experts(torch.zeros(1, 40), torch.tensor([[0]]), torch.ones(1, 1), gate_up, weight)
    for expert in (-1, 2):
        with pytest.raises(ValueError, match=f"expert {expert} of 2"):
            cpu.packed_experts(torch.zeros(1, 40), torch.tensor([[expert]]), torch.ones(1, 1), gate_up, down)


@needs_extension
@pytest.mark.parametrize("format", FORMATS)
def test_random_stacks_have_their_deviation(format: Format) -> None:
    stack = empty_stack(PackedLayout(format, 2, 64, 96))
    random_stack(stack, 0.02, torch.Generator().manual_seed(0))
    weights = torch.stack([dequantize(stack, i) for i in range(2)])
    assert abs(weights.mean()) < 2e-3 and abs(weights.std() / 0.02 - 1) < 0.05
