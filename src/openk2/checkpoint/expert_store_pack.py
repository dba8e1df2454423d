"""From a checkpoint, or from nothing, to the file of a model's experts; and from that file to their store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from openk2.checkpoint.expert_store import ExpertStore
from openk2.checkpoint.expert_store_file import DOWN, GATE, UP, ExpertFile, ExpertShape, ExpertWriter, write_experts
from openk2.errors import CheckpointError, ConfigError
from openk2.models import K2Model
from openk2.models.packed import Sink
from openk2.models.packed_stored import StoredExperts, give_slots, stored_experts
from openk2.quant import PackedLayout, empty_stack, pack_into, random_stack

PARTS = {GATE: "gate_proj", UP: "up_proj", DOWN: "down_proj"}


def expert_shape(model: K2Model) -> ExpertShape:
    """Of a model whose experts are stored. Raises ConfigError for one that has none."""
    found = stored_experts(model)
    if not found:
        raise ConfigError("this model has no routed experts that could stay on disk", param="memory")
    down = found[0].layouts["down"]
    return ExpertShape(down.format, len(found), down.count, down.cols, down.rows)


def attach_store(
    model: K2Model, path: Path, source: str, cache_bytes: int, fill: Callable[[ExpertWriter], None]
) -> None:
    """Give a model its experts from the file at `path`, which `fill` makes unless it is there and whole."""
    shape = expert_shape(model)
    try:
        file = ExpertFile(path, source, shape)
    except CheckpointError:
        with write_experts(path, source, shape) as writer:
            fill(writer)
        file = ExpertFile(path, source, shape)
    give_slots(model, ExpertStore(file, cache_bytes, model.config.num_experts_per_tok))


def expert_sinks(model: K2Model, writer: ExpertWriter) -> dict[str, Sink]:
    """What takes each expert's matrices of a checkpoint, by their published names."""
    shape, found = expert_shape(model), {}
    for owner, module in model.named_modules():
        if isinstance(module, StoredExperts):
            for expert in range(shape.experts):
                index = module.layer * shape.experts + expert
                for part, name in PARTS.items():
                    found[f"{owner}.{expert}.{name}.weight"] = _sink(writer, shape, index, part)
    return found


def _sink(writer: ExpertWriter, shape: ExpertShape, index: int, part: int) -> Sink:
    layout = shape.down(1) if part == DOWN else shape.gate_up(1)

    def sink(matrix: torch.Tensor) -> None:
        stack = empty_stack(layout)
        pack_into(stack, 0, matrix)
        writer.put(index, part, stack.data[0])

    return sink


def draw_experts(
    model: K2Model, name: str, layout: PackedLayout, std: float, generator: torch.Generator, writer: ExpertWriter
) -> None:
    """Random weights of one stack, named as in `packed_stacks`: those that `random_stack` draws for the whole of it."""
    owner, _, which = name.rpartition(".")
    module = model.get_submodule(owner)
    assert isinstance(module, StoredExperts), "experts that are stored"
    experts = expert_shape(model).experts
    for expert, parts in _records(which, experts):
        stack = empty_stack(PackedLayout(layout.format, len(parts), layout.rows, layout.cols))
        random_stack(stack, std, generator)
        for number, part in enumerate(parts):
            writer.put(module.layer * experts + expert, part, stack.data[number])


def _records(which: str, experts: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    for expert in range(experts):
        yield expert, (DOWN,) if which == "down" else (GATE, UP)
