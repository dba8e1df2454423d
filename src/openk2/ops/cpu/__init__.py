"""Bindings to the compiled CPU ops (`csrc/`); absent where the package was built without a compiler.

One library holds every op in several instruction sets; the fastest that this machine has is used, or the one that
the environment variable `OPENK2_ISA` names (portable, avx2, avx512, neon).
"""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor

from openk2.errors import EnvironmentFault

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
