"""Which model is meant: a preset, one of the compared models, a folder with a `config.json`, or a safetensors index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openk2.config import PRESETS, ModelConfig, preset
from openk2.errors import ConfigError
from openk2.planner.nearest import nearest
from openk2.planner.read_index import read_index
from openk2.planner.shape import GroupedAttention, ModelShape

PUBLISHED_SCHEMES = {"k2": "fp8", "k2-0905": "fp8", "k2-thinking": "int4", "deepseek-v3": "fp8"}
"""In which format a preset's checkpoint is published; bfloat16 for the others."""

QUANT_METHODS = {"fp8": "fp8", "compressed-tensors": "int4", "awq": "awq", "gptq": "gptq"}
"""`quantization_config.quant_method` of a `config.json` -> scheme."""

COMPARED: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape(
            name="qwen3-coder-480b",
            vocab_size=151936,
            hidden_size=6144,
            num_layers=62,
            num_dense_layers=0,
            dense_intermediate_size=8192,
            num_experts=160,
            num_experts_per_token=8,
            num_shared_experts=0,
            expert_intermediate_size=2560,
            attention=GroupedAttention(num_heads=96, num_kv_heads=8, head_dim=128, has_qk_norm=True),
            max_context_tokens=262144,
            has_router_bias=False,
            source="Megatron arguments of Qwen3-Coder-480B-A35B in THUDM/slime",
        ),
        ModelShape(
            name="glm-4.5",
            vocab_size=151552,
            hidden_size=5120,
            num_layers=92,
            num_dense_layers=3,
            dense_intermediate_size=12288,
            num_experts=160,
            num_experts_per_token=8,
            num_shared_experts=1,
            expert_intermediate_size=1536,
            attention=GroupedAttention(num_heads=96, num_kv_heads=8, head_dim=128, has_qk_norm=True, has_qkv_bias=True),
            max_context_tokens=131072,
            source="Megatron arguments of GLM-4.5-355B-A32B in THUDM/slime; without its MTP layer",
        ),
    )
}
"""Models of other families, for comparison."""


INDEX_NAME = "model.safetensors.index.json"


def read_model(model: str) -> ModelShape:
    """The shape of a preset, a compared model, a folder's `config.json`, or a safetensors index.

    Raises ConfigError with the nearest name where there is no such model.
    """
    key = model.lower()
    if key in COMPARED:
        return COMPARED[key]
    try:
        found = _read_files(model)
    except OSError as error:
        raise ConfigError(f"cannot read {model[:200]}: {error.strerror}", param="model") from None
    if found is not None:
        return found
    if key in PRESETS:
        return ModelShape.from_config(key, preset(key), native_scheme=PUBLISHED_SCHEMES.get(key, "bf16"))
    names = [*PRESETS, *COMPARED]
    near = nearest(key, names)
    hint = f"; the nearest is {near}" if near else ""
    raise ConfigError(
        f"no model {model!r}{hint}. There are {', '.join(names)}, any folder with a config.json, and any {INDEX_NAME}",
        param="model",
    )


def _read_files(model: str) -> ModelShape | None:
    """Of a folder or an index; None where `model` names neither."""
    path = Path(model)
    is_folder = path.is_dir()
    if not is_folder and not path.name.endswith(".index.json"):
        return None
    folder, index = (path, path / INDEX_NAME) if is_folder else (path.parent, path)
    if (folder / "config.json").is_file():
        return _read_config(model, folder / "config.json")
    if index.is_file():
        known = [*(read_model(name) for name in PRESETS), *COMPARED.values()]
        return read_index(index, _read_json(index), known)
    raise ConfigError(f"{model} has neither a config.json nor a {INDEX_NAME}", param="model")


def _read_config(model: str, file: Path) -> ModelShape:
    config = ModelConfig.from_hf(_read_json(file))
    method = str((config.quantization_config or {}).get("quant_method", ""))
    return ModelShape.from_config(model, config, native_scheme=QUANT_METHODS.get(method, "bf16"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}", param="model") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} holds no JSON object", param="model")
    return raw
