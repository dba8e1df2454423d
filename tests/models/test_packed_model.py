"""A packed model: the same function as its plain one, within its formats; determinism on logit bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.conftest import Recorder, prompt, random_model, tiny_config

from openk2 import checkpoint
from openk2.checkpoint import Quantization, load_model, save_model
from openk2.engine import Engine, EngineConfig
from openk2.errors import CheckpointError, ConfigError
from openk2.models import ForwardBatch, K2Model
from openk2.ops import cpu

FORMATS = ["bf16", "int8", "int4", "int4,head=int8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(random_model(tiny_config("k2-0905")).to(torch.bfloat16), tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module", params=FORMATS)
def packed(request: pytest.FixtureRequest, folder: Path) -> K2Model:
    return load_model(folder, quantization=Quantization.parse(request.param))


def logits(model: K2Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.compute_logits(model(ids, ForwardBatch.packed([len(ids)])))


def test_bf16_equals_the_plain_model(folder: Path) -> None:
    ids = torch.tensor(prompt(50))
    plain, packed = load_model(folder, dtype=torch.float32), load_model(folder, quantization=Quantization.parse("bf16"))
    want = logits(plain, ids)
    assert (logits(packed, ids) - want).abs().max() < 2e-5 * want.abs().max()


@pytest.mark.parametrize(("formats", "largest"), [("int8", 0.02), ("int4", 0.25)])
def test_quantised_logits_stay_near(tmp_path: Path, formats: str, largest: float) -> None:
    """Of a model with weights as small as first ones are: larger ones amplify each change of an expert."""
    folder = save_model(checkpoint.random_model(tiny_config("k2-0905")), tmp_path / "model")
    ids = torch.tensor(prompt(50))
    want = logits(load_model(folder), ids)
    got = logits(load_model(folder, quantization=Quantization.parse(formats)), ids)
    assert largest / 10 < (got - want).norm() / want.norm() < largest


@pytest.mark.skipif(not cpu.available(), reason="the extension is not built")
def test_chunks_mates_and_threads_change_no_bit(packed: K2Model, shared_loops: None) -> None:
    text = prompt(61, seed=1)
    alone = Recorder(Engine(packed, EngineConfig(enable_prefix_caching=False)))
    expected = alone.add("alone", text, max_tokens=10)
    alone.run()
    before = torch.get_num_threads()
    for chunk, threads in ((7, 1), (512, 2)):
        torch.set_num_threads(threads)
        recorder = Recorder(Engine(packed, EngineConfig(max_num_batched_tokens=chunk)))
        answer = recorder.add("same", text, max_tokens=10)
        for i in range(4):
            recorder.add(str(i), prompt(5 + 13 * i, seed=50 + i), max_tokens=9 + i)
        recorder.run()
        torch.set_num_threads(before)
        assert answer.tokens == expected.tokens
        assert all(torch.equal(a, b) for a, b in zip(answer.logits, expected.logits, strict=True))


def test_random_weights_in_the_layout() -> None:
    config = tiny_config("k2-0905")
    models = [checkpoint.random_model(config, seed=3, quantization=Quantization.parse("int4")) for _ in range(2)]
    first, second = (logits(model, torch.tensor(prompt(20))) for model in models)
    assert torch.equal(first, second) and first.isfinite().all() and first.std() > 0


def test_a_packed_model_is_not_saved(packed: K2Model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be saved"):
        save_model(packed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_by_name() -> None:
    assert Quantization.parse("INT4") == Quantization("int4", "int4", "int4")
    assert Quantization.parse("int4, head=int8") == Quantization("int4", "int4", "int8")
    assert Quantization.parse("int4,head=int8").code == "int4-int4-int8"
    for wrong in ("int3", "", "int4,tail=int8", "head=int3"):
        with pytest.raises(ConfigError, match="must be one of bf16, int8, int4, and may name parts"):
            Quantization.parse(wrong)
    with pytest.raises(ConfigError, match="say first what holds"):
        Quantization.parse("head=int8")
