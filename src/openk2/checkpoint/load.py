"""A checkpoint folder to a model, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from openk2.checkpoint.expert_store_pack import attach_store, expert_sinks
from openk2.checkpoint.files import INDEX_FILE, STORED_DTYPES, Checkpoint, load_config, open_shard, read_tensors
from openk2.checkpoint.packed_file import map_packed, source_key, write_packed
from openk2.config import ModelConfig
from openk2.errors import CheckpointError, ConfigError
from openk2.models import K2Model
from openk2.models.packed import Quantization, Sink, pack_modules, packed_stacks, packing_sinks, plain_sinks, put_stacks
from openk2.models.packed_decode import finish_packing
from openk2.models.packed_stored import store_experts, stored_experts

LAYER = re.compile(r"model\.layers\.(\d+)\.")


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
    packed_folder: Path | None = None,
    expert_cache_bytes: int | None = None,
    mapped: bool = True,
) -> K2Model:
    """The model in a checkpoint folder, in evaluation mode.

    Each tensor is read from its mapped file straight into the model's own memory, so the weights are never held
    twice. `dtype` casts; None keeps the dtype that the embedding is stored in. The router's correction bias is float32
    whatever the file holds. `quantization` packs the large matrices as they are read; `dtype` is then that of
    everything else, None being float32. `packed_folder` keeps the packed matrices in a file, written the first time and
    mapped from then on; a file there that is damaged or of another version is replaced.

    `expert_cache_bytes` leaves the routed experts in a file of `packed_folder`, packed, and keeps as many of them in
    memory (`checkpoint.expert_store`); it needs `quantization` and `packed_folder`. `mapped` False reads tensors in
    place of mapping their files: slower, but nothing of them stays in memory.

    Raises CheckpointError naming the file and tensor when something is missing, unexpected, reshaped or truncated,
    and ConfigError when the config asks for what cannot be honoured.
    """
    config = load_config(folder)
    if config.quantization_config is not None:
        method = config.quantization_config.get("quant_method", "unknown")
        raise ConfigError(
            f"{folder}: quantization {method!r} (quantization_config in config.json) cannot be loaded yet; "
            "use a bfloat16 version of this checkpoint",
            param="quantization_config",
        )
    checkpoint = Checkpoint.open(folder)
    with torch.device("meta"):
        model = K2Model(config)
    check_tensors(checkpoint, model)
    if quantization is not None:
        pack_modules(model, quantization)
        dtype = dtype or torch.float32
        if expert_cache_bytes is not None:
            store_experts(model)
    model = model.to(dtype or _stored_dtype(checkpoint)).to_empty(device=device)
    targets = plain_sinks(model)
    if quantization is not None and packed_folder is not None:
        _fill_packed(model, checkpoint, quantization, packed_folder, mapped)
    else:
        targets |= packing_sinks(model)
    _fill(targets, checkpoint, mapped)
    if quantization is not None and expert_cache_bytes is not None:
        assert packed_folder is not None, "a folder for the experts"
        path = packed_folder / f"{checkpoint.folder.resolve().name}-{quantization.experts}.experts"
        source = source_key(checkpoint.folder, quantization.experts)
        attach_store(
            model,
            path,
            source,
            expert_cache_bytes,
            lambda writer: _fill(expert_sinks(model, writer), checkpoint, False),
        )
    if quantization is not None:
        finish_packing(model)
    return model.eval()


def _fill(targets: Mapping[str, Sink], checkpoint: Checkpoint, mapped: bool) -> None:
    for path, tensors in checkpoint.shards.items():
        if not mapped:
            for name, tensor in read_tensors(path, targets.keys() & tensors.keys()):
                targets[name](tensor)
            continue
        with open_shard(path) as shard:
            for name in tensors:
                if name in targets:
                    targets[name](shard.get_tensor(name))


def _fill_packed(
    model: K2Model, checkpoint: Checkpoint, quantization: Quantization, folder: Path, mapped: bool
) -> None:
    """Map the packed matrices from their file in `folder`, made now unless it is there and whole."""
    without = "-without-experts" if stored_experts(model) else ""
    path = folder / f"{checkpoint.folder.resolve().name}-{quantization.code}{without}.packed"
    source = source_key(checkpoint.folder, quantization.code)
    layouts = {name: stack.layout for name, stack in packed_stacks(model)}
    try:
        put_stacks(model, map_packed(path, source, layouts))
    except CheckpointError:
        _fill(packing_sinks(model), checkpoint, mapped)
        write_packed(path, source, dict(packed_stacks(model)))
        put_stacks(model, map_packed(path, source, layouts, check_bytes=False))


def _is_skipped(name: str, config: ModelConfig) -> bool:
    """Tensors of published checkpoints that are no weights of this model: rotary tables, prediction layers."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    layer = LAYER.match(name)
    return layer is not None and int(layer[1]) >= config.num_hidden_layers


def check_tensors(checkpoint: Checkpoint, model: K2Model) -> None:
    """Raise CheckpointError unless the files hold exactly `model`'s tensors, plus those that are skipped.

    `model` may be on the meta device: no weight is read.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.checkpoint_tensors()}
    unexpected = []
    for path, name, stored in checkpoint.tensors():
        shape = expected.pop(name, None)
        if shape is None:
            if not _is_skipped(name, model.config):
                unexpected.append((path, name))
        elif stored.shape != shape:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(stored.shape)}, config.json makes it {list(shape)}", param=name
            )
        elif stored.dtype not in STORED_DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name} is stored as {stored.dtype}, but config.json names no quantization", param=name
            )
    if expected:
        first = next(iter(expected))
        more = f" and {len(expected) - 1} more" if len(expected) > 1 else ""
        index = checkpoint.folder / INDEX_FILE
        where = index if index.is_file() else next(iter(checkpoint.shards))
        raise CheckpointError(f"{where}: tensor {first}{more} missing", param=first)
    if unexpected:
        path, name = unexpected[0]
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise CheckpointError(f"{path}: tensor {name}{more} not expected by config.json", param=name)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    stored = next(t for _, name, t in checkpoint.tensors() if name == "model.embed_tokens.weight")
    return STORED_DTYPES[stored.dtype]
