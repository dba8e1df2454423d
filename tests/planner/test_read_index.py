"""A bare safetensors index is recognised by its names and its size, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openk2.config import preset
from openk2.errors import ConfigError
from openk2.planner.read_index import index_facts
from openk2.planner.read_model import COMPARED, read_model

K2_FP8_BYTES = 1_029_173_249_888


def names(layers: int, dense: int, experts: int, suffixes: tuple[str, ...]) -> Iterator[str]:
    """A few tensors of every layer, of its first and its last expert, as the checkpoints call them."""
    for layer in range(layers):
        yield f"model.layers.{layer}.input_layernorm.weight"
        for expert in (0, experts - 1) if layer >= dense else ():
            for suffix in suffixes:
                yield f"model.layers.{layer}.mlp.experts.{expert}.down_proj{suffix}"


def write(folder: Path, size: int | None, layers: int, dense: int, experts: int, *suffixes: str) -> Path:
    file = folder / "model.safetensors.index.json"
    raw: dict[str, Any] = {"weight_map": dict.fromkeys(names(layers, dense, experts, suffixes), "x.safetensors")}
    if size is not None:
        raw["metadata"] = {"total_size": size}
    file.write_text(json.dumps(raw))
    return file


K2 = (61, 1, 384, ".weight", ".weight_scale_inv")


def test_k2_by_its_index(tmp_path: Path) -> None:
    file = write(tmp_path, K2_FP8_BYTES, *K2)
    shape = read_model(str(file))
    assert (shape.parameters, shape.native_scheme) == (1_026_408_232_448, "fp8")
    assert shape.max_context_tokens == 131_072  # the July release has the same index and half the window
    assert "k2 or k2-0905" in shape.name
    assert read_model(str(tmp_path)).parameters == shape.parameters  # a folder with nothing else


def test_the_scheme_shows_in_the_names(tmp_path: Path) -> None:
    shape = read_model(str(write(tmp_path, 594_205_904_896, 61, 1, 384, ".weight_packed", ".weight_scale")))
    assert shape.native_scheme == "int4"
    assert index_facts({"weight_map": {"model.layers.0.mlp.up_proj.g_idx": "x"}}).scheme == "gptq"
    assert index_facts({"weight_map": {"model.layers.0.mlp.up_proj.qweight": "x"}}).scheme == "awq"
    assert index_facts({"weight_map": {"model.layers.0.mlp.up_proj.weight": "x"}}).scheme == "bf16"


def test_other_families_are_recognised(tmp_path: Path) -> None:
    qwen = COMPARED["qwen3-coder-480b"]
    file = write(tmp_path, 2 * qwen.parameters, qwen.num_layers, 0, qwen.num_experts, ".weight")
    assert read_model(str(file)).parameters == qwen.parameters


def test_a_config_beside_the_index_is_read_instead(tmp_path: Path) -> None:
    file = write(tmp_path, 1, *K2)
    (tmp_path / "config.json").write_text(json.dumps(preset("nano").to_hf()))
    assert read_model(str(file)).parameters == read_model("nano").parameters


@pytest.mark.parametrize(
    ("size", "shape", "message"),
    [
        (K2_FP8_BYTES // 2, K2, "61 layers, 1 dense, 384 experts, fp8, 514,586,624,944 bytes.* no model known here"),
        (None, (60, 1, 384, ".weight"), "no model known here; .* put the model's config.json beside it"),
    ],
)
def test_an_unknown_index_says_what_it_tells(
    size: int | None, shape: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_model(str(write(tmp_path, size, *shape)))


@pytest.mark.parametrize("size", [0, -1, "1 TB", float("inf")])
def test_a_size_that_is_none_is_left_out(size: Any, tmp_path: Path) -> None:
    assert "k2" in read_model(str(write(tmp_path, size, *K2))).name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "names no tensor of a layer"),
        ('{"weight_map": [1], "metadata": 3}', "no tensor of a layer"),
    ],
)
def test_files_that_are_no_index(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_model(str(file))


def test_an_empty_folder_and_a_missing_index(tmp_path: Path) -> None:
    for model in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with pytest.raises(ConfigError, match="neither a config.json nor a model.safetensors.index.json"):
            read_model(str(model))
