"""Load balancing without a loss term: the router's correction bias follows the load.

Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2; the centred form is Moonlight's, arXiv:2502.16982.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.models import K2Model
from openk2.models.moe import MoE


@torch.no_grad()
def update_router_bias_(model: K2Model, expert_load: Tensor, rate: float) -> None:
    """Raise the bias of experts that got too few tokens, lower that of experts that got too many.

    expert_load: (layers, experts), tokens that chose each expert in this step. The step is proportional to the relative
    error and bounded by `rate`; at nano scale the published sign step balances far too slowly. The bias stays centred.
    """
    for index, layer in enumerate(model.decoder_layers):
        mlp = layer.mlp
        if not isinstance(mlp, MoE) or mlp.gate.e_score_correction_bias is None:
            continue
        load = expert_load[index]
        mean = load.mean().clamp_min(1e-6)
        bias = mlp.gate.e_score_correction_bias
        bias.add_(rate * ((mean - load) / mean).clamp(-1, 1))
        bias.sub_(bias.mean())


def imbalance(model: K2Model, expert_load: Tensor) -> float:
    """Load of the fullest expert over the mean, the worst of all layers: 1 is perfect."""
    rows = [i for i in range(expert_load.shape[0]) if model.config.is_moe_layer(i)]
    load = expert_load[rows]
    return float((load.amax(1) / load.mean(1).clamp_min(1e-6)).max())
