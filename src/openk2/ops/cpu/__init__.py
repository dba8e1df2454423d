"""Bindings to the compiled CPU ops (`csrc/`); absent where the package was built without a compiler.

One library holds every op in several instruction sets; the fastest that this machine has is used, or the one that
the environment variable `OPENK2_ISA` names (portable, avx2, avx512, neon, neon_dotprod).
"""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor

from openk2.errors import EnvironmentFault
from openk2.ops.packed import FORMATS, PackedStack

try:
    import openk2._native as _native
except ImportError:
    _native = None  # type: ignore[assignment]


def available() -> bool:
    """Whether this installation has the compiled ops."""
    return _native is not None


def supported_isas() -> tuple[str, ...]:
    """The instruction sets of this machine that the library was compiled for, slowest first."""
    return tuple(_native.supported_isas()) if available() else ()


@cache
def isa() -> str:
    """The instruction set in use.

    Raises EnvironmentFault when `OPENK2_ISA` names one that is not to be had here.
    """
    supported = supported_isas()
    if not supported:
        raise EnvironmentFault("the compiled CPU ops are not in this installation; `openk2 doctor` says why")
    wanted = os.environ.get("OPENK2_ISA") or supported[-1]
    if wanted not in supported:
        raise EnvironmentFault(f"OPENK2_ISA={wanted} is not available on this machine; it has: {', '.join(supported)}")
    return wanted


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, isa_name: str | None = None) -> Tensor:
    """As `reference.rms_norm`, for contiguous x (..., D) in float32 or bfloat16, weight (D,) in the same dtype.

    A row's result depends neither on the other rows nor on the instruction set. Raises ValueError for other tensors.
    """
    cols = weight.numel()
    if not (
        x.dtype in (torch.float32, torch.bfloat16)
        and x.dtype == weight.dtype
        and x.is_cpu
        and weight.is_cpu
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.shape[-1] == cols > 0
    ):
        raise ValueError(
            f"rms_norm wants contiguous float32 or bfloat16 on the CPU, (..., D) and (D,); "
            f"got {x.dtype} {tuple(x.shape)} and {weight.dtype} {tuple(weight.shape)}"
        )
    out = torch.empty_like(x)
    _native.rms_norm(
        x.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        x.numel() // cols,
        cols,
        eps,
        x.dtype is torch.bfloat16,
        isa_name or isa(),
    )
    return out


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, *, isa_name: str | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of x and `weight` from that of `rms_norm`'s result, all float32. The bits do not depend on the
    number of threads. Raises ValueError for other tensors."""
    grad = grad.contiguous()
    if not (
        all(t.dtype is torch.float32 and t.is_cpu and t.is_contiguous() for t in (grad, x, weight))
        and grad.shape == x.shape
        and x.shape[-1] == weight.numel() > 0
    ):
        raise ValueError(
            f"rms_norm_backward wants contiguous float32 on the CPU, (..., D) twice and (D,); "
            f"got {grad.dtype} {tuple(grad.shape)}, {x.dtype} {tuple(x.shape)} and {weight.dtype} {tuple(weight.shape)}"
        )
    use_torchs_threads()
    made = torch.empty_like(x), torch.empty_like(weight)
    addresses = [t.data_ptr() for t in (x, weight, grad, *made)]
    cols = weight.numel()
    _native.rms_norm_backward(addresses, x.numel() // cols, cols, eps, isa_name or isa())
    return made


def use_torchs_threads() -> None:
    """Give the compiled ops as many threads as torch has."""
    threads = torch.get_num_threads()
    if _native.num_threads() != threads:
        _native.set_num_threads(threads)


def packed_linear(x: Tensor, weight: PackedStack, *, isa_name: str | None = None) -> Tensor:
    """As `reference.packed_linear`. A row depends neither on the other rows, nor on the threads, nor on the
    instruction set. Raises ValueError for tensors of other shapes."""
    layout = weight.layout
    if x.dim() != 2 or x.shape[1] != layout.cols or not _is_whole(weight):
        raise ValueError(
            f"packed_linear wants (T, {layout.cols}) and a packed stack; got {tuple(x.shape)} and {layout}"
        )
    use_torchs_threads()
    taken = x.float().contiguous()
    out = taken.new_empty(x.shape[0], layout.rows)
    _native.packed_linear(
        taken.data_ptr(),
        weight.data.data_ptr(),
        FORMATS.index(layout.format),
        layout.rows,
        layout.cols,
        out.data_ptr(),
        x.shape[0],
        isa_name or isa(),
    )
    return out.to(x.dtype)


def packed_experts(
    x_TD: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up: PackedStack,
    down: PackedStack,
    *,
    isa_name: str | None = None,
) -> Tensor:
    """As `reference.packed_experts`, with the independence of `packed_linear`.

    Raises ValueError for stacks or tensors that do not fit each other, and for an expert that is not there.
    """
    a, b = gate_up.layout, down.layout
    fits = (
        a.format == b.format
        and (a.count, a.rows, a.cols) == (2 * b.count, b.cols, b.rows)
        and x_TD.dim() == 2
        and x_TD.shape[1] == a.cols
        and topk_ids.shape == topk_weights.shape
        and topk_ids.shape[0] == x_TD.shape[0]
        and topk_ids.dtype == torch.int64
        and _is_whole(gate_up)
        and _is_whole(down)
    )
    if not fits:
        raise ValueError(f"packed_experts: {tuple(x_TD.shape)}, {tuple(topk_ids.shape)}, {a} and {b} do not fit")
    use_torchs_threads()
    x, ids, weights = x_TD.float().contiguous(), topk_ids.contiguous(), topk_weights.float().contiguous()
    out = torch.empty_like(x)
    _native.packed_experts(
        x.data_ptr(),
        ids.data_ptr(),
        weights.data_ptr(),
        gate_up.data.data_ptr(),
        down.data.data_ptr(),
        FORMATS.index(a.format),
        b.count,
        a.rows,
        a.cols,
        out.data_ptr(),
        x.shape[0],
        ids.shape[1],
        isa_name or isa(),
    )
    return out.to(x_TD.dtype)


def _is_whole(stack: PackedStack) -> bool:
    data = stack.data
    return data.is_cpu and data.dtype is torch.uint8 and data.shape == stack.layout.shape and data.is_contiguous()
