"""`memory` is a promise: counted before loading, kept while loading and running, refused where it cannot be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from openk2 import LLM, SamplingParams
from openk2.checkpoint import Quantization, random_model, save_model
from openk2.cli.serve import command
from openk2.config import preset, read_bytes, show_bytes
from openk2.engine import EngineConfig
from openk2.engine.memory_plan import MemoryPlan, plan_memory
from openk2.errors import ConfigError
from openk2.llm import source as source_module
from openk2.llm.source import Source, load_engine

BF16 = Quantization.parse("bf16")
PLAN = MemoryPlan(
    promised=1000, process=100, weights=200, latent_cache=50, buffers=50, experts=700, least_experts=90, num_blocks=2
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("8g", 8 << 30), ("1.5 MiB", 3 << 19), ("8GB", 8 * 10**9), ("123", 123), ("2tib", 2 << 40)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert read_bytes(text, param="memory") == size


@pytest.mark.parametrize("text", ["", "lots", "8 pints", "-1", "0", "0.1b", "1e9", "8GiB8"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ConfigError, match="looks like 8GiB"):
        read_bytes(text, param="memory")


def test_amounts_are_shown_short() -> None:
    assert (show_bytes(3 << 20), show_bytes(5 << 29)) == ("3 MiB", "2.50 GiB")


def test_what_is_left_goes_to_the_experts() -> None:
    PLAN.check()
    assert PLAN.expert_cache_bytes == 600
    assert replace(PLAN, experts=600).expert_cache_bytes is None, "all of them fit"
    replace(PLAN, least_experts=600).check()


def test_the_missing_bytes_are_told() -> None:
    with pytest.raises(ConfigError, match=r"missing \(this process and its libraries 0 MiB, weights") as raised:
        replace(PLAN, process=611).check()
    assert "1 bytes are missing" in str(raised.value) and raised.value.param == "memory"
    with pytest.raises(ConfigError, match="bytes are missing"):
        plan_memory(preset("k2"), 8 << 30, quantization=BF16, dtype=torch.float32, engine=EngineConfig())


def test_the_terms_are_those_of_the_model() -> None:
    config, engine = preset("mini"), EngineConfig(max_model_len=1024, max_num_seqs=2)
    plan = plan_memory(config, 1 << 40, quantization=BF16, dtype=torch.float32, engine=engine)
    expert = 3 * config.hidden_size * config.moe_intermediate_size * 2
    assert plan.experts == 11 * 64 * expert and plan.least_experts == 9 * expert
    assert plan.expert_cache_bytes is None
    assert plan.latent_cache == 2 * 1024 * 12 * 576 * 4 + 16 * 12 * 576 * 4, "two sequences and the null block"
    plain = plan_memory(config, 1 << 40, quantization=None, dtype=torch.bfloat16, engine=engine)
    assert plain.experts == 0 and plain.weights > plan.experts
    larger = plan_memory(
        config, 1 << 40, quantization=BF16, dtype=torch.float32, engine=engine, largest_tensor_bytes=1 << 33
    )
    assert larger.buffers > 1 << 34


def test_a_small_promise_shrinks_the_latent_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openk2.engine.memory_plan.resident_bytes", lambda: 200 << 20)  # not that of a whole suite
    config, engine = replace(preset("mini"), n_routed_experts=8), EngineConfig(max_model_len=1024)
    plan = plan_memory(config, 2 << 30, quantization=BF16, dtype=torch.float32, engine=engine)
    null_block = 16 * 12 * 576 * 4
    assert plan.latent_cache <= (2 << 30) // 8 + null_block < 16 * 1024 * 12 * 576 * 4


def test_only_for_cpus() -> None:
    with pytest.raises(ConfigError, match="take --device cpu"):
        load_engine(Source.find("k2-nano"), EngineConfig(), device="meta", memory=1 << 40)


def test_a_model_that_fits_is_in_memory() -> None:
    engine = load_engine(Source.find("k2-nano"), EngineConfig(), memory=16 << 30)
    assert engine.stats().experts is None and engine.config.num_blocks


def test_answers_and_figures_of_a_model_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=12)
    with LLM("k2-nano") as llm:
        want = llm.generate("What is 12 * 7?", sampling).token_ids
        assert {figure.name for figure in llm.figures} == {"openk2:expert_choices"}
    expert = 3 * 192 * 32 * 2
    monkeypatch.setattr(
        source_module,
        "plan_memory",
        lambda *_, **__: replace(PLAN, promised=400 + 40 * expert, experts=160 * expert, num_blocks=300),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with LLM("k2-nano", memory=1) as llm:
        assert llm.generate("What is 12 * 7?", sampling).token_ids == want
        figures = {figure.name: figure.value for figure in llm.figures}
    assert figures["openk2:expert_lookups"] > figures["openk2:expert_hits"] > 0 < figures["openk2:expert_bytes_read"]
    assert len(list((tmp_path / "openk2" / "packed").glob("*.experts"))) == 1


def test_not_for_an_upstream() -> None:
    app = Typer()
    app.command()(command)
    done = CliRunner().invoke(app, ["--upstream", "http://127.0.0.1:9/v1", "--memory", "8GiB"])
    assert isinstance(done.exception, ConfigError) and "--memory" in str(done.exception)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_promise_is_kept(tmp_path: Path) -> None:
    """From packing to the last token, in a process that would hold more than was promised with all experts in it."""
    config = replace(
        preset("mini"),
        vocab_size=2048,
        hidden_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    folder = save_model(random_model(config, dtype=torch.bfloat16), tmp_path / "model")
    program = f"""
import torch
from pathlib import Path
from openk2.config import SamplingParams
from openk2.checkpoint import Quantization
from openk2.engine import EngineConfig, EngineRequest
from openk2.engine.memory_plan import plan_memory
from openk2.llm.source import Source, load_engine
source, sizes = Source.find({str(folder)!r}), EngineConfig(max_model_len=300, max_num_seqs=2)
kwargs = dict(quantization=Quantization.parse("bf16"))
whole = plan_memory(source.config, 1 << 40, dtype=torch.float32, engine=sizes, **kwargs)
memory = (1 << 40) - whole.left + whole.experts // 5
engine = load_engine(source, sizes, packed_folder=Path({str(tmp_path)!r}) / "p", memory=memory, **kwargs)
for i in range(2):
    engine.add_request(EngineRequest(str(i), range(200), SamplingParams(temperature=0.0, max_tokens=20)))
while engine.has_work:
    engine.step()
stats = engine.stats().experts
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(memory, int(peak) * 1024, stats.slots, stats.experts, stats.lookups, whole.experts)
"""
    for start in ("packs", "has packed"):
        done = subprocess.run(
            [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        memory, peak, slots, experts, lookups, size = map(int, done.stdout.split())
        assert peak <= memory, start
        assert slots < experts / 4 and lookups > experts
        assert peak + size * (1 - slots / experts) > memory, "as would not be kept with all experts in memory"
