"""Each op's definition in plain PyTorch: readable, differentiable, the one that every faster version must equal."""

from openk2.ops.reference.linear import linear
from openk2.ops.reference.mla import absorbed_attention, attention_inputs, causal_attention, paged_attention
from openk2.ops.reference.moe import ExpertBudgets, moe_experts, route, silu_mul, swiglu
from openk2.ops.reference.norm import rms_norm
from openk2.ops.reference.packed import packed_experts, packed_linear
from openk2.ops.reference.rotary import apply_rotary

__all__ = [
    "ExpertBudgets",
    "absorbed_attention",
    "apply_rotary",
    "attention_inputs",
    "causal_attention",
    "linear",
    "moe_experts",
    "packed_experts",
    "packed_linear",
    "paged_attention",
    "rms_norm",
    "route",
    "silu_mul",
    "swiglu",
]
