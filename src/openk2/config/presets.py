"""Published architectures by name, and the embedded model's.

Sources: each model's published config.json. `rms_norm_eps` and the end token of K2-0905 are July's, its own file being
unread; loading a checkpoint always reads the checkpoint's own values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from openk2.config.model_config import ModelConfig, RopeScaling
from openk2.errors import ConfigError


def _k2_yarn(factor: float, beta_fast: float = 1.0) -> RopeScaling:
    return RopeScaling(
        factor=factor,
        original_max_position_embeddings=4096,
        beta_fast=beta_fast,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
    )


def k2() -> ModelConfig:
    """Kimi-K2-Instruct, July 2025: 128K."""
    return ModelConfig(rope_scaling=_k2_yarn(32.0), max_position_embeddings=131072)


def k2_0905() -> ModelConfig:
    """Kimi-K2-Instruct-0905: 256K."""
    return ModelConfig(rope_scaling=_k2_yarn(64.0))


def k2_thinking() -> ModelConfig:
    return replace(k2_0905(), rms_norm_eps=1e-5)


def moonlight() -> ModelConfig:
    """Moonlight-16B-A3B."""
    return ModelConfig(
        model_type="deepseek_v3",
        hidden_size=2048,
        intermediate_size=11264,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        routed_scaling_factor=2.446,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        eos_token_id=163585,
    )


def deepseek_v3() -> ModelConfig:
    return ModelConfig(
        model_type="deepseek_v3",
        vocab_size=129280,
        num_attention_heads=128,
        first_k_dense_replace=3,
        n_routed_experts=256,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        rope_theta=10000.0,
        rope_scaling=_k2_yarn(40.0, beta_fast=32.0),
        max_position_embeddings=163840,
        bos_token_id=0,
        eos_token_id=1,
        num_nextn_predict_layers=1,
    )


def deepseek_v2_lite() -> ModelConfig:
    return ModelConfig(
        model_type="deepseek_v2",
        vocab_size=102400,
        hidden_size=2048,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        rope_theta=10000.0,
        rope_scaling=RopeScaling(
            factor=40.0,
            original_max_position_embeddings=4096,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=0.707,
            mscale_all_dim=0.707,
        ),
        max_position_embeddings=163840,
        bos_token_id=100000,
        eos_token_id=100001,
    )


def nano() -> ModelConfig:
    """k2-nano, the embedded model: the architecture of K2 with top-8 of 32 narrow experts."""
    return ModelConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=384,
        moe_intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=8,
        q_lora_rank=96,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=32,
        num_experts_per_tok=8,
        rope_theta=10000.0,
        max_position_embeddings=4096,
        bos_token_id=1792,
        eos_token_id=1794,
    )


def mini() -> ModelConfig:
    """1.3B parameters, 0.3B of them active: large enough that arithmetic and memory, not calls, take the time."""
    return ModelConfig(
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=4096,
        moe_intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=16,
        q_lora_rank=768,
        n_routed_experts=64,
        routed_scaling_factor=2.446,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "k2": k2,
    "k2-0905": k2_0905,
    "k2-thinking": k2_thinking,
    "moonlight": moonlight,
    "deepseek-v3": deepseek_v3,
    "deepseek-v2-lite": deepseek_v2_lite,
    "nano": nano,
    "mini": mini,
}


def preset(name: str) -> ModelConfig:
    """The architecture called `name`; raises ConfigError listing the names there are."""
    try:
        return PRESETS[name.lower()]()
    except KeyError:
        raise ConfigError(f"no preset named {name!r}; there are {', '.join(PRESETS)}") from None
