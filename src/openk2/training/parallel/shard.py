"""A model sharded over ranks by FSDP2, and its state put together and taken apart again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from openk2.errors import CheckpointError
from openk2.models import K2Model
from openk2.models.moe import MoE
from openk2.training.parallel.experts import ParallelExperts
from openk2.training.parallel.ranks import Ranks, my_rows


class Sharded:
    """Shards `model` in place and moves it to the ranks' device.

    Each layer is one unit over all ranks, cut by rows, and each layer's experts another over their replicas, cut into
    whole experts; embedding, last norm and head are gathered for the whole pass. Gradients are added up, not averaged:
    every rank's loss is already weighed by its share of the step's tokens. The router's bias is on every rank.
    """

    def __init__(self, model: K2Model, ranks: Ranks, dtype: str) -> None:
        self.model, self.ranks = model, ranks
        assert ranks.everyone is not None and ranks.experts is not None and ranks.replicas is not None
        # the batch's observers are written to in place: FSDP must not cast, and so copy, what it is given
        policy = MixedPrecisionPolicy(getattr(torch, dtype), torch.float32, cast_forward_inputs=False)
        whole = {p for p in model.parameters() if not p.requires_grad}
        self.stacks: set[str] = set()
        """Names of the parameters of which this rank's expert group holds a part each."""
        for index, layer in enumerate(model.decoder_layers):
            if isinstance(layer.mlp, MoE):
                if ranks.experts.size() > 1:
                    layer.mlp.experts = ParallelExperts(layer.mlp.experts, ranks.experts)
                    owner = f"model.layers.{index}.mlp.experts"
                    self.stacks |= {f"{owner}.{name}" for name, _ in layer.mlp.experts.named_parameters()}
                fully_shard(layer.mlp.experts, mesh=ranks.replicas, mp_policy=policy)
            fully_shard(layer, mesh=ranks.everyone, mp_policy=policy, ignored_params=whole)
        fully_shard(model, mesh=ranks.everyone, mp_policy=policy, ignored_params=whole)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no factor
        model.to(ranks.device)

    def whole(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> tuple[dict, dict]:
        """The state that one process would have, on the first rank's host; the others get shapes (meta tensors).

        All ranks call it together. One tensor at a time is put together, so devices need room for the largest only.
        """
        names = _names(optimizer)
        state = {
            index: {k: self._gather(names[index], v) if isinstance(v, Tensor) else v for k, v in values.items()}
            for index, values in optimizer["state"].items()
        }
        weights = {name: self._gather(name, tensor) for name, tensor in weights.items()}
        return weights, {"state": state, "param_groups": optimizer["param_groups"]}

    def shares(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> tuple[dict, dict]:
        """This rank's parts of a whole state, for `load_state_dict`. Raises CheckpointError when names differ."""
        own, names = self.model.state_dict(), _names(optimizer)
        if own.keys() != weights.keys():
            odd = sorted(own.keys() ^ weights.keys())[0]
            raise CheckpointError(f"the state and the recipe's model differ in {odd}; choose another --output")
        state = {
            index: {k: self._take(own, names[index], v) if isinstance(v, Tensor) else v for k, v in values.items()}
            for index, values in optimizer["state"].items()
        }
        taken = {name: self._take(own, name, tensor) for name, tensor in weights.items()}
        return taken, {"state": state, "param_groups": optimizer["param_groups"]}

    def _gather(self, name: str, tensor: Tensor) -> Tensor:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if name in self.stacks:
            assert self.ranks.experts is not None
            parts = [torch.empty_like(full) for _ in range(self.ranks.experts.size())]
            dist.all_gather(parts, full.contiguous(), group=self.ranks.experts.get_group())
            full = torch.cat(parts)
        return full.to("cpu" if self.ranks.index == 0 else "meta")

    def _take(self, own: Mapping[str, Tensor], name: str, full: Tensor) -> Tensor:
        like = own[name]
        if name in self.stacks:
            experts = self.model.get_submodule(name.rpartition(".")[0])
            assert isinstance(experts, ParallelExperts)
            full = full[experts.mine]
        if not isinstance(like, DTensor):
            return full
        mesh = like.device_mesh
        part = full[my_rows(full.shape[0], mesh.size(), mesh.get_local_rank())].to(like.device, copy=True)
        return DTensor.from_local(part, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def _names(optimizer: Mapping[str, Any]) -> dict[int, str]:
    return {
        index: name
        for group in optimizer["param_groups"]
        for index, name in zip(group["params"], group["names"], strict=True)
    }
