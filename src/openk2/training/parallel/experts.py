"""Expert parallelism: each rank of a group holds some of a layer's experts, and tokens travel to them and back.

As in GShard (Lepikhin et al., arXiv:2006.16668), without a capacity: no token is dropped, so the host reads how many
rows each rank sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openk2 import ops
from openk2.models import ForwardBatch
from openk2.models.moe import RoutedExperts

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class _Exchange(torch.autograd.Function):
    """Rows to the ranks of a group: `sends[r]` of them to rank r, in order, and `receives[r]` from it. Gradients travel
    back the same way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sends: list[int], receives: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way_back = (receives, sends, group)
        return exchange_rows(rows, sends, receives, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return exchange_rows(grads[0], *ctx.way_back), None, None, None


def exchange_rows(rows: Tensor, sends: Sequence[int], receives: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """One all-to-all of the rows of a tensor (N, ...), sorted by the rank that they go to."""
    received = rows.new_empty(sum(receives), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), list(receives), list(sends), group=group)
    return received


class ParallelExperts(RoutedExperts):
    """This rank's experts of a layer: those at the place of its rank in the group, in equal runs.

    The same function as `RoutedExperts` of all of them, on this rank's tokens.
    """

    def __init__(self, whole: RoutedExperts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.width, self.group = whole.width, mesh.get_group()
        size, index = mesh.size(), mesh.get_local_rank()
        self.num_experts = whole.gate_up_proj.shape[0]
        share = self.num_experts // size
        self.mine = slice(index * share, (index + 1) * share)
        self.gate_up_proj = nn.Parameter(whole.gate_up_proj.detach()[self.mine].clone())
        self.down_proj = nn.Parameter(whole.down_proj.detach()[self.mine].clone())

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, batch: ForwardBatch) -> Tensor:
        size, topk = dist.get_world_size(self.group), topk_ids.shape[1]
        flat = topk_ids.flatten()
        order = flat.argsort(stable=True)
        counts = torch.zeros(self.num_experts, dtype=torch.int64, device=x.device)
        counts.scatter_add_(0, flat, torch.ones_like(flat))
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        sends, receives = torch.stack((counts, arriving)).view(2, size, -1).sum(-1).tolist()
        # copies of a token first, then the order: its transpose adds each row once, whatever the order of threads
        copies = x[:, None].expand(-1, topk, -1).flatten(0, 1).index_select(0, order)
        weights = topk_weights.to(x.dtype).flatten().index_select(0, order)[:, None]
        rows = _Exchange.apply(torch.cat((copies, weights), 1), sends, receives, self.group)
        experts = torch.arange(self.num_experts // size, device=x.device).repeat(size)
        experts = experts.repeat_interleave(arriving, output_size=sum(receives))[:, None]
        out, weights = rows[:, :-1].contiguous(), rows[:, -1:]
        if len(rows) or torch.is_grad_enabled():  # without a row, weights still want their gradient of zeros
            out = ops.moe_experts(out, experts, weights, self.gate_up_proj, self.down_proj, per_row=batch.per_row)
        out = _Exchange.apply(out, receives, sends, self.group)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=x.device))
        return out.index_select(0, inverse).unflatten(0, (-1, topk)).sum(1)
