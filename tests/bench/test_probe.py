"""Speed from slices: what is scaled, that depth is found in the cache, and that a plan takes the rates over."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from openk2.bench import probe as probes
from openk2.bench.prefix import pretend_cached
from openk2.bench.probe import ProbedSpeed, StepLine, probe, slice_layers
from openk2.checkpoint import Quantization, random_model
from openk2.cli.plan import command
from openk2.config import ModelConfig, SamplingParams, preset
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.errors import ConfigError
from openk2.planner import Load, read_hardware
from openk2.planner.make_plan import make_plan
from openk2.planner.measured import with_measured_speed
from openk2.planner.read_model import read_model

app = Typer()
app.command()(command)


@pytest.fixture
def tiny() -> ModelConfig:
    return replace(preset("nano"), hidden_size=64, num_hidden_layers=9, num_attention_heads=2, vocab_size=300)


def test_what_the_prefix_cache_is_told_is_found_in_it(tiny: ModelConfig) -> None:
    engine = Engine(random_model(tiny), EngineConfig(num_blocks=5, block_size=4, max_num_seqs=1))
    prompt = torch.randint(0, 300, (14,)).tolist()
    assert pretend_cached(engine, prompt[:11]) == 8, "whole blocks"
    engine.add_request(EngineRequest("0", prompt, SamplingParams(max_tokens=1)))
    (output,) = engine.step()
    assert output.cached_tokens == 8
    with pytest.raises(ConfigError, match="no room for 20 tokens"):
        pretend_cached(engine, list(range(20)))


@pytest.mark.parametrize(
    ("layers", "dense", "weights_gib", "slices"),
    [
        (61, 1, 61 * 9, (2, 3)),  # a layer is more than the slices may hold
        (27, 1, 8, (2, 8)),
        (27, 1, 27, (2, 4)),
        (6, 1, 0, (2, 6)),
        (2, 1, 0, (2, 2)),
        (2, 3, 0, (2, 2)),
    ],
)
def test_slices(tiny: ModelConfig, layers: int, dense: int, weights_gib: int, slices: tuple[int, int]) -> None:
    config = replace(tiny, num_hidden_layers=layers, first_k_dense_replace=dense)
    assert slice_layers(config, weights_gib << 30) == slices


def test_layers_repeat_and_depth_adds() -> None:
    speed = ProbedSpeed((2, 4), 512, StepLine(1.0, 0.001), 1, StepLine(0.01, 0.0001))
    assert speed.decode_s(100) == pytest.approx(0.02)
    assert speed.prompt_s(512) == pytest.approx(1.0)
    assert speed.prompt_s(1024) == pytest.approx(1.0 + 1.512), "the second chunk has 512 tokens before it"
    assert speed.prompt_s(512, 1000) == pytest.approx(2.0)


def test_a_slice_is_scaled_up_to_the_model(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer takes 1 s and 1 ms per token of depth, and what does not repeat 10 s."""

    def seconds(engine: Engine, depth: int, *rest: object) -> tuple[float, float]:
        layers = engine.model_config.num_hidden_layers
        return 10 + layers * (1 + 0.001 * depth), 20 + 2 * layers

    monkeypatch.setattr(probes, "_time", seconds)
    speed = probe(tiny, None, weights_bytes=0)
    assert speed.layers == (2, 8)
    assert (speed.chunk.start_s, speed.chunk.per_token_s) == (pytest.approx(19), pytest.approx(0.009))
    assert (speed.decode.start_s, speed.decode.per_token_s) == (pytest.approx(38), 0.0)


def test_it_measures_what_it_says(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "DEPTH", 64)
    rounds: list[None] = []
    speed = probe(
        tiny,
        Quantization.parse("bf16"),
        weights_bytes=1 << 40,
        chunk_tokens=40,
        batch=3,
        on_round=lambda: rounds.append(None),
    )
    assert len(rounds) == probes.NUM_ROUNDS
    assert speed.layers == (2, 3) and speed.batch == 3
    assert speed.prompt_s(40) > 0 and speed.decode_s(10) > 0


def test_a_plan_takes_the_measured_rates() -> None:
    load = Load(context_tokens=4096, batch=4, prompt_tokens=1000, output_tokens=200, cached_fraction=0.5)
    plan = make_plan(read_model("moonlight"), read_hardware("CPU-12ch-DDR5-6000-768GB"), load, quantization="int4")
    speed = with_measured_speed(plan, decode_step_s=0.1, prompt_s=2.5, measured="with a clock").speed
    assert speed is not None and plan.speed is not None
    assert (speed.decode_tokens_per_s_per_request, speed.decode_tokens_per_s) == (pytest.approx(10), pytest.approx(40))
    assert (speed.prefill_tokens_per_s, speed.time_to_first_token_s) == (pytest.approx(200), 2.5)
    assert speed.requests_per_s == pytest.approx(1 / (2.5 + 200 * 0.1 / 4))
    assert speed.decode == plan.speed.decode, "by what it is spent on, as before"
    refused = make_plan(read_model("k2-0905"), read_hardware("8xH100"), load)
    assert with_measured_speed(refused, decode_step_s=1, prompt_s=1, measured="") is refused


def test_here_is_measured_with_layers_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "DEPTH", 64)
    done = CliRunner().invoke(app, ["k2-nano", "--here", "--context", "256", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert any("measured here with openk2's engine on 2 and 6 of 6 layers" in text for text in plan["assumptions"])
    assert any(text.startswith("by the roofline") for text in plan["assumptions"])
