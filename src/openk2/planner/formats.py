"""Number formats and quantization schemes: bytes of weights and of the cache, exact to the byte where the layout is.

Sources: FP8 in blocks of 128 x 128 with float32 scales: DeepSeek-V3's README_WEIGHTS.md; int4 in groups of 32 with
bfloat16 scales on the routed experts only: K2-Thinking's compressed-tensors config; AWQ arXiv:2306.00978 and GPTQ
arXiv:2210.17323 with their usual groups of 128; GGUF blocks: ggml's block structs, and for the `_M` mixes the average
bits that llama.cpp prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import ceil

from openk2.errors import ConfigError
from openk2.planner.nearest import nearest
from openk2.planner.shape import Kind, LatentAttention, ModelShape, TensorGroup


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the values of a matrix are stored: `bits` each, and per block of rows x cols its scale (and zero)."""

    bits: Fraction
    block_rows: int = 0
    """0: no blocks, no scales."""
    block_cols: int = 0
    """0: a block is as long as a row."""
    block_bits: int = 0
    bytes_per_column: int = 0
    """What is stored once per input column (GPTQ's group index)."""
    bytes_per_tensor: int = 0
    """What is stored once per matrix (compressed-tensors' shape)."""

    def tensor_bytes(self, rows: int, cols: int) -> Fraction:
        """Of one matrix [rows, cols]."""
        size = self.bits * rows * cols / 8
        if self.block_rows:
            blocks = ceil(rows / self.block_rows) * ceil(cols / (self.block_cols or cols))
            size += Fraction(blocks * self.block_bits, 8)
        return size + self.bytes_per_column * cols + self.bytes_per_tensor


F32 = Format(bits=Fraction(32))
BF16 = Format(bits=Fraction(16))
FP8_BLOCK = Format(bits=Fraction(8), block_rows=128, block_cols=128, block_bits=32)
INT8_CHANNEL = Format(bits=Fraction(8), block_rows=1, block_bits=32)
INT4_G32 = Format(bits=Fraction(4), block_rows=1, block_cols=32, block_bits=16, bytes_per_tensor=8)
AWQ_G128 = Format(bits=Fraction(4), block_rows=1, block_cols=128, block_bits=16 + 4)
GPTQ_G128 = Format(bits=Fraction(4), block_rows=1, block_cols=128, block_bits=16 + 4, bytes_per_column=4)

ATTENTION_AND_MLP = (Kind.ATTENTION, Kind.DENSE_MLP, Kind.ROUTED_EXPERTS, Kind.SHARED_EXPERTS)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Which format the matrices of each kind have; vectors stay in bfloat16, and the router's bias in float32."""

    name: str
    formats: Mapping[Kind, Format] = field(default_factory=dict, hash=False)
    default: Format = BF16
    arithmetic: str = "bf16"
    """In which numbers it is multiplied: bf16, fp8, int8 or f32; a device without them takes bf16."""
    vectors: Format = BF16
    is_average: bool = False
    """The format mixes types by rules that are not followed tensor by tensor: the size is within a few per cent."""

    def format_of(self, tensor: TensorGroup) -> Format:
        if not tensor.is_matrix:
            return F32 if tensor.kind is Kind.ROUTER else self.vectors
        return self.formats.get(tensor.kind, self.default)

    def group_bytes(self, tensor: TensorGroup) -> Fraction:
        """Of all tensors of the group."""
        return self.format_of(tensor).tensor_bytes(tensor.rows, tensor.cols or 1) * tensor.count


def _everywhere(name: str, linear: Format, arithmetic: str = "bf16") -> Scheme:
    return Scheme(name=name, formats=dict.fromkeys(ATTENTION_AND_MLP, linear), arithmetic=arithmetic)


def _gguf(name: str, bits: str, *, is_average: bool = False) -> Scheme:
    return Scheme(name=name, default=Format(bits=Fraction(bits)), vectors=F32, is_average=is_average)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="f32", default=F32, vectors=F32, arithmetic="f32"),
        Scheme(name="bf16"),
        _everywhere("fp8", FP8_BLOCK, "fp8"),
        _everywhere("int8", INT8_CHANNEL, "int8"),
        Scheme(name="int4", formats={Kind.ROUTED_EXPERTS: INT4_G32}),
        _everywhere("awq", AWQ_G128),
        _everywhere("gptq", GPTQ_G128),
        _gguf("q8_0", "8.5"),
        _gguf("q6_k", "6.5625"),
        _gguf("q5_k_m", "5.69", is_average=True),
        _gguf("q4_k_m", "4.85", is_average=True),
        _gguf("q4_0", "4.5"),
    )
}
ALIASES = {"fp16": "bf16", "f16": "bf16", "bfloat16": "bf16", "float16": "bf16", "fp32": "f32", "float32": "f32"}


def scheme(name: str) -> Scheme:
    """The scheme called `name`, in any case. Raises ConfigError with the names there are."""
    key = name.lower().replace("-", "_")
    found = SCHEMES.get(ALIASES.get(key, key))
    if found is None:
        near = nearest(key, [*SCHEMES, *ALIASES])
        hint = f"; the nearest is {near}" if near else ""
        raise ConfigError(f"no quantization {name!r}{hint}. There are {', '.join(SCHEMES)}", param="quantization")
    return found


def weights_bytes_by_kind(shape: ModelShape, scheme: Scheme) -> dict[Kind, int]:
    """Bytes of the whole checkpoint's tensors."""
    sizes: dict[Kind, Fraction] = {}
    for tensor in shape.tensors():
        sizes[tensor.kind] = sizes.get(tensor.kind, Fraction(0)) + scheme.group_bytes(tensor)
    return {kind: ceil(size) for kind, size in sizes.items()}


@lru_cache(maxsize=256)
def weights_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """Of the whole checkpoint's tensors: 1,029,173,249,888 for K2 in its published FP8."""
    return ceil(sum((scheme.group_bytes(tensor) for tensor in shape.tensors()), Fraction(0)))


CACHE_FORMATS = ("bf16", "fp8", "fp8_ds_mla", "f32")
"""`fp8_ds_mla` is vLLM's: the latent in FP8 with four float32 scales, the rotary key in bfloat16 (656 bytes for K2)."""


def cache_bytes_per_token(shape: ModelShape, cache_format: str = "bf16") -> int:
    """Of one token over all layers, on one device that holds them all. Raises ConfigError for an unknown format."""
    if cache_format not in CACHE_FORMATS:
        near = nearest(cache_format.lower(), CACHE_FORMATS)
        hint = f"; the nearest is {near}" if near else ""
        raise ConfigError(
            f"no cache format {cache_format!r}{hint}. There are {', '.join(CACHE_FORMATS)}", param="cache"
        )
    values = shape.attention.cache_values_per_token_per_layer
    per_layer = {"bf16": 2 * values, "fp8": values, "f32": 4 * values}.get(cache_format)
    if per_layer is None:
        attention = shape.attention
        if not isinstance(attention, LatentAttention):
            raise ConfigError("the cache format fp8_ds_mla is for latent attention; take fp8", param="cache")
        per_layer = attention.kv_lora_rank + 4 * ceil(attention.kv_lora_rank / 128) + 2 * attention.qk_rope_head_dim
    return per_layer * shape.num_layers
