"""Other people's command lines: what they ask for, and which of their flags there are not."""

from __future__ import annotations

import pytest

from openk2.errors import ConfigError
from openk2.planner import Load, Parallelism
from openk2.planner.deploy import known_versions
from openk2.planner.deploy.here import Here, catalogue_name
from openk2.planner.deploy.read_line import read_line
from openk2.planner.deploy.shortfall import holding_hardware, nearest_model
from openk2.planner.read_model import read_model

GUIDE_VLLM = r"""vllm serve moonshotai/Kimi-K2-Instruct-0905-FP8 \
--tensor-parallel-size 16 \
--max-model-len 262144 \
--enable-auto-tool-choice \
--tool-call-parser kimi_k2 \
--temperature 0.6"""
GUIDE_SGLANG = r"""# TP16 with DP+EP for throughput
sglang serve moonshotai/Kimi-K2-Instruct-0905-FP8 \
--tp 16 --dp 2 --ep 4 \
--disaggregate-prefill-decode \
--tool-call-parser kimi_k2"""


@pytest.mark.parametrize("version", known_versions("vllm"))
def test_the_public_guides_line_for_vllm(version: str) -> None:
    line = read_line(GUIDE_VLLM, version)
    assert (line.engine, line.model) == ("vllm", "moonshotai/Kimi-K2-Instruct-0905-FP8")
    assert (line.layout, line.context_tokens) == (Parallelism(tp_size=16), 262_144)
    assert len(line.faults) == 1 and "no --temperature" in line.faults[0]


def test_the_public_guides_line_for_sglang() -> None:
    line = read_line(GUIDE_SGLANG)
    assert line.engine == "sglang"
    assert any("--disaggregate-prefill-decode" in fault and "1P1D" in fault for fault in line.faults)


def test_the_official_guides_line_has_no_fault() -> None:
    flags = "--port 8000 --served-model-name kimi-k2 --trust-remote-code --tensor_parallel_size=16"
    line = read_line(f"vllm serve MODEL {flags} --enable-auto-tool-choice --tool-call-parser kimi_k2")
    assert not line.faults and line.layout == Parallelism(tp_size=16)
    assert read_line("vllm serve MODEL --port 8000 -tp 8 -pp 2").layout == Parallelism(tp_size=8, pp_size=2)
    assert not read_line("python -m sglang.launch_server --model-path k2 --tp 16 --nnodes 2 --node-rank 0").faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("vllm serve k2 --tensor-paralel-size 8", "the nearest is --tensor-parallel-size"),
        ("vllm serve k2 --enable-expert-parallel 8", "takes no value"),
        ("vllm serve k2 --enable-auto-tool-choice", "needs --tool-call-parser"),
    ],
)
def test_faults_are_named(text: str, fault: str) -> None:
    assert any(fault in one for one in read_line(text).faults)


def test_a_size_that_is_no_number_is_left_out() -> None:
    assert read_line("vllm serve k2 --tensor-parallel-size \u00b2 -pp 2").layout == Parallelism(pp_size=2)


@pytest.mark.parametrize("text", ["ollama run kimi", "vllm serve --port 1", "vllm serve 'k2", ""])
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_line(text)


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", None),
    ],
)
def test_names_of_the_driver_lead_to_the_catalogue(gpu: str, name: str | None) -> None:
    assert catalogue_name(gpu) == name


def test_what_is_here() -> None:
    eight = Here(memory_bytes=10**12, gpus=("NVIDIA H200",) * 8, engines={})
    assert str(eight.hardware) == "8 x H200"
    assert Here(memory_bytes=10**12, gpus=("NVIDIA H200", "Tesla T4"), engines={}).hardware is None
    assert Here(memory_bytes=10**12, gpus=(), engines={}).hardware is None


def test_the_nearest_model_is_the_largest_that_fits() -> None:
    def near(gigabytes: float) -> tuple[str, str, int]:
        found = nearest_model(Here(memory_bytes=int(gigabytes * 1e9), gpus=(), engines={}), 262_144)
        assert found is not None
        return found.model.name, found.quantization, found.load.context_tokens

    assert near(16)[0] == "moonlight" and near(16)[2] == 8192
    assert near(64) == ("moonlight", "bf16", 8192)
    assert near(1500) == ("k2-0905", "int8", 262_144)
    assert near(2)[0] == "nano"
    assert nearest_model(Here(memory_bytes=10**8, gpus=(), engines={}), 1024) is None


def test_hardware_that_holds_it_does_and_the_cheapest_is_first() -> None:
    k2, load = read_model("k2-0905"), Load(context_tokens=262_144)
    found = holding_hardware(k2, load, quantization=None, cache_format="bf16", layout=Parallelism(tp_size=16))
    assert {plan.hardware.num_devices for plan, _ in found} == {16}
    assert any(str(plan.hardware) == "16 x H200" for plan, _ in found)
    assert all(plan.refusal is None for plan, _ in found)
    assert [usd for _, usd in found] == sorted(usd for _, usd in found)
    odd = Parallelism(tp_size=2, pp_size=6)  # of no whole nodes of eight
    assert not holding_hardware(k2, load, quantization=None, cache_format="bf16", layout=odd)
    assert not any(
        plan.hardware.device.name == "H100" for plan, _ in found
    )  # 80 GB: the latent is copied on every rank
