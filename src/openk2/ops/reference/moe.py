"""Mixture of experts: the router's choice and the experts' weighted sum.

Letters: T tokens, D hidden size, E routed experts, K experts per token, F expert width, G groups.
Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2 (noaux_tc); DeepSeek-V2, arXiv:2405.04434 (softmax routing).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as nn_functional
from torch import Tensor


@dataclass(frozen=True)
class ExpertBudgets:
    """How many of its K experts each token takes: the fewest, from `least` to `most`, whose weights have the share
    `mass` of those of all K."""

    least_T: Tensor
    """int64, at least 1."""
    most_T: Tensor
    """int64, from `least_T` to K."""
    mass_T: Tensor
    """float64, 0 to 1."""

    def part(self, tokens: slice) -> ExpertBudgets:
        return ExpertBudgets(self.least_T[tokens], self.most_T[tokens], self.mass_T[tokens])

    def counts(self, weights_TK: Tensor) -> Tensor:
        """(T,) int64. Sums are of float64, in the experts' order."""
        sums = weights_TK.double().cumsum(-1)
        count = (~(sums >= self.mass_T[:, None] * sums[:, -1:])).sum(-1) + 1
        return torch.minimum(torch.maximum(count, self.least_T), self.most_T)


def route(
    logits_TE: Tensor,
    correction_bias_E: Tensor | None,
    *,
    topk: int,
    scoring_func: str,
    topk_method: str,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    budgets: ExpertBudgets | None = None,
    topk_ids: Tensor | None = None,
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> tuple[Tensor, Tensor]:
    """Choose each token's experts: ids (T, K) int64 and weights (T, K) float32, strongest first.

    `correction_bias_E` moves the choice, never the weight. `budgets` cut a token's list short: the weights past its
    budget are 0 and the rest are scaled up so that the root of their squared sum, to which the routed output's RMS is
    proportional for independent experts, stays that of the full list (docs/modes.md compares the rules). `topk_ids`
    (T, K), where given, are the choice.
    """
    logits_TE = logits_TE.float()
    scores = sigmoid(logits_TE) if scoring_func == "sigmoid" else logits_TE.softmax(-1)
    if topk_ids is None:
        choice = scores if correction_bias_E is None else scores + correction_bias_E
        if n_group > 1 and topk_method != "greedy":
            grouped = choice.unflatten(-1, (n_group, -1))
            group_score = grouped.topk(2, -1).values.sum(-1) if topk_method == "noaux_tc" else grouped.amax(-1)
            kept = torch.zeros_like(group_score, dtype=torch.bool)
            kept.scatter_(1, group_score.topk(topk_group, -1).indices, True)
            choice = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(1)
        topk_ids = choice.topk(topk, -1).indices
    weights = scores.gather(1, topk_ids)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    weights = weights * routed_scaling_factor
    if budgets is not None:
        inside = torch.arange(topk, device=weights.device) < budgets.counts(weights)[:, None]
        cut = weights * inside
        full, kept = weights.square().sum(-1, keepdim=True), cut.square().sum(-1, keepdim=True)
        weights = torch.where(inside.all(-1, keepdim=True), weights, cut * (full / kept).sqrt())
    return topk_ids, weights


def moe_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Weighted sum of the chosen experts' SwiGLU: (T, D).

    gate_up_proj: (E, 2F, D), gate rows first; down_proj: (E, D, F). Every expert sees every token here, which is the
    plainest definition; the tokens that did not choose it weigh 0.
    """
    weights_TE = x_TD.new_zeros(x_TD.shape[0], gate_up_proj.shape[0])
    weights_TE = weights_TE.scatter(1, topk_ids, topk_weights.to(x_TD.dtype))
    out = torch.zeros_like(x_TD)
    for expert in range(gate_up_proj.shape[0]):
        out = out + swiglu(x_TD, gate_up_proj[expert], down_proj[expert]) * weights_TE[:, expert, None]
    return out


def swiglu(x: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """down(silu(gate x) * up x); gate_up_proj (2F, D), down_proj (D, F)."""
    gate, up = nn_functional.linear(x, gate_up_proj).chunk(2, -1)
    return nn_functional.linear(silu_mul(gate, up), down_proj)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise; silu is rounded to gate's dtype before the product."""
    return nn_functional.silu(gate) * up
