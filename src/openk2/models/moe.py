"""Mixture of experts: router, routed experts, shared expert (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from openk2 import ops
from openk2.config import ModelConfig
from openk2.models.forward_batch import ForwardBatch
from openk2.models.layers import MLP


class MoEGate(nn.Module):
    """The router. Its correction bias is float32 in every precision: rounding it changes which experts are chosen."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias: nn.Parameter | None = None
        if config.topk_method == "noaux_tc":
            bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
            self.e_score_correction_bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor, batch: ForwardBatch, topk_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Each token's experts (T, K), unless given, and their weights, float32."""
        c = self.config
        return ops.route(
            ops.linear(x.float(), self.weight.float(), per_row=batch.per_row),
            self.e_score_correction_bias,
            topk=c.num_experts_per_tok,
            scoring_func=c.scoring_func,
            topk_method=c.topk_method,
            n_group=c.n_group,
            topk_group=c.topk_group,
            norm_topk_prob=c.norm_topk_prob,
            routed_scaling_factor=c.routed_scaling_factor,
            budgets=batch.budgets,
            topk_ids=topk_ids,
        )

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        bias = self.e_score_correction_bias
        exact = None if bias is None else bias.data
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if exact is not None and moved is not None and moved.dtype != torch.float32:
            moved.data = exact.to(moved.device)  # the cast has rounded it: take the value from before
        return self


class RoutedExperts(nn.Module):
    """All routed experts of a layer, stacked: one product a projection instead of one an expert.

    The checkpoint names each expert's matrices; `checkpoint_tensors` gives those names to views of the stacks.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        self.width = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.n_routed_experts, 2 * self.width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size, self.width))

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for expert in range(self.gate_up_proj.shape[0]):
            yield f"{expert}.gate_proj.weight", self.gate_up_proj.data[expert, : self.width]
            yield f"{expert}.up_proj.weight", self.gate_up_proj.data[expert, self.width :]
            yield f"{expert}.down_proj.weight", self.down_proj.data[expert]

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, batch: ForwardBatch) -> Tensor:
        gate_up, down = self.gate_up_proj, self.down_proj
        return ops.moe_experts(x, topk_ids, topk_weights, gate_up, down, per_row=batch.per_row)


class MoE(nn.Module):
    """y = sum of the chosen experts, weighted, plus the shared expert, unweighted."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gate = MoEGate(config)
        self.experts = RoutedExperts(config)
        self.shared_experts: MLP | None = None
        if config.n_shared_experts:
            self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        given = None if batch.topk_ids is None else batch.topk_ids[self.layer]
        topk_ids, topk_weights = self.gate(x, batch, given)
        if batch.taken is not None:
            batch.taken[self.layer] = (topk_weights != 0).sum(-1)
        if batch.chosen_ids is not None:
            batch.chosen_ids[self.layer] = topk_ids
        if batch.expert_load is not None:
            ones = torch.ones(topk_ids.numel(), device=x.device)
            batch.expert_load[self.layer].scatter_add_(0, topk_ids.flatten(), ones)
        y = self.experts(x, topk_ids, topk_weights, batch)
        return y if self.shared_experts is None else y + self.shared_experts(x, batch)
