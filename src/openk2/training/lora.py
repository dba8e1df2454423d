"""Low-rank adapters: a frozen matrix plus a trained product of two thin ones (LoRA, Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openk2 import ops
from openk2.errors import ConfigError
from openk2.models import K2Model
from openk2.models.layers import Linear

DEFAULT_TARGETS = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
"""The attention's matrices; a model has those of them that its kind of query needs."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train adapters only; the model of `init` stays as it is, its router's balance included."""

    rank: int
    alpha: float
    """The product is scaled by alpha / rank."""
    targets: tuple[str, ...] = DEFAULT_TARGETS
    """Names of the matrices that get one, in every layer; routed experts and embeddings cannot."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(
                f"lora.rank and lora.alpha must be above 0, not {self.rank} and {self.alpha:g}", param="lora.rank"
            )
        if not isinstance(self.targets, tuple) or not self.targets:
            raise ConfigError('lora.targets is a list such as ["q_b_proj", "o_proj"]', param="lora.targets")


class LoraLinear(nn.Module):
    """x W^T + scale (x A^T) B^T; W (out, in) is frozen, A (rank, in) and B (out, rank) are trained."""

    def __init__(self, base: Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight, self.scale = base.weight, scale
        out_features, in_features = base.weight.shape
        self.lora_A, self.lora_B = Linear(in_features, rank), Linear(rank, out_features)
        with torch.no_grad():  # B of zeros: the first step starts from the model itself
            self.lora_A.weight.uniform_(-1, 1, generator=generator).mul_(in_features**-0.5)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor, per_row: bool = False) -> Tensor:
        added = self.lora_B(self.lora_A(x, per_row), per_row)
        return ops.linear(x, self.weight, per_row=per_row) + self.scale * added

    @torch.no_grad()
    def product(self) -> Tensor:
        """scale B A, float32: what is added to W."""
        return self.scale * (self.lora_B.weight.float() @ self.lora_A.weight.float())


def add_adapters_(model: K2Model, config: LoraConfig, seed: int) -> None:
    """Freeze `model` and give its target matrices adapters, on the CPU and in float32.

    Raises ConfigError for a target that the model does not have.
    """
    model.requires_grad_(False)
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    known = {name.rpartition(".")[2] for name in matrices}
    asked = set(config.targets) & known if config.targets == DEFAULT_TARGETS else set(config.targets)
    if asked - known:
        raise ConfigError(
            f"lora.targets: the model has no matrix {sorted(asked - known)[0]!r}; it has {', '.join(sorted(known))}",
            param="lora.targets",
        )
    generator = torch.Generator().manual_seed(seed)
    for name, base in matrices.items():
        owner, _, leaf = name.rpartition(".")
        if leaf in asked:
            adapter = LoraLinear(base, config.rank, config.alpha / config.rank, generator)
            setattr(model.get_submodule(owner), leaf, adapter)


def adapters(model: K2Model) -> Iterator[tuple[str, LoraLinear]]:
    """(name of the matrix, its adapter)."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


@torch.no_grad()
def merge_adapters_(model: K2Model) -> None:
    """Add every adapter to its matrix; what is left is a plain model."""
    for name, adapter in list(adapters(model)):
        owner, _, leaf = name.rpartition(".")
        merged = Linear(adapter.weight.shape[1], adapter.weight.shape[0])
        merged.weight = adapter.weight
        merged.weight.copy_((merged.weight.float() + adapter.product()).to(merged.weight.dtype))
        setattr(model.get_submodule(owner), leaf, merged)
