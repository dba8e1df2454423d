"""A checkpoint folder to a model, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from openk2.checkpoint.files import INDEX_FILE, Checkpoint, load_config, open_shard
from openk2.checkpoint.packed_file import map_packed, source_key, write_packed
from openk2.config import ModelConfig
from openk2.errors import CheckpointError, ConfigError
from openk2.models import K2Model
from openk2.models.packed import Quantization, Sink, pack_modules, packed_stacks, packing_sinks, plain_sinks, put_stacks
from openk2.models.packed_decode import finish_packing

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
LAYER = re.compile(r"model\.layers\.(\d+)\.")


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
    packed_folder: Path | None = None,
) -> K2Model:
    """The model in a checkpoint folder, in evaluation mode.

    Each tensor is read from its mapped file straight into the model's own memory, so the weights are never held
    twice. `dtype` casts; None keeps the dtype that the embedding is stored in. The router's correction bias is float32
    whatever the file holds. `quantization` packs the large matrices as they are read; `dtype` is then that of
    everything else, None being float32. `packed_folder` keeps the packed matrices in a file, written the first time and
    mapped from then on; a file there that is damaged or of another version is replaced.

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
    model = model.to(dtype or _stored_dtype(checkpoint)).to_empty(device=device)
    targets = plain_sinks(model)
    if quantization is not None and packed_folder is not None:
        _fill_packed(model, checkpoint, quantization, packed_folder)
    else:
        targets |= packing_sinks(model)
    _fill(targets, checkpoint)
    if quantization is not None:
        finish_packing(model)
    return model.eval()


def _fill(targets: Mapping[str, Sink], checkpoint: Checkpoint) -> None:
    for path, tensors in checkpoint.shards.items():
        with open_shard(path) as shard:
            for name in tensors:
                if name in targets:
                    targets[name](shard.get_tensor(name))


def _fill_packed(model: K2Model, checkpoint: Checkpoint, quantization: Quantization, folder: Path) -> None:
    """Map the packed matrices from their file in `folder`, made now unless it is there and whole."""
    path = folder / f"{checkpoint.folder.resolve().name}-{quantization.code}.packed"
    source = source_key(checkpoint.folder, quantization.code)
    layouts = {name: stack.layout for name, stack in packed_stacks(model)}
    try:
        put_stacks(model, map_packed(path, source, layouts))
    except CheckpointError:
        _fill(packing_sinks(model), checkpoint)
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
