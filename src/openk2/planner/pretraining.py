"""What pretraining a model takes on openk2's own engine: FSDP2 and expert parallelism, laid out by `training/parallel`.

The dense part is sharded over all ranks; the experts of a layer are spread over `expert_parallel` neighbours and
sharded over those that hold the same ones. Every pass gathers a layer in bfloat16 and reduces its gradients in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from openk2.errors import ConfigError
from openk2.planner.hardware import Hardware
from openk2.planner.plan import MemoryTerm
from openk2.planner.shape import Kind, ModelShape

NEWTON_SCHULZ_STEPS = 5
FORWARDS = 4
"""Of a pass with recomputation, in forward passes: one, one again in the backward pass, which is worth two."""


@dataclass(frozen=True, kw_only=True)
class TrainingLayout:
    """How the ranks, one device each, share a step of `batch_tokens` tokens."""

    num_ranks: int
    expert_parallel: int
    pass_tokens: int
    """Of one rank in one pass: a step has as many passes as it takes."""
    batch_tokens: int
    sequence_tokens: int

    def __post_init__(self) -> None:
        if self.num_ranks % self.expert_parallel:
            raise ConfigError(
                f"expert_parallel {self.expert_parallel} does not divide {self.num_ranks} ranks",
                param="expert_parallel",
            )

    @property
    def replicas(self) -> int:
        return self.num_ranks // self.expert_parallel

    @property
    def passes(self) -> int:
        return ceil(self.batch_tokens / (self.pass_tokens * self.num_ranks))


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step on a rank, by what takes them; nothing is taken to overlap."""

    arithmetic_s: float
    gather_s: float
    """Parameters gathered for the forward and the backward pass, gradients reduced."""
    exchange_s: float
    """Tokens to their experts and back, three times: forward, again, and backward."""
    newton_schulz_s: float
    """Arithmetic of Muon, and the matrices to their owners and back."""

    @property
    def total_s(self) -> float:
        return self.arithmetic_s + self.gather_s + self.exchange_s + self.newton_schulz_s


def training_memory(shape: ModelShape, layout: TrainingLayout) -> tuple[MemoryTerm, ...]:
    """Bytes of the fullest rank, by term."""
    ranks, tokens, hidden = layout.num_ranks, layout.pass_tokens, shape.hidden_size
    ends = 2 * shape.vocab_size * hidden
    experts, dense = _layer_parameters(shape)
    held = experts // layout.expert_parallel
    rows = tokens * max(shape.num_experts_per_token, 1)
    inside = rows * (6 * hidden + 4 * shape.expert_intermediate_size)
    inside += tokens * 3 * shape.attention.expanded_values_per_token_per_layer
    return (
        _term("weights", 4 * shape.parameters, ranks, "float32, over all ranks"),
        _term("gradients", 4 * shape.parameters, ranks, "float32, over all ranks"),
        _term(
            "optimizer", 4 * shape.parameters + 4 * ends, ranks, "Muon's momentum; two moments of embedding and head"
        ),
        _term("gathered layers", 2 * 2 * (held + dense), 1, "two layers in bfloat16: one at work, one on its way"),
        _term("gathered gradients", (2 + 4) * (held + dense), 1, "of one layer, in bfloat16 and as float32 to reduce"),
        _term("embedding and head", (2 + 2 + 4) * ends, 1, "bfloat16 through the pass; gradients, float32 to reduce"),
        _term("layer inputs", 2 * shape.num_layers * tokens * hidden, 1, "bfloat16; the rest is recomputed"),
        _term("inside one layer", 2 * inside, 1, "each token's rows on their way, at the experts, and back; heads"),
        _term("logits", (2 + 4 + 4) * tokens * shape.vocab_size, 1, "bfloat16, float32, and their gradient"),
    )


def training_step(shape: ModelShape, layout: TrainingLayout, hardware: Hardware) -> StepTime:
    """By the peaks of `hardware` and what is assumed to be reached of them; matrices in bfloat16."""
    device, gain = hardware.device, hardware.efficiency
    flops_per_s = device.bf16_flops_per_s * gain.flops_fraction

    def seconds(size: float, ranks: int, in_node: bool) -> float:
        """Bytes that a rank would move if it had to reach all of a group alike."""
        link = device.link_bytes_per_s if in_node else device.network_bytes_per_s
        return 0.0 if ranks == 1 else size * (ranks - 1) / ranks / (link * gain.link_fraction)

    context = layout.sequence_tokens / 2
    attention = shape.attention.prefill_flops_per_context_token() * shape.num_layers * context
    per_token = FORWARDS * (shape.linear_flops_per_token + attention) + 3 * shape.head_flops
    experts, dense = _layer_parameters(shape)
    ends = shape.vocab_size * shape.hidden_size * 2
    one_node = layout.num_ranks <= device.devices_per_node
    gathered = 2 + 2 + 4  # bytes a parameter: forward, backward, gradients
    gather_s = seconds(gathered * dense * shape.num_layers + (2 + 4) * ends, layout.num_ranks, one_node)
    held = gathered * experts // layout.expert_parallel * shape.num_moe_layers
    gather_s += seconds(held, layout.replicas, one_node)
    rows = 2 * layout.pass_tokens * shape.num_experts_per_token * shape.hidden_size  # bytes
    within = layout.expert_parallel <= device.devices_per_node
    exchange_s = seconds(3 * 2 * rows * shape.num_moe_layers, layout.expert_parallel, within)
    matrices = [t for t in shape.tensors() if t.is_matrix and t.kind not in (Kind.EMBEDDING, Kind.LM_HEAD)]
    orthogonal = sum(t.count * _newton_schulz_flops(t.rows, t.cols) for t in matrices)
    travelling = sum(t.parameters for t in matrices if t.kind is not Kind.ROUTED_EXPERTS) / layout.num_ranks
    return StepTime(
        arithmetic_s=layout.passes * layout.pass_tokens * per_token / flops_per_s,
        gather_s=layout.passes * gather_s,
        exchange_s=layout.passes * exchange_s,
        newton_schulz_s=orthogonal / layout.num_ranks / flops_per_s
        + seconds(2 * 2 * travelling, layout.num_ranks, one_node),
    )


def _newton_schulz_flops(rows: int, columns: int) -> int:
    """Of one matrix: the Gram matrix, its square, and the product with the matrix, in every step."""
    small, large = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * small * small * large + 2 * small**3)


def _layer_parameters(shape: ModelShape) -> tuple[int, int]:
    """(all routed experts, everything else) of a layer with experts, or of a dense one where there are none."""
    experts = shape.num_experts * shape.parameters_per_expert if shape.num_moe_layers else 0
    kinds = shape.parameters_by_kind()
    outside = (Kind.EMBEDDING, Kind.LM_HEAD, Kind.ROUTED_EXPERTS)
    return experts, ceil(sum(count for kind, count in kinds.items() if kind not in outside) / shape.num_layers)


def _term(name: str, size: int, parts: int, formula: str) -> MemoryTerm:
    return MemoryTerm(name=name, bytes=ceil(size / parts), formula=formula)
