"""The prefix cache in a file, so that a restart does not begin without it.

One safetensors file: the blocks' latents in every layer, their tokens, and the block each one follows. It is written
whole when the engine ends, and read at the next start by an engine with the same weights, formats and block size; what
it holds then gives the same bits as a hit on the blocks themselves.
"""

from __future__ import annotations

import ctypes
import logging
import zlib
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openk2.config.whole_file import whole_file
from openk2.engine.engine import Engine

logger = logging.getLogger(__name__)


def save_prefixes(engine: Engine, path: Path, fingerprint: str) -> int:
    """Write the cached blocks to `path`, whole or not at all; returns how many tokens they are.

    `fingerprint` names whatever the latents depend on: weights and formats. Raises OSError as writing does.
    """
    entries = engine.blocks.cached()
    places = {entry.block: number for number, entry in enumerate(entries)}
    blocks = torch.tensor([entry.block for entry in entries], dtype=torch.int64)
    tensors = {
        "latents": torch.stack([layer.cpu()[blocks] for layer in engine.runner.cache.layers]),
        "tokens": torch.tensor([entry.token_ids for entry in entries], dtype=torch.int64),
        "parents": torch.tensor([-1 if e.parent is None else places[e.parent] for e in entries], dtype=torch.int64),
    }
    about = _about(engine, fingerprint) | {"crc32": str(_checksum(tensors))}
    with whole_file(path) as aside:
        save_file(tensors, aside, about)
    return int(tensors["tokens"].numel())


def load_prefixes(engine: Engine, path: Path, fingerprint: str) -> int:
    """Put what `save_prefixes` wrote into the cache of an engine that has done nothing yet, the most recently used
    first where room is short; returns how many tokens that are.

    A file that is not there gives 0. So does one of another model, of other formats, sizes or version, or that is
    damaged: a warning says which, and the file stays until the next save.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in ("latents", "tokens", "parents")}
    except (SafetensorError, OSError) as error:
        logger.warning("%s is not read: it is damaged, or no file of a prefix cache (%s)", path, error)
        return 0
    checksum = about.pop("crc32", "")
    wanted = _about(engine, fingerprint)
    if about != wanted:
        differing = ", ".join(sorted(key for key in wanted if about.get(key) != wanted[key]))
        logger.warning("%s is not read: it is from another %s", path, differing)
        return 0
    if checksum != str(_checksum(tensors)):
        logger.warning("%s is not read: it is damaged", path)
        return 0
    placed = engine.blocks.restore(
        [tuple(tokens) for tokens in tensors["tokens"].tolist()],
        [None if parent < 0 else parent for parent in tensors["parents"].tolist()],
    )
    entries, blocks = (torch.tensor(numbers, dtype=torch.int64) for numbers in (list(placed), list(placed.values())))
    for layer, latents in zip(engine.runner.cache.layers, tensors["latents"], strict=True):
        layer[blocks.to(layer.device)] = latents[entries].to(layer.device)
    return len(placed) * engine.blocks.block_size


def _about(engine: Engine, fingerprint: str) -> dict[str, str]:
    """What a file's cache and an engine's must have in common, by the words for it in a warning."""
    layers = engine.runner.cache.layers
    shape = (len(layers), *layers[0].shape[1:])
    return {"model": fingerprint, "cache layout": f"{shape} {layers[0].dtype}", "version of openk2": version("openk2")}


def _checksum(tensors: dict[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        if tensor.numel():
            total = zlib.crc32((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()), total)
    return total
