"""The small modules that every block is made of. Parameter names are the checkpoint's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openk2 import ops
from openk2.models.forward_batch import ForwardBatch


class Linear(nn.Module):
    """A matrix [out, in] without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor, per_row: bool = False) -> Tensor:
        return ops.linear(x, self.weight, per_row=per_row)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU: down_proj(silu(gate_proj x) * up_proj x)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        hidden = ops.silu_mul(self.gate_proj(x, batch.per_row), self.up_proj(x, batch.per_row))
        return self.down_proj(hidden, batch.per_row)
