"""Plans: what fits, what is refused and why, and what must hold for every plan."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from openk2.errors import ConfigError
from openk2.planner import Hardware, Load, Parallelism, Plan, read_hardware
from openk2.planner.hardware import with_memory
from openk2.planner.make_plan import layouts, make_plan
from openk2.planner.read_model import read_model

K2 = read_model("k2-0905")
CARD = """[device."My Card"]
kind = "gpu"
memory_bytes = 80e9
bandwidth_bytes_per_s = 2e12
bf16_flops_per_s = 1e15
"""


def plan(hardware: str = "16xH200", context: int = 4096, batch: int = 1, **options: object) -> Plan:
    load = Load(context_tokens=context, batch=batch, prompt_tokens=min(1000, context), output_tokens=1000)
    return make_plan(K2, read_hardware(hardware), load, **options)  # type: ignore[arg-type]


def test_sixteen_h200_hold_256k_in_fp8() -> None:
    made = plan(context=262_144)
    assert made.refusal is None and made.speed is not None
    assert made.memory.weights_bytes == 1_029_173_249_888
    assert made.largest_context_tokens == 262_144


def test_eight_h200_do_not_hold_it_and_say_what_is_missing() -> None:
    made = plan("8xH200", context=262_144)
    assert made.speed is None and made.refusal is not None
    assert made.refusal.missing_bytes == made.memory.needed_bytes - 143_771 * 2**20 > 0  # as its driver reports it
    assert made.refusal.missing_total_bytes == 8 * made.refusal.missing_bytes
    assert made.advice == (f"lower --context to {made.largest_context_tokens}",)
    assert plan("8xH200", context=made.largest_context_tokens).refusal is None
    assert plan("8xH200", context=made.largest_context_tokens + 1000).refusal is not None


@pytest.mark.parametrize(("device", "quantization"), [("H100", "fp8"), ("H200", "bf16")])
def test_what_the_advice_names_fits(device: str, quantization: str) -> None:
    made = plan(f"8x{device}", quantization=quantization)
    count = int(made.advice[0].split(" x ")[0].split()[-1])
    assert count % 8 == 0, "whole nodes"
    assert plan(f"{count}x{device}", quantization=quantization).refusal is None


def test_a_refused_plan_shows_the_layout_that_holds_most() -> None:
    made = plan("8xH200", context=262_144)
    others = [plan("8xH200", context=262_144, layout=layout) for layout in layouts(K2, 8)]
    assert made.largest_context_tokens == max(other.largest_context_tokens for other in others) > 0


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    layout = Parallelism(tp_size=16)
    most = plan(context=131_072, layout=layout).largest_batch
    assert most > 1
    assert plan(context=131_072, batch=most, layout=layout).refusal is None
    too_many = plan(context=131_072, batch=most + 4, layout=layout)  # logits take room too, so not just one more
    assert too_many.refusal is not None
    assert too_many.advice[0].endswith(f"--load batch={too_many.largest_batch}")


@pytest.mark.parametrize(("hardware", "logged"), [("8xH200", 46.80), ("8xH100", 0.9)])
def test_cache_memory_of_published_runs(hardware: str, logged: float) -> None:
    """GiB per device that vLLM logged for the cache at TP8: K2-Thinking on H200 (its recipe), and K2.5, which adds a
    vision tower to the same shape, on H100 (SemiAnalysisAI/InferenceX issue 1587). Nothing was fitted to them."""
    load = Load(context_tokens=262_144)
    made = make_plan(read_model("k2-thinking"), read_hardware(hardware), load, layout=Parallelism(tp_size=8))
    others = sum(term.bytes for term in made.memory.terms if term.name != "cache")
    left = (made.memory.device_bytes - others) / 2**30
    assert abs(left - logged) < 0.05 * made.memory.device_bytes / 2**30  # as planner.md says


def test_one_bf16_step_of_a_small_model_by_hand() -> None:
    """No experts to guess, one device: bytes of all weights but the lookup, over the bandwidth reached."""
    made = make_plan(read_model("moonlight"), read_hardware("1xH100"), Load(context_tokens=2000))
    assert made.speed is not None
    model = made.model
    idle = (model.active_parameters_without_embedding) * 2  # router biases are float32: 26 x 64 x 2 bytes more
    assert made.speed.decode.weights_s == pytest.approx((idle + 26 * 64 * 2) / (3350e9 * 0.7), rel=1e-9)


def test_processors_by_memory_channels() -> None:
    device = read_hardware("CPU-24ch-DDR5-6000-1536GB").device
    assert (device.bandwidth_bytes_per_s, device.memory_bytes) == (1152e9, 1536 * 10**9)


@pytest.mark.parametrize(("name", "billions"), [("qwen3-coder-480b", 480.15), ("glm-4.5", 352.8)])
def test_compared_models(name: str, billions: float) -> None:
    assert read_model(name).parameters == pytest.approx(billions * 1e9, rel=0.003)


def test_a_folder_with_a_config(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from openk2.config import preset

    (tmp_path / "config.json").write_text(json.dumps(preset("nano").to_hf()))
    assert read_model(str(tmp_path)).parameters == read_model("nano").parameters


def test_the_planner_loads_nothing_heavy() -> None:
    script = "import sys, openk2.planner, openk2.planner.make_plan, openk2.planner.cost\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "numpy", "rich", "pydantic", "matplotlib"}
    slow = {"openk2.config", "difflib", "tomllib"}  # a third of the time, for errors, files and presets only
    assert not (heavy | slow) & set(loaded)


def test_hardware_is_counted() -> None:
    hardware: Hardware = read_hardware("16 x h200")
    assert (hardware.num_devices, hardware.num_nodes) == (16, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[device]\nMine = 3", r"device Mine must be a table \[device.NAME\], not 3"),
        ('[device."My Card"]\nkind = "gpu"\nmemory_bytes = nan', "lacks bandwidth_bytes_per_s"),
        (
            CARD.replace("2e12", "nan"),
            "bandwidth_bytes_per_s of device My Card must be a number of at least 0, not nan",
        ),
        (CARD.replace("80e9", "inf"), "memory_bytes of device My Card must be a number of at least 0, not inf"),
    ],
)
def test_hardware_files_with_mistakes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "cards.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hardware("8xH200", file=file)


def test_a_name_with_blanks_is_found(tmp_path: Path) -> None:
    (tmp_path / "cards.toml").write_text(CARD)
    for name in ("2x my card", "2xMy-Card"):
        assert str(read_hardware(name, file=tmp_path / "cards.toml")) == "2 x My Card"


# experts on disk


def streamed(memory_gb: int, quantization: str = "int4", model: str = "moonlight", **changes: float) -> Plan:
    hardware = read_hardware(f"CPU-2ch-DDR5-5600-{memory_gb}GB")
    hardware = replace(hardware, device=replace(hardware.device, **changes))  # type: ignore[arg-type]
    load = Load(context_tokens=4096, prompt_tokens=1000, output_tokens=1000)
    return make_plan(read_model(model), hardware, load, quantization=quantization)


def test_what_does_not_fit_a_processors_memory_is_read_from_disk() -> None:
    made, whole = streamed(8), streamed(32)
    assert whole.memory.disk_experts_fraction == 0 and whole.speed is not None and whole.speed.decode.disk_s == 0
    assert made.refusal is None and made.speed is not None
    share = made.memory.disk_experts_fraction
    assert 0 < share < 1
    assert made.memory.needed_bytes == made.memory.device_bytes, "the hot experts take what is left"
    routed = 11_227_664_896 - sum(
        t.bytes for t in whole.memory.terms if t.name.startswith("weights") and "routed" not in t.name
    )
    assert made.speed.decode.disk_s == pytest.approx(share * routed * 6 / 64 / 7e9, rel=1e-3), "6 of 64, at 7 GB/s"
    assert any("7.0 GB/s" in line for line in made.assumptions)


def test_more_memory_is_never_slower_until_all_fits() -> None:
    rates = [made.speed.decode_tokens_per_s for gb in (6, 8, 10, 12, 14, 24) if (made := streamed(gb)).speed]
    assert len(rates) == 6 and rates == sorted(rates)


def test_what_cannot_hold_one_tokens_experts_is_refused_with_the_bytes() -> None:
    made = streamed(4)
    assert made.refusal is not None and made.speed is None and made.largest_context_tokens == 0
    assert f"{made.memory.needed_bytes:,}" in made.advice[0]
    enough = read_hardware("CPU-2ch-DDR5-5600-4GB")
    # a share of the memory is kept free, so the advice is tried with the same reserve
    reserve = enough.device.memory_bytes * (1 - enough.device.usable_fraction)
    grown = made.memory.needed_bytes - reserve
    fits = streamed(4, memory_bytes=int(grown / enough.device.usable_fraction) + 10)
    assert fits.refusal is None


@pytest.mark.parametrize(
    ("change", "quantization", "model"),
    [({"disk_bytes_per_s": 0.0}, "int4", "moonlight"), ({}, "fp8", "k2-0905"), ({}, "int4", "glm-4.5")],
)
def test_only_what_the_engine_can_stream_is_planned_so(change: dict[str, float], quantization: str, model: str) -> None:
    made = streamed(8, quantization, model, **change)
    assert made.refusal is not None and made.memory.disk_experts_fraction == 0


def test_memory_is_capped_and_never_grown() -> None:
    hardware = read_hardware("CPU-2ch-DDR5-5600-8GB")
    assert with_memory(hardware, 4 << 30).device.memory_bytes == 4 << 30
    assert with_memory(hardware, 1 << 50) == hardware
