"""Parameters, bytes and cache, against published and independently computed numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from openk2.config import preset
from openk2.errors import ConfigError
from openk2.planner import Kind, ModelShape, Parallelism, cache_bytes_per_token, scheme, weights_bytes
from openk2.planner.formats import SCHEMES, weights_bytes_by_kind
from openk2.planner.parallel import check_parallelism, device_cache_bytes_per_token, device_weights_bytes_by_kind


def shape(name: str) -> ModelShape:
    return ModelShape.from_config(name, preset(name))


def test_parameters_of_k2_by_kind() -> None:
    counts = shape("k2-0905").parameters_by_kind()
    assert counts == {
        Kind.EMBEDDING: 1_174_405_120,
        Kind.LM_HEAD: 1_174_405_120,
        Kind.ATTENTION: 6_168_569_856,
        Kind.NORM: 881_664,
        Kind.DENSE_MLP: 396_361_728,
        Kind.ROUTED_EXPERTS: 1_014_686_023_680,
        Kind.SHARED_EXPERTS: 2_642_411_520,
        Kind.ROUTER: 165_150_720 + 23_040,
    }


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("k2", 1_026_408_232_448, 32_861_500_928),
        ("k2-0905", 1_026_408_232_448, 32_861_500_928),
        ("k2-thinking", 1_026_408_232_448, 32_861_500_928),
        ("deepseek-v3", 671_026_419_200, 37_552_297_472),
        ("moonlight", 15_960_110_208, 2_914_776_192),
    ],
)
def test_parameters(name: str, total: int, active: int) -> None:
    model = shape(name)
    assert (model.parameters, model.active_parameters) == (total, active)


@pytest.mark.parametrize("name", ["moonlight", "deepseek-v2-lite", "nano"])
def test_parameters_are_those_of_the_model(name: str) -> None:
    models = pytest.importorskip("openk2.models")
    config = preset(name)
    assert shape(name).parameters == models.num_parameters(config)
    assert shape(name).active_parameters == models.num_active_parameters(config)


def test_active_parameters_of_k2_without_the_lookup() -> None:
    assert shape("k2-0905").active_parameters_without_embedding == 31_687_095_808


def test_linear_flops_are_two_per_active_weight() -> None:
    model = shape("k2-0905")
    vectors = sum(t.parameters for t in model.tensors() if not t.is_matrix)
    weights = model.active_parameters - vectors - 2 * model.vocab_size * model.hidden_size
    assert model.linear_flops_per_token == 2 * weights


@pytest.mark.parametrize(
    ("quantization", "size"),
    [
        ("fp8", 1_029_173_249_888),  # the published checkpoint
        ("bf16", 2_052_816_510_976),
        ("int4", 594_205_904_896),  # K2-Thinking's layout
    ],
)
def test_bytes_of_k2(quantization: str, size: int) -> None:
    model = shape("k2-0905")
    assert weights_bytes(model, scheme(quantization)) == size
    assert sum(weights_bytes_by_kind(model, scheme(quantization)).values()) == size


@pytest.mark.parametrize(
    ("quantization", "gigabytes"), [("Q4_K_M", 622), ("q5-k-m", 730), ("Q6_K", 842), ("Q8_0", 1091), ("q4_0", 577)]
)
def test_gguf_sizes_of_k2(quantization: str, gigabytes: float) -> None:
    assert weights_bytes(shape("k2-0905"), scheme(quantization)) == pytest.approx(gigabytes * 1e9, rel=0.002)


def test_the_official_index_names_the_fp8_scales_too() -> None:
    """One float32 scale per block of 128 x 128: counted here tensor by tensor, the half-full block included."""
    block_scales = 61 * ((12 * 56) + (96 * 12) + (5 * 56) + (128 * 4) + (56 * 64)) + 3 * 144 * 56
    block_scales += 60 * 385 * 3 * 16 * 56
    model = shape("k2-0905")
    linear = sum(
        t.parameters
        for t in model.tensors()
        if t.is_matrix and t.kind not in (Kind.EMBEDDING, Kind.LM_HEAD, Kind.ROUTER)
    )
    rest = model.parameters - linear
    router_bias = 60 * 384
    assert weights_bytes(model, scheme("fp8")) == linear + 4 * block_scales + 2 * (rest - router_bias) + 4 * router_bias


@pytest.mark.parametrize(
    ("cache_format", "size"), [("bf16", 70_272), ("fp8", 35_136), ("fp8_ds_mla", 40_016), ("f32", 140_544)]
)
def test_cache_of_a_k2_token(cache_format: str, size: int) -> None:
    assert cache_bytes_per_token(shape("k2-0905"), cache_format) == size


@pytest.mark.parametrize(("name", "size"), [("k2-thinking", 70_272), ("deepseek-v3", 70_272), ("moonlight", 31_104)])
def test_cache_of_relatives(name: str, size: int) -> None:
    assert cache_bytes_per_token(shape(name)) == size


def test_expanded_cache_is_35_times_the_latent() -> None:
    attention = shape("k2-0905").attention
    ratio = attention.expanded_values_per_token_per_layer / attention.cache_values_per_token_per_layer
    assert ratio == pytest.approx(35.6, abs=0.05)


@pytest.mark.parametrize(("dcp_size", "tokens"), [(1, 715_072), (8, 5_721_088)])
def test_tokens_in_vllms_cache_on_eight_devices(dcp_size: int, tokens: int) -> None:
    """vLLM's log in its recipe for K2-Thinking has these tokens for 46.80 GiB of cache per device at TP8. This divides
    the log's own GiB: it checks the bytes per token, and says nothing of how many GiB are left. That is predicted in
    `test_make_plan`."""
    model = shape("k2-thinking")
    layout = Parallelism(tp_size=8, dcp_size=dcp_size)
    per_token = device_cache_bytes_per_token(cache_bytes_per_token(model), model, layout)
    assert 46.80 * 2**30 / per_token == pytest.approx(tokens, rel=0.01)


@pytest.mark.parametrize("quantization", SCHEMES)
def test_sizes_are_near_their_bits(quantization: str) -> None:
    bits = {"f32": 32, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4.63, "awq": 4.16, "gptq": 4.16}
    size = weights_bytes(shape("k2-0905"), scheme(quantization))
    expected = bits.get(quantization) or float(scheme(quantization).default.bits)
    assert 8 * size / shape("k2-0905").parameters == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("layout", [Parallelism(tp_size=16), Parallelism(dp_size=16, expert_parallel=True)])
def test_devices_hold_the_model_once_or_more(layout: Parallelism) -> None:
    model, fp8 = shape("k2-0905"), scheme("fp8")
    held = sum(device_weights_bytes_by_kind(model, fp8, layout).values()) * 16
    assert held >= weights_bytes(model, fp8)
    experts = device_weights_bytes_by_kind(model, fp8, layout)[Kind.ROUTED_EXPERTS] * 16
    assert experts == pytest.approx(weights_bytes_by_kind(model, fp8)[Kind.ROUTED_EXPERTS], rel=1e-9)


def test_data_parallel_ranks_copy_attention() -> None:
    model, fp8 = shape("k2-0905"), scheme("fp8")
    copies = device_weights_bytes_by_kind(model, fp8, Parallelism(dp_size=16, expert_parallel=True))
    assert copies[Kind.ATTENTION] == weights_bytes_by_kind(model, fp8)[Kind.ATTENTION]


def test_pipeline_stages_hold_their_layers() -> None:
    model, fp8 = shape("k2-0905"), scheme("fp8")
    staged = device_weights_bytes_by_kind(model, fp8, Parallelism(tp_size=8, pp_size=2))
    flat = device_weights_bytes_by_kind(model, fp8, Parallelism(tp_size=8))
    assert Fraction(staged[Kind.ATTENTION], flat[Kind.ATTENTION]) == pytest.approx(31 / 61, rel=1e-6)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Parallelism(tp_size=6), "does not divide 64 attention heads; those that do: 1, 2, 4, 8"),
        (Parallelism(pp_size=62), "exceeds 61 layers"),
        (Parallelism(dp_size=512, expert_parallel=True), "exceeds 384 experts"),
    ],
)
def test_layouts_that_cannot_be(layout: Parallelism, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_parallelism(shape("k2-0905"), layout)


def test_experts_touched_by_a_batch() -> None:
    model = shape("k2-0905")
    assert model.experts_touched(1) == pytest.approx(8)
    assert model.experts_touched(64) == pytest.approx(384 * (1 - (376 / 384) ** 64))
    assert model.experts_touched(1e5) == pytest.approx(384)


def test_an_unknown_quantization_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no quantization 'fp7'; the nearest is fp8. There are f32, bf16, fp8"):
        scheme("fp7")
