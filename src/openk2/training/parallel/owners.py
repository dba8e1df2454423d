"""Orthogonalising sharded matrices: every matrix is put together on one rank, its owner, and the result handed back.

Each rank owns about the same work, so the ranks share Newton-Schulz as they share the memory. An owner holds one share
of all matrices, whole, instead of its rows of each: two all-to-alls of that size a step, and no second copy anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from openk2.training.parallel.experts import exchange_rows
from openk2.training.parallel.ranks import Ranks, my_rows

Orthogonalise = Callable[[list[Tensor]], list[Tensor]]


def on_whole_matrices(
    orthogonalise: Orthogonalise, updates: list[Tensor], shapes: Sequence[torch.Size], ranks: Ranks
) -> list[Tensor]:
    """`orthogonalise` for this rank's parts of parameters of `shapes`: its parts of the results, in order.

    Matrices are sharded by rows and travel; stacks are sharded into whole matrices, which stay. `orthogonalise` sees
    an empty tensor where another rank owns the matrix.
    """
    if ranks.size == 1:
        return orthogonalise(updates)
    travelling = [i for i, shape in enumerate(shapes) if len(shape) == 2]
    route = _Route([shapes[i] for i in travelling], ranks)
    given = list(updates)
    for i, whole in zip(travelling, route.collect([updates[i] for i in travelling]), strict=True):
        given[i] = whole
    results = orthogonalise(given)
    for i, part in zip(travelling, route.hand_back([results[i] for i in travelling]), strict=True):
        results[i] = part
    return results


class _Route:
    """Where the rows of sharded matrices go. All ranks compute the same owners from the shapes alone."""

    def __init__(self, shapes: Sequence[torch.Size], ranks: Ranks) -> None:
        self.shapes, self.ranks = shapes, ranks
        self.owners = owners(shapes, ranks.size)
        self.owned = [i for i, owner in enumerate(self.owners) if owner == ranks.index]
        self.by_owner = sorted(range(len(shapes)), key=lambda i: self.owners[i])
        self.sends = [0] * ranks.size
        for i, owner in enumerate(self.owners):
            self.sends[owner] += self._values(i, ranks.index)
        self.receives = [sum(self._values(i, rank) for i in self.owned) for rank in range(ranks.size)]

    def _values(self, i: int, rank: int) -> int:
        rows = my_rows(self.shapes[i][0], self.ranks.size, rank)
        return (rows.stop - rows.start) * self.shapes[i][1]

    def collect(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Whole matrices of the owned, empty ones elsewhere."""
        sent = torch.cat([parts[i].flatten() for i in self.by_owner])
        received = exchange_rows(sent, self.sends, self.receives, dist.group.WORLD)  # type: ignore[arg-type]
        wholes = [part.new_empty(0, shape[1]) for part, shape in zip(parts, self.shapes, strict=True)]
        sizes = [self._values(i, rank) for rank in range(self.ranks.size) for i in self.owned]
        pieces = received.split(sizes)
        for place, i in enumerate(self.owned):
            wholes[i] = torch.cat(pieces[place :: len(self.owned)]).view(self.shapes[i])
        return wholes

    def hand_back(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """This rank's rows of every matrix."""
        rows = [(i, my_rows(self.shapes[i][0], self.ranks.size, r)) for r in range(self.ranks.size) for i in self.owned]
        sent = torch.cat([wholes[0].new_empty(0), *(wholes[i][mine].flatten() for i, mine in rows)])
        received = exchange_rows(sent, self.receives, self.sends, dist.group.WORLD)  # type: ignore[arg-type]
        pieces = received.split([self._values(i, self.ranks.index) for i in self.by_owner])
        parts: list[Tensor] = [received] * len(self.shapes)
        for i, piece in zip(self.by_owner, pieces, strict=True):
            parts[i] = piece.view(-1, self.shapes[i][1])
        return parts


def owners(shapes: Sequence[torch.Size], size: int) -> list[int]:
    """A rank for each matrix: the dearest first, to whoever has least to do. Work goes as rows x columns x the
    smaller of them."""
    work = [rows * columns * min(rows, columns) for rows, columns in shapes]
    loads, result = [0] * size, [0] * len(shapes)
    for i in sorted(range(len(shapes)), key=lambda i: (-work[i], i)):
        result[i] = loads.index(min(loads))
        loads[result[i]] += work[i]
    return result
