"""What test_parallel.py runs in several processes: functions that a fresh interpreter can import."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.training.conftest import numbered
from torch import Tensor

from openk2.chat.template import ChatTemplate
from openk2.config import ModelConfig
from openk2.models import ForwardBatch
from openk2.models.moe import MoEGate, RoutedExperts
from openk2.tokenizer import Tokenizer
from openk2.training.bpe import byte_order
from openk2.training.parallel import ALONE, Ranks
from openk2.training.parallel.experts import ParallelExperts
from openk2.training.recipe import Recipe
from openk2.training.source import BatchSource
from openk2.training.trainer import Trainer


def run_ranks(size: int, work: Callable[..., Any], folder: Path, *given: Any) -> list[Any]:
    """`work(folder, *given)` in `size` processes joined by gloo: what each returned."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_rank, (size, work, folder, given), nprocs=size, start_method="spawn")
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(rank: int, size: int, work: Callable[..., Any], folder: Path, given: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
    torch.save(work(folder, *given), folder / f"returned-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def make_trainer(recipe: Recipe, folder: Path, ranks: Ranks = ALONE) -> Trainer:
    template = ChatTemplate(Tokenizer({token: rank for rank, token in enumerate(byte_order())}))
    source = BatchSource(template, numbered, seed=recipe.seed, max_length=4096)
    return Trainer(recipe, source, folder, ranks=ranks)


def all_ranks(recipe: Recipe) -> Ranks:
    return Ranks.of_group("cpu", recipe.parallel.expert_parallel)


def whole(trainer: Trainer, of: Callable[[torch.nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
    """A tensor of each parameter's shape, put together where it is sharded (values on the first rank)."""
    found: dict[str, Tensor] = {}
    for name, parameter in trainer.model.named_parameters():
        value = of(parameter)
        if value is not None:
            gather = trainer.sharded._gather if trainer.sharded else lambda _, tensor: tensor
            found[name] = gather(name, value.detach()).clone()
    return found


@dataclass
class Step:
    """What one step did, put together over the ranks."""

    record: dict[str, Any]
    gradients: dict[str, Tensor]
    """As the optimizer was given them, clipped."""
    updates: dict[str, Tensor]
    """What the optimizer adds to weights of zero: float32 would round it away beside the weights themselves."""
    weights: dict[str, Tensor]


def observed_step(trainer: Trainer) -> Step:
    seen: list[dict[str, Tensor]] = []
    optimizer, step = trainer.optimizer, trainer.optimizer.step

    def watched() -> None:
        seen.append(whole(trainer, lambda p: p.grad))
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        state = copy.deepcopy(optimizer.state_dict())
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()
        step()
        seen.append(whole(trainer, lambda p: p))
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                parameter.copy_(weights[name])
        optimizer.load_state_dict(state)
        step()

    optimizer.step = watched  # type: ignore[method-assign, assignment]
    record = trainer.train_step()
    optimizer.step = step  # type: ignore[method-assign]
    return Step(record, *seen, whole(trainer, lambda p: p))


def distances(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """The norm of the difference over the norm: of all tensors as one vector, and of the worst tensor."""
    assert ours.keys() == theirs.keys()
    away = {name: float((ours[name] - their).norm()) for name, their in theirs.items()}
    size = {name: float(their.norm()) for name, their in theirs.items()}
    assert all(away[name] == 0 for name in size if size[name] == 0)
    return math.hypot(*away.values()) / math.hypot(*size.values()), max(away[n] / size[n] for n in size if size[n] > 0)


def compare_at_points(folder: Path, recipe: Recipe, points: int, between: int) -> list[dict[str, Any]]:
    """One process trains; every `between` steps the ranks do its next step from its state too."""
    ranks = all_ranks(recipe)
    alone = make_trainer(recipe, folder / f"alone-{ranks.index}")
    together = make_trainer(recipe, alone.folder, ranks)
    found = []
    for _ in range(points):
        for _ in range(between):
            alone.train_step()
        alone.save()
        assert together.resume()
        theirs, ours = observed_step(alone), observed_step(together)
        if ranks.index == 0:
            found.append(
                {
                    "ours": ours.record,
                    "theirs": theirs.record,
                    **{k: distances(getattr(ours, k), getattr(theirs, k)) for k in ("gradients", "updates", "weights")},
                }
            )
    return found


@contextmanager
def router(recipe: Recipe, choices: list[Tensor], ranks: Ranks | None) -> Iterator[None]:
    """Record what the router chooses in one process (`ranks` None), or make the ranks choose the same."""
    plain, calls = MoEGate.forward, 0
    layers = sum(recipe.model.is_moe_layer(layer) for layer in range(recipe.model.num_hidden_layers))

    def forward(gate: MoEGate, x: Tensor, batch: ForwardBatch, given: Tensor | None) -> tuple[Tensor, Tensor]:
        nonlocal calls
        if ranks is None:
            ids, weights = plain(gate, x, batch)
            choices.append(ids)
            return ids, weights
        own, layer = divmod(calls, layers)
        calls += 1
        return plain(gate, x, batch, choices[(own * ranks.size + ranks.index) * layers + layer])

    MoEGate.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        MoEGate.forward = plain  # type: ignore[method-assign]


def losses_with_replayed_choices(folder: Path, recipe: Recipe, steps: int) -> tuple[list[float], list[float]]:
    """Of one process, and of the ranks whose router chooses what it chose there."""
    ranks = all_ranks(recipe)
    choices: list[Tensor] = []
    alone = make_trainer(recipe, folder / f"alone-{ranks.index}")
    with router(recipe, choices, None):
        theirs = [alone.train_step()["loss"] for _ in range(steps)]
    together = make_trainer(recipe, folder / "together", ranks)
    with router(recipe, choices, ranks):
        ours = [together.train_step()["loss"] for _ in range(steps)]
    return ours, theirs


def cut_and_whole(folder: Path, recipe: Recipe, steps: int, cut: int) -> None:
    """Leaves the states of a run of `steps`, in `whole`, and of one cut after `cut` and resumed, in `cut`."""
    ranks = all_ranks(recipe)
    first = make_trainer(recipe, folder / "cut", ranks)
    uncut = make_trainer(recipe, folder / "whole", ranks)
    for step in range(steps):
        uncut.train_step()
        if step < cut:
            first.train_step()
    uncut.save()
    first.save()
    dist.barrier()
    second = make_trainer(recipe, folder / "cut", ranks)
    assert second.resume()
    for _ in range(cut, steps):
        second.train_step()
    second.save()


def save_again(folder: Path, recipe: Recipe, source: Path) -> None:
    """Resume from the state in `source` and write it to `again`."""
    ranks = all_ranks(recipe)
    trainer = make_trainer(recipe, source, ranks)
    assert trainer.resume()
    trainer.folder = folder / "again"
    trainer.folder.mkdir(exist_ok=True)
    trainer.save()


def records(folder: Path, recipe: Recipe, steps: int) -> list[dict[str, Any]]:
    """Of a run of the ranks."""
    trainer = make_trainer(recipe, folder / "run", all_ranks(recipe))
    return [trainer.train_step() for _ in range(steps)]


def experts_with_idle_ranks(folder: Path, config: ModelConfig) -> list[float]:
    """A layer's experts spread over the ranks while every token chooses the first rank's: how far output and gradients
    are from those of one process, with and without a gradient."""
    ranks = Ranks.of_group("cpu", dist.get_world_size())
    assert ranks.experts is not None
    generator = torch.Generator().manual_seed(0)
    alone = RoutedExperts(config)
    for parameter in alone.parameters():
        parameter.data.normal_(generator=generator).mul_(parameter.shape[-1] ** -0.5)
    spread = ParallelExperts(alone, ranks.experts)
    tokens = torch.randn(12, config.hidden_size, generator=generator)
    ids = torch.tensor([[0, 1], [1, 0]] * 6)
    weights = torch.rand(12, 2, generator=generator)
    batch, found = ForwardBatch.packed([12]), []
    outputs, gradients = [], []
    for experts in (alone, spread):
        x, w = tokens.clone().requires_grad_(), weights.clone().requires_grad_()
        out = experts(x, ids, w, batch)
        out.square().sum().backward()
        with torch.no_grad():
            found.append(float((experts(x, ids, w, batch) - out).abs().max()))
        outputs.append(out)
        gradients.append([x.grad, w.grad, *(p.grad for p in experts.parameters())])
    found.append(float((outputs[0] - outputs[1]).abs().max()))
    for mine, whole_grad in zip(gradients[1], gradients[0], strict=True):
        theirs = whole_grad if mine.shape == whole_grad.shape else whole_grad[spread.mine] * ranks.size
        found.append(float((mine - theirs).abs().max() / whole_grad.abs().max()))
    return found
