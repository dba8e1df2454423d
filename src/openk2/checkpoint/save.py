"""A model to a checkpoint folder in the published layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from openk2.checkpoint.files import INDEX_FILE, SINGLE_FILE, load_generation_config
from openk2.config import ModelConfig
from openk2.errors import CheckpointError
from openk2.models import K2Model
from openk2.models.packed import packed_stacks

TOKENIZER_FILES = ("tiktoken.model", "tokenizer_config.json", "chat_template.jinja", "tokenization_kimi.py")
BIAS = "e_score_correction_bias"


def save_model(
    model: K2Model,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    generation_config: Mapping[str, Any] | None = None,
    copy_from: str | Path | None = None,
) -> Path:
    """Write `model` to `folder` under the published names; returns the folder.

    Everything is written to a folder beside it that takes its name only when it is complete, so a reader never sees
    half a checkpoint. Files of an older `folder` that are not a checkpoint's own are kept.

    dtype: of the weights on disk; None keeps each as it is. The router's correction bias is always float32.
    max_shard_bytes: a model above it is split, with an index; at most one shard is held in memory.
    generation_config: written as it is; None takes that of `copy_from`, or names the end tokens.
    copy_from: a checkpoint folder whose tokenizer and template are copied.

    Raises CheckpointError for a packed model, which no longer holds the published tensors.
    """
    if any(packed_stacks(model)):
        raise CheckpointError("a packed model cannot be saved: load its checkpoint without quantization")
    target = Path(folder)
    source = None if copy_from is None else Path(copy_from)
    aside = target.with_name(f".{target.name}.writing-{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        _write_weights(model, aside, dtype, max_shard_bytes)
        _write_json(aside / "config.json", _exported_config(model, dtype).to_hf())
        if generation_config is None:
            generation_config = load_generation_config(source) if source is not None else {}
            generation_config = generation_config or {"eos_token_id": list(model.config.eos_token_ids)}
        _write_json(aside / "generation_config.json", dict(generation_config))
        for name in TOKENIZER_FILES:
            if source is not None and (source / name).is_file():
                shutil.copy2(source / name, aside / name)
        _take_place(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def shard_name(number: int, total: int, config: ModelConfig) -> str:
    """File name of shard `number` (from 1) of `total`; K2's releases write the total with six digits."""
    if total == 1:
        return SINGLE_FILE
    width = 6 if config.model_type == "kimi_k2" else 5
    return f"model-{number:05d}-of-{total:0{width}d}.safetensors"


def _write_weights(model: K2Model, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    def stored_dtype(name: str, tensor: Tensor) -> torch.dtype:
        return torch.float32 if name.endswith(BIAS) else dtype or tensor.dtype

    shards: list[list[tuple[str, Tensor]]] = [[]]
    total_bytes = shard_bytes = 0
    for name, tensor in model.checkpoint_tensors():
        size = tensor.numel() * stored_dtype(name, tensor).itemsize
        if shards[-1] and shard_bytes + size > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append((name, tensor))
        shard_bytes += size
        total_bytes += size
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = shard_name(number, len(shards), model.config)
        values = {}
        for name, tensor in shard:
            values[name] = tensor.to("cpu", stored_dtype(name, tensor)).contiguous()
            weight_map[name] = file
        save_file(values, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # written for its owner alone, unlike the files beside it
    if len(shards) > 1:
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _exported_config(model: K2Model, dtype: torch.dtype | None) -> ModelConfig:
    """The model's config, true of what is written: its dtype, no quantization, no prediction layers."""
    stored = dtype or model.model.embed_tokens.weight.dtype
    extra = {key: value for key, value in model.config.extra.items() if key != "dtype"}
    return replace(
        model.config,
        torch_dtype=str(stored).removeprefix("torch."),
        quantization_config=None,
        num_nextn_predict_layers=0,
        extra=extra,
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _take_place(aside: Path, target: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    for old in target.iterdir():
        is_weights = old.suffix == ".safetensors" or old.name == INDEX_FILE
        if is_weights or (aside / old.name).exists():
            continue
        if old.is_dir():
            shutil.copytree(old, aside / old.name, symlinks=True)
        else:
            shutil.copy2(old, aside / old.name)
    replaced = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    target.rename(replaced)
    aside.rename(target)
    shutil.rmtree(replaced)
