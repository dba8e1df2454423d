"""The memory of the paged latent cache."""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.config import ModelConfig
from openk2.errors import ConfigError

DEFAULT_BYTES = 1 << 30
"""Most memory that the cache takes when its size is left open."""


class LatentCache:
    """Per layer, blocks of tokens' (latent, rotated shared key): (num_blocks, block_size, latent_dim)."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, num_blocks, block_size, config.latent_dim)
        try:
            memory = torch.zeros(shape, device=device, dtype=dtype)
        except RuntimeError as error:
            size = num_blocks * block_bytes(config, block_size, dtype) / 2**30
            raise ConfigError(
                f"no memory for a cache of {num_blocks} blocks ({size:.1f} GiB); lower num_blocks or max_model_len",
                param="num_blocks",
            ) from error
        self.layers: tuple[Tensor, ...] = memory.unbind(0)


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    return config.num_hidden_layers * block_size * config.latent_dim * dtype.itemsize


def default_num_blocks(
    config: ModelConfig,
    *,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    dtype: torch.dtype,
    most_bytes: int = DEFAULT_BYTES,
) -> int:
    """Room for every sequence at full length, as far as `most_bytes` go; but always for one; plus the null block."""
    one = -(-max_model_len // block_size)
    affordable = most_bytes // block_bytes(config, block_size, dtype)
    return max(one, min(one * max_num_seqs, affordable)) + 1
