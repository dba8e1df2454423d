"""Every published `config.json` of the family: read, honoured or refused, written back; YaRN's numbers."""

from __future__ import annotations

from typing import Any

import pytest

from openk2.config import PRESETS, ModelConfig, RopeScaling, preset
from openk2.errors import ConfigError

K2_YARN = {
    "beta_fast": 1.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
INT4 = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {"actorder": None, "dynamic": False, "group_size": 32, "num_bits": 4, "observer": "minmax",
                        "strategy": "group", "symmetric": True, "type": "int"},
        }
    },
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}  # fmt: skip
AUTO_MAP = {
    "AutoConfig": "configuration_deepseek.DeepseekV3Config",
    "AutoModel": "modeling_deepseek.DeepseekV3Model",
    "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
}

K2: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": AUTO_MAP,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": FP8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": K2_YARN,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}
K2_0905 = K2 | {"max_position_embeddings": 262144, "rope_scaling": K2_YARN | {"factor": 64.0}}
K2_THINKING = K2_0905 | {
    "rms_norm_eps": 1e-05,
    "eos_token_id": 163586,
    "quantization_config": INT4,
    "dtype": "bfloat16",
}
K2_5_TEXT = K2_THINKING | {
    "rope_scaling": K2_YARN | {"factor": 64.0, "beta_fast": 32.0},
    "eos_token_id": [163585, 163586],
}
K2_5 = {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "text_config": K2_5_TEXT,
        "vision_config": {"hidden_size": 1152}}  # fmt: skip
DEEPSEEK_V3 = K2 | {
    "model_type": "deepseek_v3",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 163840,
    "n_group": 8,
    "topk_group": 4,
    "n_routed_experts": 256,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "rope_scaling": K2_YARN | {"factor": 40, "beta_fast": 32, "beta_slow": 1},
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "vocab_size": 129280,
}
MOONLIGHT = {k: v for k, v in K2.items() if k not in ("quantization_config", "rope_scaling")} | {
    "model_type": "deepseek_v3",
    "ep_size": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "routed_scaling_factor": 2.446,
}
V2_LITE = MOONLIGHT | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "auto_map": {k: v.replace("V3", "V2") for k, v in AUTO_MAP.items()},
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "intermediate_size": 10944,
    "max_position_embeddings": 163840,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": K2_YARN | {"factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "vocab_size": 102400,
}
PUBLISHED = {
    "k2": K2,
    "k2-0905": K2_0905,
    "k2-thinking": K2_THINKING,
    "deepseek-v3": DEEPSEEK_V3,
    "moonlight": MOONLIGHT,
    "deepseek-v2-lite": V2_LITE,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_read_key_by_key(name: str) -> None:
    raw = PUBLISHED[name]
    config = ModelConfig.from_hf(raw)
    for key, value in raw.items():
        if key == "rope_scaling":
            got = None if config.rope_scaling is None else vars(config.rope_scaling) | {"type": "yarn"}
            assert got == value
        elif key in ModelConfig.__dataclass_fields__:
            assert getattr(config, key) == value, key
    assert config.unknown_keys == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_preset_has_the_published_architecture(name: str) -> None:
    from_file = ModelConfig.from_hf(PUBLISHED[name])
    here = preset(name)
    for key in ModelConfig.__dataclass_fields__:
        if key not in ("extra", "quantization_config", "eos_token_id"):
            assert getattr(here, key) == getattr(from_file, key), key


@pytest.mark.parametrize("name", PUBLISHED)
def test_round_trip_of_published_files(name: str) -> None:
    raw = PUBLISHED[name]
    config = ModelConfig.from_hf(raw)
    written = config.to_hf()
    assert {key: written.get(key) for key in raw} == raw
    assert ModelConfig.from_hf(written) == config


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_presets(name: str) -> None:
    assert ModelConfig.from_hf(preset(name).to_hf()) == preset(name)


def test_multimodal_wrapper_is_read_through_its_text_config() -> None:
    config = ModelConfig.from_hf(K2_5)
    assert config.rope_scaling is not None and config.rope_scaling.beta_fast == 32.0
    assert config.eos_token_ids == (163585, 163586)
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_transformers_5_spelling_of_rotary_parameters() -> None:
    raw = {k: v for k, v in K2_0905.items() if k not in ("rope_scaling", "rope_theta", "torch_dtype")}
    raw["dtype"] = "float32"
    rope = {k: v for k, v in K2_YARN.items() if k != "type"}
    raw["rope_parameters"] = rope | {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 64.0}
    config = ModelConfig.from_hf(raw)
    assert (config.rope_theta, config.rope_scaling) == (50000.0, preset("k2-0905").rope_scaling)
    assert config.torch_dtype == "float32"
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 12345.0}
    config = ModelConfig.from_hf(raw)
    assert (config.rope_theta, config.rope_scaling) == (12345.0, None)


def test_unknown_keys_are_kept_and_reported() -> None:
    config = ModelConfig.from_hf(K2 | {"brand_new_key": {"a": 1}})
    assert config.unknown_keys == ["brand_new_key"]
    assert config.to_hf()["brand_new_key"] == {"a": 1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"topk_method": "random"}, "topk_method"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"n_group": 7}, "n_group"),
        ({"n_group": 96, "topk_group": 1}, "too few"),
        ({"num_experts_per_tok": 500}, "num_experts_per_tok"),
        ({"hidden_size": "7168"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "original_max_position_embeddings"),
        ({"rope_scaling": K2_YARN | {"factor": "32"}}, "factor"),
        ({"rope_scaling": K2_YARN | {"attention_factor": 1.5}}, "attention_factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        ModelConfig.from_hf(K2 | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["kv_lora_rank", "q_lora_rank", "n_group", "num_experts_per_tok", "routed_scaling_factor"]
)
def test_a_missing_key_is_never_guessed(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_hf({k: v for k, v in K2.items() if k != key})


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="k2-0905"):
        preset("k3")


@pytest.mark.parametrize(
    ("name", "scale"),
    [("k2", 0.13086079996295005), ("k2-0905", 0.14467962580268923), ("moonlight", 0.07216878364870322)],
)
def test_softmax_scale(name: str, scale: float) -> None:
    assert preset(name).softmax_scale == pytest.approx(scale, rel=1e-14)


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="factor"):
        RopeScaling(factor=0.5, original_max_position_embeddings=4096)
