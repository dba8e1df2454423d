"""Adapters on disk in the layout of the PEFT library: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openk2.config.whole_file import whole_file
from openk2.errors import CheckpointError, TrainingError
from openk2.models import K2Model
from openk2.training.lora import LoraConfig, adapters

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model."""


def save_adapter(model: K2Model, config: LoraConfig, base: str, folder: Path) -> None:
    """Write `model`'s adapters, float32; `base` is the checkpoint that they belong to.

    `target_modules` lists whole names, since a short `down_proj` would name routed experts too. Raises TrainingError
    when the files cannot be written; the configuration comes last, so that a folder with one is complete.
    """
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters(model):
        for factor, matrix in (("lora_A", adapter.lora_A), ("lora_B", adapter.lora_B)):
            tensors[f"{PREFIX}{name}.{factor}.weight"] = matrix.weight.detach().to("cpu", torch.float32).contiguous()
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [name for name, _ in adapters(model)],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / WEIGHTS_FILE) as aside:
            save_file(tensors, aside, metadata={"format": "pt"})
            aside.chmod(0o644)
        with whole_file(folder / CONFIG_FILE) as aside:
            aside.write_text(json.dumps(described, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write the adapter to {folder}: {error}") from None


def read_adapter(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """(A, B) by name of their matrix, and the scale of B A.

    Raises CheckpointError for what is no plain LoRA adapter.
    """
    path = folder / CONFIG_FILE
    try:
        described = json.loads(path.read_text())
        tensors = load_file(folder / WEIGHTS_FILE)
        rank, alpha = int(described["r"]), float(described["lora_alpha"])
        if rank < 1:
            raise ValueError(f"r is {rank}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no readable adapter ({type(error).__name__}: {error})") from None
    _check_plain(described, path)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key, factor in tensors.items():
        name, found, _ = key.removeprefix(PREFIX).rpartition(".lora_A.weight")
        if found:
            other = tensors.get(key.replace(".lora_A.", ".lora_B."))
            if other is None:
                raise CheckpointError(f"{folder / WEIGHTS_FILE}: {key} has no lora_B beside it", param=key)
            if factor.ndim != 2 or other.ndim != 2:
                raise CheckpointError(f"{folder / WEIGHTS_FILE}: {key} is of no matrix", param=key)
            pairs[name] = (factor, other)
    known = {f"{PREFIX}{name}.lora_{factor}.weight" for name in pairs for factor in "AB"}
    for odd in tensors:
        if odd not in known and f"{PREFIX}{odd}" not in known:
            raise CheckpointError(f"{folder / WEIGHTS_FILE}: {odd} is no part of a plain LoRA adapter", param=odd)
    if not pairs:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} holds no matrix", param=str(folder))
    return pairs, alpha / (rank**0.5 if described.get("use_rslora") else rank)


def _check_plain(described: dict[str, Any], path: Path) -> None:
    odd = [k for k in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias") if described.get(k)]
    odd += ["bias"] * (described.get("bias", "none") != "none")
    if described.get("peft_type") != "LORA" or odd:
        what = f"uses {odd[0]}" if odd else f"is of type {described.get('peft_type')!r}"
        raise CheckpointError(f"{path}: the adapter {what}, which cannot be merged; plain LoRA can", param=str(path))


@torch.no_grad()
def merge_adapter_(model: K2Model, folder: Path) -> int:
    """Add the adapter in `folder` to the matrices of `model`, in float32; returns how many.

    Raises CheckpointError when a matrix is not the model's, or of another shape.
    """
    pairs, scale = read_adapter(folder)
    matrices = dict(model.checkpoint_tensors())
    for name, (a, b) in pairs.items():
        weight = matrices.get(f"{name}.weight")
        if weight is None or weight.shape != (b.shape[0], a.shape[1]) or b.shape[1] != a.shape[0]:
            what = "is not the model's" if weight is None else f"does not fit the model's {list(weight.shape)}"
            raise CheckpointError(f"{folder}: the adapter's matrix {name} {what}", param=name)
    for name, (a, b) in pairs.items():
        weight = matrices[f"{name}.weight"]
        weight.copy_((weight.float() + scale * (b.float() @ a.float())).to(weight.dtype))
    return len(pairs)
