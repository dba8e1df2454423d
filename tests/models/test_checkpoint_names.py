"""Parameter counts, tensor names and shapes of the published checkpoints, on the meta device."""

from __future__ import annotations

import pytest
import torch

from openk2.config import preset
from openk2.models import K2Model, num_active_parameters, num_parameters


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = K2Model(preset(name))
    tensors = list(model.checkpoint_tensors())
    shapes = {tensor_name: tuple(tensor.shape) for tensor_name, tensor in tensors}
    assert len(shapes) == len(tensors), "a name appears twice"
    return shapes


def _expected_k2() -> dict[str, tuple[int, ...]]:
    """The K2 checkpoint's list, spelled out."""
    want: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (163840, 7168),
        "model.norm.weight": (7168,),
        "lm_head.weight": (163840, 7168),
    }

    def mlp(prefix: str, width: int) -> None:
        want[f"{prefix}.gate_proj.weight"] = want[f"{prefix}.up_proj.weight"] = (width, 7168)
        want[f"{prefix}.down_proj.weight"] = (7168, width)

    for n in range(61):
        layer = f"model.layers.{n}"
        want[f"{layer}.input_layernorm.weight"] = want[f"{layer}.post_attention_layernorm.weight"] = (7168,)
        want[f"{layer}.self_attn.q_a_proj.weight"] = (1536, 7168)
        want[f"{layer}.self_attn.q_a_layernorm.weight"] = (1536,)
        want[f"{layer}.self_attn.q_b_proj.weight"] = (12288, 1536)
        want[f"{layer}.self_attn.kv_a_proj_with_mqa.weight"] = (576, 7168)
        want[f"{layer}.self_attn.kv_a_layernorm.weight"] = (512,)
        want[f"{layer}.self_attn.kv_b_proj.weight"] = (16384, 512)
        want[f"{layer}.self_attn.o_proj.weight"] = (7168, 8192)
        if n == 0:
            mlp(f"{layer}.mlp", 18432)
            continue
        want[f"{layer}.mlp.gate.weight"] = (384, 7168)
        want[f"{layer}.mlp.gate.e_score_correction_bias"] = (384,)
        mlp(f"{layer}.mlp.shared_experts", 2048)
        for e in range(384):
            mlp(f"{layer}.mlp.experts.{e}", 2048)
    return want


def test_k2_0905_is_the_published_checkpoint() -> None:
    shapes = _shapes("k2-0905")
    assert len(shapes) == 69_975
    assert sum(torch.Size(s).numel() for s in shapes.values()) == 1_026_408_232_448
    assert shapes == _expected_k2()


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("k2", 1_026_408_232_448),
        ("k2-0905", 1_026_408_232_448),
        ("k2-thinking", 1_026_408_232_448),
        ("deepseek-v3", 671_026_419_200),
        ("moonlight", 15_960_110_208),
        ("deepseek-v2-lite", 15_706_484_224),  # softmax routing has no correction bias
    ],
)
def test_total_parameters(name: str, total: int) -> None:
    assert num_parameters(preset(name)) == total


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("k2-0905", 32_861_500_928),
        ("deepseek-v3", 37_552_297_472),
        ("moonlight", 2_914_776_192),
        ("deepseek-v2-lite", 2_661_150_208),
    ],
)
def test_active_parameters(name: str, active: int) -> None:
    assert num_active_parameters(preset(name)) == active


def test_a_plain_query_projection_and_no_router_bias() -> None:
    shapes = _shapes("deepseek-v2-lite")
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == (16 * 192, 2048)
    assert shapes["model.layers.3.mlp.shared_experts.up_proj.weight"] == (2 * 1408, 2048)
    assert not any("q_a_" in name or "q_b_" in name or "e_score" in name for name in shapes)


def test_the_router_bias_keeps_float32_and_its_value() -> None:
    model = K2Model(preset("nano"))
    gate = model.model.layers[1].mlp.gate
    gate.e_score_correction_bias.data.fill_(1.0001)  # rounds to 1.0 in bfloat16
    model.to(torch.bfloat16)
    assert gate.weight.dtype == torch.bfloat16
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert torch.all(gate.e_score_correction_bias == torch.tensor(1.0001))


def test_checkpoint_tensors_are_views_of_the_models_memory() -> None:
    model = K2Model(preset("nano"))
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert {t.untyped_storage().data_ptr() for _, t in model.checkpoint_tensors()} == owned
    assert sum(t.numel() for _, t in model.checkpoint_tensors()) == sum(p.numel() for p in model.parameters())
