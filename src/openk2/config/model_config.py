"""The architecture of a K2-class model, in the spelling of its `config.json`.

`ModelConfig.from_hf` reads every key of the published configs of K2, K2-0905, K2-Thinking, Moonlight, DeepSeek-V3 and
DeepSeek-V2-Lite. A known key whose value cannot be honoured is refused; an unknown key is kept and reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from openk2.errors import ConfigError

LATENT_NORM_EPS = 1e-6
"""Epsilon of `q_a_layernorm` and `kv_a_layernorm`, whatever `rms_norm_eps` says: the published modelling code builds
those two norms without passing the config's value."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """YaRN, arXiv:2309.00071, with DeepSeek's attention-scale convention."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"rope_scaling.{spec.name} must be a number, not {value!r}", param="rope_scaling")
        if self.factor < 1:
            raise ConfigError(f"rope_scaling.factor must be at least 1, not {self.factor}", param="rope_scaling")


def yarn_mscale(factor: float, mscale: float) -> float:
    """Attention temperature of YaRN: 0.1 k ln(s) + 1 for s > 1, else 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One field per key of `config.json`; the defaults are K2-0905's."""

    model_type: str = "kimi_k2"
    vocab_size: int = 163840
    hidden_size: int = 7168
    intermediate_size: int = 18432
    """Width of the dense layers' MLP."""
    moe_intermediate_size: int = 2048
    """Width of one routed expert."""
    num_hidden_layers: int = 61
    num_attention_heads: int = 64
    q_lora_rank: int | None = 1536
    """None: a plain `q_proj` (Moonlight, V2-Lite)."""
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    n_routed_experts: int | None = 384
    """None: every layer is dense."""
    n_shared_experts: int | None = 1
    num_experts_per_tok: int = 8
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.827
    rms_norm_eps: float = 1e-6
    rope_theta: float = 50000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 262144
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 163584
    eos_token_id: int | tuple[int, ...] | None = 163586
    num_nextn_predict_layers: int = 0
    """Multi-token-prediction layers in the checkpoint; they are not loaded."""
    initializer_range: float = 0.02
    torch_dtype: str = "bfloat16"
    quantization_config: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the file that mean nothing here; written back unchanged."""

    def __post_init__(self) -> None:
        self._check_types()

        def positive(*names: str) -> None:
            for name in names:
                if getattr(self, name) is None or getattr(self, name) <= 0:
                    raise ConfigError(f"{name} must be positive, not {getattr(self, name)!r}", param=name)

        positive("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        positive("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(f"qk_rope_head_dim must be even, not {self.qk_rope_head_dim}", param="qk_rope_head_dim")
        if self.n_routed_experts is None:
            return
        positive("moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ConfigError(
                f"num_experts_per_tok {self.num_experts_per_tok} exceeds n_routed_experts {self.n_routed_experts}",
                param="num_experts_per_tok",
            )
        if self.n_routed_experts % self.n_group or self.topk_group > self.n_group:
            raise ConfigError(
                f"n_group {self.n_group} / topk_group {self.topk_group} do not divide {self.n_routed_experts} experts",
                param="n_group",
            )
        group_size = self.n_routed_experts // self.n_group
        if self.num_experts_per_tok > self.topk_group * group_size or (self.n_group > 1 and group_size < 2):
            raise ConfigError(
                f"{self.topk_group} of {self.n_group} groups of {group_size} experts are too few to choose "
                f"{self.num_experts_per_tok}",
                param="topk_group",
            )
        if self.moe_layer_freq != 1:
            raise ConfigError(f"moe_layer_freq {self.moe_layer_freq} is not supported, only 1", param="moe_layer_freq")
        known = {("sigmoid", "noaux_tc"), ("softmax", "greedy"), ("softmax", "group_limited_greedy")}
        if (self.scoring_func, self.topk_method) not in known:
            raise ConfigError(
                f"routing by scoring_func/topk_method {self.scoring_func}/{self.topk_method} is not supported, only "
                + ", ".join(sorted(f"{s}/{m}" for s, m in known)),
                param="topk_method",
            )

    def _check_types(self) -> None:
        for spec in fields(self):
            allowed = FIELD_TYPES.get(str(spec.type))
            value = getattr(self, spec.name)
            if allowed is None or (isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))):
                continue
            raise ConfigError(f"{spec.name} must be of type {spec.type}, not {value!r}", param=spec.name)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values in the cache per token and layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """qk_head_dim^-0.5, times YaRN's squared temperature when `mscale_all_dim` is set."""
        scale = self.qk_head_dim**-0.5
        if self.rope_scaling is not None and self.rope_scaling.mscale_all_dim:
            scale *= yarn_mscale(self.rope_scaling.factor, self.rope_scaling.mscale_all_dim) ** 2
        return scale

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    def is_moe_layer(self, layer: int) -> bool:
        return self.n_routed_experts is not None and layer >= self.first_k_dense_replace

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a `config.json`.

        Raises ConfigError for a model type of another family, a missing key of the architecture, or a value that
        cannot be honoured. Multimodal wrappers (K2.5) are read through their `text_config`.
        """
        if "text_config" in raw and raw.get("model_type") not in MODEL_TYPES:
            return cls.from_hf(raw["text_config"])
        values = dict(raw)
        model_type = values.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ConfigError(
                f"model_type {model_type!r} is not of the K2 family ({', '.join(MODEL_TYPES)})", param="model_type"
            )
        missing = [key for key in REQUIRED_KEYS if key not in values]  # q_lora_rank may be null, not absent
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}", param=missing[0])
        for key, honoured in HONOURED_VALUES.items():
            if values.get(key) is not None and values[key] not in honoured:
                raise ConfigError(f"{key} = {values[key]!r} cannot be honoured, only {honoured[0]!r}", param=key)
        rope = values.pop("rope_parameters", None)
        if rope is not None:
            values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
            values.setdefault("rope_scaling", rope)
        for key, default in FAMILY_DEFAULTS[model_type].items():
            if values.get(key) is None:
                values[key] = default
        if values["n_routed_experts"] is not None:
            missing = [key for key in REQUIRED_MOE_KEYS if values.get(key) is None]
            if missing:
                raise ConfigError(f"config.json lacks {', '.join(missing)}", param=missing[0])
        if values.get("num_key_value_heads") not in (None, values["num_attention_heads"]):
            raise ConfigError(
                f"num_key_value_heads = {values['num_key_value_heads']!r} cannot be honoured: latent attention has as "
                f"many as num_attention_heads, {values['num_attention_heads']!r}",
                param="num_key_value_heads",
            )
        if isinstance(values["eos_token_id"], list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        if "dtype" in values:
            values.setdefault("torch_dtype", values["dtype"])
        values["rope_scaling"] = _read_rope_scaling(values.get("rope_scaling"))
        names = {f.name for f in fields(cls)} - {"extra"}
        config = cls(**{k: v for k, v in values.items() if k in names})
        derived = config._derived()
        extra = {k: v for k, v in values.items() if k not in names and (k not in derived or v != derived[k])}
        return replace(config, extra=extra)

    def _derived(self) -> dict[str, Any]:
        """Keys that other readers of a `config.json` look for and that follow from the fields here."""
        architecture = "DeepseekV2ForCausalLM" if self.model_type == "deepseek_v2" else "DeepseekV3ForCausalLM"
        return {
            "architectures": [architecture],
            "hidden_act": "silu",
            "num_key_value_heads": self.num_attention_heads,
            "attention_bias": False,
        }

    @property
    def unknown_keys(self) -> list[str]:
        """Keys of the file that neither we nor the published code gives a meaning here."""
        return sorted(set(self.extra) - INERT_KEYS - set(HONOURED_VALUES))

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` object that `from_hf` reads back to an equal config."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        if self.rope_scaling is not None:
            out["rope_scaling"] = {"type": "yarn", **vars(self.rope_scaling)}
        if isinstance(self.eos_token_id, tuple):
            out["eos_token_id"] = list(self.eos_token_id)
        if self.quantization_config is None:
            del out["quantization_config"]
        return {**self._derived(), **out, **self.extra}


MODEL_TYPES = ("kimi_k2", "deepseek_v3", "deepseek_v2")

REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "q_lora_rank",
)

REQUIRED_MOE_KEYS = ("moe_intermediate_size", "num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group")
"""The families' modelling codes disagree on the defaults of these, so a missing one would be silently wrong."""

FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}
"""What a field of this annotation may hold; JSON writes 50000.0 as 50000 at times."""

COMMON_DEFAULTS: dict[str, Any] = {
    # Absent means absent, or the modelling code's default, and never K2's number.
    "n_routed_experts": None,
    "n_shared_experts": None,
    "first_k_dense_replace": 0,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
}
_SIGMOID = {**COMMON_DEFAULTS, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    # Keys that configs of a family leave to its modelling code, or state as null.
    "kimi_k2": _SIGMOID,
    "deepseek_v3": _SIGMOID,
    "deepseek_v2": {
        **COMMON_DEFAULTS,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "n_group": 1,
        "topk_group": 1,
    },
}

HONOURED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0.0, 0),
    "rope_interleave": (True,),
    "mlp_bias": (False,),
    "ep_size": (1,),
    "pretraining_tp": (1,),
    "tie_word_embeddings": (False,),
    "sliding_window": (None,),
}

INERT_KEYS = frozenset(
    (
        "_name_or_path",
        "architectures",
        "auto_map",
        "aux_loss_alpha",
        "chunk_size_feed_forward",
        "dtype",
        "head_dim",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "num_experts",
        "num_key_value_heads",
        "num_local_experts",
        "num_mtp_layers",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "partial_rotary_factor",
        "problem_type",
        "qk_head_dim",
        "return_dict",
        "rope_type",
        "router_aux_loss_coef",
        "seq_aux",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)
"""Keys of the published files that describe training or other readers; they change nothing here."""


def _read_rope_scaling(raw: Mapping[str, Any] | RopeScaling | None) -> RopeScaling | None:
    if raw is None or isinstance(raw, RopeScaling):
        return raw
    if not isinstance(raw, Mapping):
        raise ConfigError(f"rope_scaling must be an object, not {raw!r}", param="rope_scaling")
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ConfigError(f"rope_scaling.type {kind!r} is not supported, only 'yarn'", param="rope_scaling")
    names = RopeScaling.__dataclass_fields__
    missing = [k for k in ("factor", "original_max_position_embeddings") if k not in raw]
    if missing:
        raise ConfigError(f"rope_scaling lacks {', '.join(missing)}", param="rope_scaling")
    unknown = set(raw) - set(names) - {"type", "rope_type", "rope_theta", "attention_factor", "truncate"}
    if unknown or raw.get("attention_factor") is not None or raw.get("truncate", True) is not True:
        raise ConfigError(f"rope_scaling keys cannot be honoured: {dict(raw)}", param="rope_scaling")
    return RopeScaling(**{k: v for k, v in raw.items() if k in names and v is not None})
