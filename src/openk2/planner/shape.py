"""The shape of a model: what it holds and what one token costs, by arithmetic alone.

A `ModelShape` lists a checkpoint's tensors in groups, once. Parameter counts, bytes in any number format, what a device
holds and what a token multiplies all come out of that one list, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openk2.config import ModelConfig  # 40 ms that arithmetic does not need


class Kind(StrEnum):
    """What a tensor belongs to."""

    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    ATTENTION = "attention"
    NORM = "norm"
    DENSE_MLP = "dense_mlp"
    ROUTED_EXPERTS = "routed_experts"
    SHARED_EXPERTS = "shared_experts"
    ROUTER = "router"


class Split(StrEnum):
    """How the engines cut a tensor over devices."""

    TENSOR = "tensor"
    """Over the tensor-parallel group."""
    KV_HEADS = "kv_heads"
    """Over the tensor-parallel group, but into no more parts than there are key-value heads; then copies."""
    EXPERTS = "experts"
    """Whole experts over the expert-parallel group; without one, each expert over the tensor-parallel group."""
    REPLICATED = "replicated"
    """A copy on every device of the group."""


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """`count` tensors of one shape: [rows, cols] as in the checkpoint, or a vector of `rows` values where cols is 0."""

    name: str
    """The checkpoint's, without layer and expert."""
    kind: Kind
    rows: int
    cols: int
    count: int
    split: Split

    @property
    def is_matrix(self) -> bool:
        return self.cols > 0

    @property
    def parameters(self) -> int:
        return self.rows * max(self.cols, 1) * self.count


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """MLA (DeepSeek-V2, arXiv:2405.04434, section 2.1): the cache holds one latent and one rotary key per token."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def cache_values_per_token_per_layer(self) -> int:
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def expanded_values_per_token_per_layer(self) -> int:
        """What a cache of keys and values per head would hold instead."""
        return self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim)

    @property
    def cache_parts(self) -> int:
        """Parts into which tensor parallelism can cut the cache: every rank needs the whole latent."""
        return 1

    def decode_flops_per_context_token(self) -> int:
        """Absorbed form, one layer: scores over latent and rotary key, then the sum over latents."""
        return 2 * self.num_heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim)

    def prefill_flops_per_context_token(self) -> int:
        """Expanded form, one layer: scores over nope and rope, then the sum over values."""
        return 2 * self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim)

    def tensors(self, hidden_size: int, num_layers: int) -> Iterator[TensorGroup]:
        def group(name: str, rows: int, cols: int, split: Split) -> TensorGroup:
            return TensorGroup(
                name=f"self_attn.{name}", kind=Kind.ATTENTION, rows=rows, cols=cols, count=num_layers, split=split
            )

        q_rows = self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        if self.q_lora_rank is None:
            yield group("q_proj", q_rows, hidden_size, Split.TENSOR)
        else:
            yield group("q_a_proj", self.q_lora_rank, hidden_size, Split.REPLICATED)
            yield group("q_a_layernorm", self.q_lora_rank, 0, Split.REPLICATED)
            yield group("q_b_proj", q_rows, self.q_lora_rank, Split.TENSOR)
        latent = self.kv_lora_rank + self.qk_rope_head_dim
        yield group("kv_a_proj_with_mqa", latent, hidden_size, Split.REPLICATED)
        yield group("kv_a_layernorm", self.kv_lora_rank, 0, Split.REPLICATED)
        kv_rows = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        yield group("kv_b_proj", kv_rows, self.kv_lora_rank, Split.TENSOR)
        yield group("o_proj", hidden_size, self.num_heads * self.v_head_dim, Split.TENSOR)


@dataclass(frozen=True, kw_only=True)
class GroupedAttention:
    """GQA (arXiv:2305.13245): keys and values per key-value head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_qk_norm: bool = False
    has_qkv_bias: bool = False

    @property
    def cache_values_per_token_per_layer(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def expanded_values_per_token_per_layer(self) -> int:
        return self.cache_values_per_token_per_layer

    @property
    def cache_parts(self) -> int:
        return self.num_kv_heads

    def decode_flops_per_context_token(self) -> int:
        return 4 * self.num_heads * self.head_dim

    def prefill_flops_per_context_token(self) -> int:
        return 4 * self.num_heads * self.head_dim

    def tensors(self, hidden_size: int, num_layers: int) -> Iterator[TensorGroup]:
        def group(name: str, rows: int, cols: int, split: Split) -> TensorGroup:
            return TensorGroup(
                name=f"self_attn.{name}", kind=Kind.ATTENTION, rows=rows, cols=cols, count=num_layers, split=split
            )

        q_rows, kv_rows = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        for name, rows, split in (
            ("q_proj", q_rows, Split.TENSOR),
            ("k_proj", kv_rows, Split.KV_HEADS),
            ("v_proj", kv_rows, Split.KV_HEADS),
        ):
            yield group(name, rows, hidden_size, split)
            if self.has_qkv_bias:
                yield group(f"{name}.bias", rows, 0, split)
        if self.has_qk_norm:
            yield group("q_norm", self.head_dim, 0, Split.REPLICATED)
            yield group("k_norm", self.head_dim, 0, Split.REPLICATED)
        yield group("o_proj", hidden_size, q_rows, Split.TENSOR)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """One model. Everything is counted in parameters, values, floating-point operations and tokens; bytes come in
    with a number format (`formats.py`)."""

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_dense_layers: int
    dense_intermediate_size: int
    num_experts: int
    """Routed experts of a layer; 0 where every layer is dense."""
    num_experts_per_token: int
    num_shared_experts: int
    expert_intermediate_size: int
    attention: LatentAttention | GroupedAttention
    max_context_tokens: int
    has_router_bias: bool = True
    native_scheme: str = "bf16"
    """The number format of the published checkpoint; the planner's default."""
    source: str = ""

    @classmethod
    def from_config(cls, name: str, config: ModelConfig, *, native_scheme: str = "bf16") -> ModelShape:
        """The shape of a K2-class model."""
        has_experts = config.n_routed_experts is not None
        return cls(
            name=name,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_dense_layers=sum(not config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)),
            dense_intermediate_size=config.intermediate_size,
            num_experts=config.n_routed_experts or 0,
            num_experts_per_token=config.num_experts_per_tok if has_experts else 0,
            num_shared_experts=(config.n_shared_experts or 0) if has_experts else 0,
            expert_intermediate_size=config.moe_intermediate_size if has_experts else 0,
            attention=LatentAttention(
                num_heads=config.num_attention_heads,
                q_lora_rank=config.q_lora_rank,
                kv_lora_rank=config.kv_lora_rank,
                qk_nope_head_dim=config.qk_nope_head_dim,
                qk_rope_head_dim=config.qk_rope_head_dim,
                v_head_dim=config.v_head_dim,
            ),
            max_context_tokens=config.max_position_embeddings,
            has_router_bias=config.topk_method == "noaux_tc",
            native_scheme=native_scheme,
        )

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    def tensors(self) -> Iterator[TensorGroup]:
        """Every tensor of the checkpoint; multi-token-prediction layers are left out, as they are on loading."""
        hidden = self.hidden_size

        def matrix(name: str, kind: Kind, rows: int, cols: int, count: int, split: Split) -> TensorGroup:
            return TensorGroup(name=name, kind=kind, rows=rows, cols=cols, count=count, split=split)

        def mlp(prefix: str, kind: Kind, width: int, count: int, split: Split) -> Iterator[TensorGroup]:
            yield matrix(f"{prefix}.gate_proj", kind, width, hidden, count, split)
            yield matrix(f"{prefix}.up_proj", kind, width, hidden, count, split)
            yield matrix(f"{prefix}.down_proj", kind, hidden, width, count, split)

        yield matrix("embed_tokens", Kind.EMBEDDING, self.vocab_size, hidden, 1, Split.TENSOR)
        yield from self.attention.tensors(hidden, self.num_layers)
        yield matrix("layernorms", Kind.NORM, hidden, 0, 2 * self.num_layers + 1, Split.REPLICATED)
        if self.num_dense_layers:
            width = self.dense_intermediate_size
            yield from mlp("mlp", Kind.DENSE_MLP, width, self.num_dense_layers, Split.TENSOR)
        if self.num_moe_layers:
            layers = self.num_moe_layers
            yield matrix("mlp.gate", Kind.ROUTER, self.num_experts, hidden, layers, Split.REPLICATED)
            if self.has_router_bias:
                name = "mlp.gate.e_score_correction_bias"
                yield matrix(name, Kind.ROUTER, self.num_experts, 0, layers, Split.REPLICATED)
            count, width = layers * self.num_experts, self.expert_intermediate_size
            yield from mlp("mlp.experts", Kind.ROUTED_EXPERTS, width, count, Split.EXPERTS)
            if self.num_shared_experts:
                width *= self.num_shared_experts
                yield from mlp("mlp.shared_experts", Kind.SHARED_EXPERTS, width, layers, Split.TENSOR)
        yield matrix("lm_head", Kind.LM_HEAD, self.vocab_size, hidden, 1, Split.TENSOR)

    def parameters_by_kind(self) -> dict[Kind, int]:
        counts: dict[Kind, int] = {}
        for tensor in self.tensors():
            counts[tensor.kind] = counts.get(tensor.kind, 0) + tensor.parameters
        return counts

    @property
    def parameters(self) -> int:
        return sum(self.parameters_by_kind().values())

    @property
    def parameters_per_expert(self) -> int:
        return 3 * self.hidden_size * self.expert_intermediate_size

    @property
    def active_parameters(self) -> int:
        """Those that one token uses: all but the routed experts not chosen for it; the embedding table counts whole."""
        idle = self.num_moe_layers * (self.num_experts - self.num_experts_per_token) * self.parameters_per_expert
        return self.parameters - idle

    @property
    def active_parameters_without_embedding(self) -> int:
        """The same with the embedding as the lookup that it is: what a token's weights are worth in traffic."""
        return self.active_parameters - self.vocab_size * self.hidden_size

    @property
    def linear_flops_per_token(self) -> int:
        """Two per active weight of a matrix, without embedding and head; attention over the context comes on top."""
        per_token = 0
        for tensor in self.tensors():
            if not tensor.is_matrix or tensor.kind in (Kind.EMBEDDING, Kind.LM_HEAD):
                continue
            used = tensor.parameters
            if tensor.kind is Kind.ROUTED_EXPERTS:
                used = used // self.num_experts * self.num_experts_per_token
            per_token += 2 * used
        return per_token

    @property
    def head_flops(self) -> int:
        """Of the output head, once per sampled position."""
        return 2 * self.vocab_size * self.hidden_size

    @property
    def cache_values_per_token(self) -> int:
        return self.attention.cache_values_per_token_per_layer * self.num_layers

    def experts_touched(self, tokens: float) -> float:
        """Expected distinct routed experts of one layer that `tokens` tokens use, with even and independent routing:
        E (1 - (1 - k/E)^tokens)."""
        if not self.num_experts:
            return 0.0
        share = self.num_experts_per_token / self.num_experts
        return self.num_experts * (1.0 - (1.0 - share) ** tokens)
