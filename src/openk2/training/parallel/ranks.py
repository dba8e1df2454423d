"""The processes of a run: who they are, what they add up, what only the first does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openk2.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from openk2.training.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, as this one sees them.

    All of them share the batches and each layer's dense part; `experts` is the group over which a layer's experts are
    spread, neighbours in rank; `replicas` are the ranks that have the same experts to share.
    """

    device: str = "cpu"
    index: int = 0
    size: int = 1
    everyone: DeviceMesh | None = None
    experts: DeviceMesh | None = None
    replicas: DeviceMesh | None = None
    """Meshes of one axis; None in one process."""

    @classmethod
    def of_group(cls, device: str, expert_parallel: int) -> Ranks:
        """All processes of the default group, which has been initialised.

        Raises ConfigError when `expert_parallel` does not divide them.
        """
        from torch.distributed.device_mesh import init_device_mesh

        size = dist.get_world_size()
        if size % expert_parallel:
            raise ConfigError(
                f"parallel.expert_parallel {expert_parallel} does not divide {size} processes",
                param="parallel.expert_parallel",
            )
        kind = torch.device(device).type
        everyone = init_device_mesh(kind, (size,))
        grid = init_device_mesh(kind, (size // expert_parallel, expert_parallel), mesh_dim_names=("replica", "expert"))
        return cls(device, dist.get_rank(), size, everyone, grid["expert"], grid["replica"])

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of what all ranks list alike."""
        return items[self.index :: self.size]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The largest of the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def any(self, flag: bool) -> bool:
        """Does it hold on any rank? All ranks get one answer."""
        return flag if self.size == 1 else bool(self.max_(torch.tensor(float(flag), device=self.device)))

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank runs the block before all others: what it writes, they find."""
        if self.index > 0:
            dist.barrier()
        yield
        if self.index == 0 and self.size > 1:
            dist.barrier()

    def check(self, recipe: Recipe) -> None:
        """Raises ConfigError for a recipe that so many processes cannot share."""
        if self.size == 1:
            return
        if recipe.lora is not None:
            raise ConfigError("[lora] trains in one process: start it without torchrun", param="lora")
        if recipe.rl is not None:
            raise ConfigError("[rl] trains in one process: start it without torchrun", param="rl")
        if recipe.accumulate % self.size:
            raise ConfigError(
                f"accumulate {recipe.accumulate} is no multiple of the {self.size} processes that share the batches of "
                "a step",
                param="accumulate",
            )
        degree, experts = recipe.parallel.expert_parallel, recipe.model.n_routed_experts or 1
        if experts % degree:
            raise ConfigError(
                f"parallel.expert_parallel {degree} does not divide the {experts} experts of a layer",
                param="parallel.expert_parallel",
            )


ALONE = Ranks()


@contextmanager
def joined(device: str, expert_parallel: int) -> Iterator[Ranks]:
    """The ranks that torchrun started, for as long as the block lasts; without torchrun, this process alone.

    NCCL connects GPUs, each rank on the one of its local rank; gloo connects processors.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched():
        yield Ranks(device)
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=torch.device(device))
    else:
        dist.init_process_group("gloo")
    try:
        yield Ranks.of_group(device, expert_parallel)
    finally:
        dist.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory; a plain tensor is its own."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def my_rows(rows: int, size: int, index: int) -> slice:
    """Those of `rows` that FSDP2 gives rank `index` of `size`: equal runs, the last ones shorter or empty."""
    run = -(-rows // size)
    return slice(min(index * run, rows), min((index + 1) * run, rows))


def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float, ranks: Ranks) -> Tensor:
    """As torch's, by the norm over all ranks, each of which holds other elements. Returns the norm before."""
    if ranks.size == 1:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    norm = ranks.sum_(torch.nn.utils.get_total_norm(gradients).square()).sqrt()
    for gradient in gradients:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
