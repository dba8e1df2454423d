"""The experts of a MoE layer in float32, with their gradient (`csrc/trained_experts.cpp`): for training."""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.ops.cpu import _native, available, isa, use_torchs_threads

COLUMNS = 32
"""The kernel takes hidden sizes and widths of experts that are multiples of this."""


def takes(x_TD: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> bool:
    """Whether `forward` takes these; their ids are looked at when it runs."""
    return (
        available()
        and all(t.is_cpu and t.dtype is torch.float32 for t in (x_TD, topk_weights, gate_up_proj, down_proj))
        and x_TD.shape[0] > 0
        and x_TD.shape[1] % COLUMNS == 0
        and down_proj.shape[2] % COLUMNS == 0
    )


def forward(
    x_TD: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    isa_name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.moe_experts` (T, D), and what `backward` reads: the experts' gate and up projections (T * K, 2F).

    The bits do not depend on the number of threads. Raises ValueError for tensors that it does not take or that do not
    fit each other, and for an expert that is not there.
    """
    sizes, inputs = _checked(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)
    gate_up, out = x_TD.new_empty(topk_ids.numel(), 2 * down_proj.shape[2]), torch.empty_like(inputs[0])
    _run(False, sizes, inputs, gate_up, [out], isa_name)
    return out, gate_up


def backward(
    grad_TD: Tensor,
    x_TD: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up: Tensor,
    *,
    isa_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, the weights and both stacks, from that of the output and what `forward` returned."""
    sizes, inputs = _checked(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)
    x, _, weights, a, b = inputs
    made = [grad_TD.contiguous(), *(torch.empty_like(t) for t in (x, weights, a, b))]
    _run(True, sizes, inputs, gate_up, made, isa_name)
    return made[1], made[2], made[3], made[4]


def _checked(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[tuple[int, int, int, int, int], list[Tensor]]:
    experts, hidden, width = down.shape
    fits = (
        takes(x, weights, gate_up, down)
        and x.shape[1] == hidden
        and gate_up.shape == (experts, 2 * width, hidden)
        and ids.shape == weights.shape
        and ids.shape[0] == x.shape[0]
        and ids.dtype is torch.int64
    )
    if not fits:
        raise ValueError(
            f"trained_experts wants float32 on the CPU, sizes in multiples of {COLUMNS}; got {x.dtype}, "
            f"{tuple(x.shape)}, {tuple(ids.shape)}, {tuple(gate_up.shape)}, {tuple(down.shape)}"
        )
    sizes = (x.shape[0], ids.shape[1], experts, width, hidden)
    return sizes, [t.contiguous() for t in (x, ids, weights, gate_up, down)]


def _run(
    backward: bool,
    sizes: tuple[int, int, int, int, int],
    inputs: list[Tensor],
    gate_up: Tensor,
    made: list[Tensor],
    isa_name: str | None,
) -> None:
    use_torchs_threads()
    _native.trained_experts(
        backward,
        sizes,
        tuple(t.data_ptr() for t in inputs),
        gate_up.data_ptr(),
        [t.data_ptr() for t in made],
        isa_name or isa(),
    )
