"""A model whose large matrices are packed: for serving on a CPU.

`pack_modules` puts these modules in the place of a model's own before its weights are loaded. Each takes the
checkpoint's tensors one by one (`sinks`) and keeps them in the packed layout only. The embedding, the norms, the router
and kv_b_proj, of which attention takes halves, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from openk2 import ops
from openk2.errors import ConfigError
from openk2.models.forward_batch import ForwardBatch
from openk2.models.k2 import K2Model
from openk2.models.layers import MLP, Linear
from openk2.models.moe import RoutedExperts
from openk2.ops.packed import FORMATS, Format, PackedLayout, PackedStack
from openk2.quant import pack_into

Sink = Callable[[Tensor], None]
"""Takes one tensor of a checkpoint."""


@dataclass(frozen=True)
class Quantization:
    """The format of each part of a model. "bf16" packs without quantising."""

    attention: Format
    experts: Format
    """Routed and shared experts, and the dense layers' MLP."""
    head: Format

    @classmethod
    def parse(cls, text: str) -> Quantization:
        """`int4`, or parts by name: `int4,head=int8`. Raises ConfigError that lists the choices."""
        parts: dict[str, str] = {}
        for item in text.lower().replace(" ", "").split(","):
            name, _, format = item.rpartition("=")
            names = [field.name for field in fields(cls)]
            if format not in FORMATS or name not in ("", *names):
                raise ConfigError(
                    f"quantization {text!r}: must be one of {', '.join(FORMATS)}, and may name parts "
                    f"({', '.join(names)}) as in int4,head=int8",
                    param="quantization",
                )
            parts |= {name: format} if name else dict.fromkeys(names, format)
        try:
            return cls(**parts)  # type: ignore[arg-type]
        except TypeError:
            raise ConfigError(
                f"quantization {text!r}: say first what holds for the parts that are not named, as in int4,{text}",
                param="quantization",
            ) from None

    @staticmethod
    def has_kernels() -> bool:
        """Whether this installation has the native kernels; without them packing only saves memory."""
        return ops.cpu.available()

    @property
    def code(self) -> str:
        """One word for these formats: `int4`, or `int4-int4-int8` where they differ."""
        formats = [getattr(self, field.name) for field in fields(self)]
        return formats[0] if len(set(formats)) == 1 else "-".join(formats)


class _Packed(nn.Module):
    """Holds packed stacks as buffers; they are empty until every sink has been given its tensor."""

    layouts: dict[str, PackedLayout]

    def _add(self, name: str, layout: PackedLayout) -> None:
        self.layouts = {**getattr(self, "layouts", {}), name: layout}
        self.register_buffer(name, torch.empty(layout.shape, dtype=torch.uint8))

    def stack(self, name: str) -> PackedStack:
        return PackedStack(self.layouts[name], self.get_buffer(name))

    def stacks(self) -> Iterator[tuple[str, PackedStack]]:
        for name in self.layouts:
            yield name, self.stack(name)

    def _sink(self, name: str, index: int) -> Sink:
        return lambda tensor: pack_into(self.stack(name), index, tensor)


class PackedLinear(_Packed):
    """As `Linear`. It has no `weight`: nobody may read one beside it."""

    def __init__(self, format: Format, rows: int, cols: int) -> None:
        super().__init__()
        self._add("packed", PackedLayout(format, 1, rows, cols))

    def sinks(self) -> Iterator[tuple[str, Sink]]:
        yield "weight", self._sink("packed", 0)

    def forward(self, x: Tensor, per_row: bool = False) -> Tensor:
        return ops.packed_linear(x, self.stack("packed"))


class _PackedExpertStacks(_Packed):
    def __init__(self, format: Format, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self._add("gate_up", PackedLayout(format, 2 * experts, width, hidden))
        self._add("down", PackedLayout(format, experts, hidden, width))

    def _run(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return ops.packed_experts(x, ids, weights, self.stack("gate_up"), self.stack("down"))

    def _expert_sinks(self, expert: int) -> Iterator[tuple[str, Sink]]:
        yield "gate_proj.weight", self._sink("gate_up", 2 * expert)
        yield "up_proj.weight", self._sink("gate_up", 2 * expert + 1)
        yield "down_proj.weight", self._sink("down", expert)


class PackedExperts(_PackedExpertStacks):
    """As `RoutedExperts`."""

    def sinks(self) -> Iterator[tuple[str, Sink]]:
        for expert in range(self.layouts["down"].count):
            for name, sink in self._expert_sinks(expert):
                yield f"{expert}.{name}", sink

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, batch: ForwardBatch) -> Tensor:
        return self._run(x, topk_ids, topk_weights)


class PackedMLP(_PackedExpertStacks):
    """As `MLP`: one expert, which every token chooses with weight 1."""

    def sinks(self) -> Iterator[tuple[str, Sink]]:
        yield from self._expert_sinks(0)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        rows = x.shape[0]
        return self._run(x, x.new_zeros(rows, 1, dtype=torch.int64), x.new_ones(rows, 1, dtype=torch.float32))


def pack_modules(model: K2Model, quantization: Quantization) -> None:
    """Replace the modules of `model`, which is on the meta device; `to_empty` then gives the packed ones memory."""
    for layer in model.decoder_layers:
        attention = layer.self_attn
        for name in ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"):
            if hasattr(attention, name):
                setattr(attention, name, _packed_linear(getattr(attention, name), quantization.attention))
        mlp = layer.mlp
        if isinstance(mlp, MLP):
            layer.mlp = _packed_mlp(mlp, quantization.experts)  # type: ignore[assignment]
            continue
        mlp.experts = _packed_experts(mlp.experts, quantization.experts)  # type: ignore[assignment]
        if mlp.shared_experts is not None:
            mlp.shared_experts = _packed_mlp(mlp.shared_experts, quantization.experts)  # type: ignore[assignment]
    model.lm_head = _packed_linear(model.lm_head, quantization.head)  # type: ignore[assignment]


def plain_sinks(model: K2Model) -> dict[str, Sink]:
    """What takes each tensor of a checkpoint that stays as it is, by its published name."""
    return {name: _copy_sink(tensor) for name, tensor in model.checkpoint_tensors()}


def packing_sinks(model: K2Model) -> dict[str, Sink]:
    """What takes each tensor that is packed, by its published name; empty for a model that is not."""
    found: dict[str, Sink] = {}
    for owner, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedExperts | PackedMLP):
            found |= {f"{owner}.{suffix}": sink for suffix, sink in module.sinks()}
    return found


def _copy_sink(target: Tensor) -> Sink:
    def copy(tensor: Tensor) -> None:
        target.copy_(tensor)

    return copy


def packed_stacks(model: K2Model) -> Iterator[tuple[str, PackedStack]]:
    """Every packed stack of the model, by its module's name and its own."""
    for owner, module in model.named_modules():
        if isinstance(module, _Packed):
            for name, stack in module.stacks():
                yield f"{owner}.{name}", stack


def put_stacks(model: K2Model, data: dict[str, Tensor]) -> None:
    """Take the bytes of the stacks, named as in `packed_stacks`, in place of the model's own."""
    for name, stack_bytes in data.items():
        owner, _, buffer = name.rpartition(".")
        setattr(model.get_submodule(owner), buffer, stack_bytes)


def _packed_linear(linear: Linear, format: Format) -> PackedLinear:
    with torch.device("meta"):
        return PackedLinear(format, *linear.weight.shape)


def _packed_mlp(mlp: MLP, format: Format) -> PackedMLP:
    with torch.device("meta"):
        return PackedMLP(format, 1, *mlp.gate_proj.weight.shape)


def _packed_experts(experts: RoutedExperts, format: Format) -> PackedExperts:
    count, _, hidden = experts.gate_up_proj.shape
    with torch.device("meta"):
        return PackedExperts(format, count, experts.width, hidden)
