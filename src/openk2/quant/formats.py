"""bf16, int8 and int4 with a bfloat16 scale for every 32 columns of a row.

int4 is the grid of the published K2-Thinking weights: symmetric, -8 to 7, groups of 32.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openk2.ops.packed import BLOCK_BYTES, GROUP, TILE_ROWS, Format, PackedLayout, PackedStack, pack, unpack

LARGEST: dict[Format, int] = {"int8": 127, "int4": 7}
"""The integer that a group's largest magnitude becomes. int4 has -8 too, which rounding to nearest leaves unused."""

PART_VALUES = 1 << 22
"""Of a matrix, about as many are quantised at once."""


def quantize(matrix: Tensor, format: Format) -> tuple[Tensor, Tensor | None]:
    """matrix (rows, cols) rounded to nearest: values (rows, cols) and scales (rows, groups), as `ops.packed.pack`
    takes them.

    The scale is rounded to bfloat16 first and the values to that, so that no error of the scale remains in them.
    """
    if format == "bf16":
        return matrix.to(torch.bfloat16), None
    rows, cols = matrix.shape
    groups = -(-cols // GROUP)
    padded = torch.zeros(rows, groups * GROUP)
    padded[:, :cols] = matrix
    grouped = padded.view(rows, groups, GROUP)
    limit = LARGEST[format]
    scales = (grouped.abs().amax(-1) / limit).to(torch.bfloat16)
    divisor = scales.float().masked_fill(scales == 0, 1.0)
    values = (grouped / divisor[..., None]).round().clamp(-limit - (format == "int4"), limit)
    return values.to(torch.int8).flatten(1)[:, :cols], scales


def dequantize(stack: PackedStack, index: int = 0) -> Tensor:
    """Matrix `index` of the stack, (rows, cols) float32."""
    values, scales = unpack(stack.layout, stack.data[index])
    if scales is None:
        return values.float()
    return values.float() * scales.float().repeat_interleave(GROUP, 1)[:, : stack.layout.cols]


def empty_stack(layout: PackedLayout, device: str | torch.device = "cpu") -> PackedStack:
    """A stack to pack into; its bytes are not set."""
    return PackedStack(layout, torch.empty(layout.shape, dtype=torch.uint8, device=device))


def pack_into(stack: PackedStack, index: int, matrix: Tensor) -> None:
    """Quantise `matrix` (rows, cols) to the stack's format and lay it at `index`.

    Rows go in parts: quantising a large matrix takes several times its memory.
    """
    layout = stack.layout
    tile_bytes = layout.groups * BLOCK_BYTES[layout.format]
    tiles = max(1, PART_VALUES // (TILE_ROWS * layout.cols))
    for first in range(0, layout.tiles, tiles):
        rows = matrix[first * TILE_ROWS : (first + tiles) * TILE_ROWS]
        packed = pack(replace(layout, rows=len(rows)), *quantize(rows, layout.format))
        at = first * tile_bytes
        stack.data[index, at : at + len(packed)] = packed


def random_stack(stack: PackedStack, std: float, generator: torch.Generator) -> None:
    """Fill with random weights of standard deviation `std`, drawn in the layout itself: normal in bf16, of about
    equally likely integers in int8 and int4."""
    layout, data = stack.layout, stack.data
    if layout.format == "bf16":
        data.view(torch.bfloat16).normal_(0.0, std, generator=generator)
        return
    data.random_(0, 256, generator=generator)
    blocks = data.view(-1, BLOCK_BYTES[layout.format])
    if layout.format == "int8":
        variance = 127 * 128 * 255 / 6 * 2 / 256
        blocks[blocks == 128] = 0  # -128 is no value of the format
    else:
        variance = 7 * 8 * 15 / 6 * 2 / 16
        blocks[blocks & 0x0F == 0] |= 0x08  # -8 becomes 0, so that the mean is 0
        blocks[blocks & 0xF0 == 0] |= 0x80
    scale = torch.tensor(std / variance**0.5, dtype=torch.bfloat16)
    blocks[:, :32] = scale.repeat(16).view(torch.uint8)
