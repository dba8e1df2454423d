"""The packed layout: how matrices lie in memory for the CPU kernels (`csrc/common/packed_tile.hpp`).

A matrix (rows, cols) is cut into tiles of 16 rows, a tile into blocks of 32 columns; rows and columns that are missing
at the end are zeros. Tiles follow each other, and within a tile its blocks, so that a product reads memory straight on.
A block, little endian:

- bf16: 32 times 16 bfloat16: of each column in turn, the values of the tile's rows.
- int8: 16 bfloat16 scales, one a row; then eight times 64 int8: of four columns in turn, each row's four values.
- int4: 16 scales as in int8; then four times 64 bytes. In byte 4 * row + i of group j, the lower half holds column
  4 * j + i, the upper one column 4 * j + i + 16, each plus 8.

LAYOUT_VERSION changes with anything above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LAYOUT_VERSION = 1
TILE_ROWS = 16
GROUP = 32
"""Columns of a block; in int8 and int4, those that share a scale."""

Format = Literal["bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
"""In the order of the numbers that the compiled ops know them by."""
BLOCK_BYTES: dict[Format, int] = {"bf16": 1024, "int8": 544, "int4": 288}
_SCALE_BYTES = 2 * TILE_ROWS


@dataclass(frozen=True)
class PackedLayout:
    """What a stack of equal matrices looks like when it is packed."""

    format: Format
    count: int
    rows: int
    cols: int

    @property
    def tiles(self) -> int:
        return -(-self.rows // TILE_ROWS)

    @property
    def groups(self) -> int:
        return -(-self.cols // GROUP)

    @property
    def matrix_bytes(self) -> int:
        return self.tiles * self.groups * BLOCK_BYTES[self.format]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the uint8 tensor that holds the stack: (count, matrix_bytes)."""
        return self.count, self.matrix_bytes


@dataclass(frozen=True)
class PackedStack:
    """`data` is uint8 of the shape that `layout` tells, contiguous."""

    layout: PackedLayout
    data: Tensor


def _tiled(matrix: Tensor, layout: PackedLayout) -> Tensor:
    """(rows, cols) to (tiles, 16, groups, 32), padded by zeros."""
    padded = matrix.new_zeros(layout.tiles * TILE_ROWS, layout.groups * GROUP)
    padded[: layout.rows, : layout.cols] = matrix
    return padded.view(layout.tiles, TILE_ROWS, layout.groups, GROUP)


def pack(layout: PackedLayout, values: Tensor, scales: Tensor | None) -> Tensor:
    """The bytes (matrix_bytes,) of one matrix.

    values: (rows, cols), bfloat16 for bf16, else int8: -127 to 127 for int8, -8 to 7 for int4; scales: (rows, groups)
    bfloat16, None for bf16.
    """
    tiles = _tiled(values, layout)
    if scales is None:
        return tiles.permute(0, 2, 3, 1).contiguous().view(torch.uint8).flatten()
    padded = scales.new_zeros(layout.tiles * TILE_ROWS, layout.groups)
    padded[: layout.rows] = scales
    scale_bytes = padded.view(layout.tiles, TILE_ROWS, layout.groups).transpose(1, 2).contiguous().view(torch.uint8)
    # (tiles, groups, eight fours, rows, 4)
    fours = tiles.unflatten(-1, (8, 4)).permute(0, 2, 3, 1, 4)
    if layout.format == "int4":
        nibbles = (fours + 8).to(torch.uint8)
        quants = nibbles[:, :, :4] | (nibbles[:, :, 4:] << 4)
    else:
        quants = fours.contiguous().view(torch.uint8)
    return torch.cat((scale_bytes, quants.flatten(2)), -1).flatten()


def unpack(layout: PackedLayout, data: Tensor) -> tuple[Tensor, Tensor | None]:
    """What `pack` was given, from its bytes (matrix_bytes,)."""
    blocks = data.view(layout.tiles, layout.groups, -1)
    if layout.format == "bf16":
        tiles = blocks.view(torch.bfloat16).unflatten(-1, (GROUP, TILE_ROWS)).permute(0, 3, 1, 2)
        return tiles.flatten(2).flatten(0, 1)[: layout.rows, : layout.cols].contiguous(), None
    scales = blocks[..., :_SCALE_BYTES].contiguous().view(torch.bfloat16).transpose(1, 2).flatten(0, 1)
    quants = blocks[..., _SCALE_BYTES:].unflatten(-1, (-1, TILE_ROWS, 4))
    if layout.format == "int4":
        fours = torch.cat((quants & 15, quants >> 4), 2).to(torch.int8) - 8
    else:
        fours = quants.contiguous().view(torch.int8)
    values = fours.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)
    return values[: layout.rows, : layout.cols].contiguous(), scales[: layout.rows].contiguous()
