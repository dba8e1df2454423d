"""Save and load: names, dtypes, shards, what is skipped, what is refused; safetensors and transformers read it too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openk2.checkpoint import Checkpoint, load_config, load_generation_config, load_model, save_model
from openk2.config import ModelConfig, preset
from openk2.errors import CheckpointError, ConfigError
from openk2.models import ForwardBatch, K2Model

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def _config(**changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return replace(preset("k2-0905"), **(sizes | changes))


def _model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> K2Model:
    model = K2Model(config)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.checkpoint_tensors():
        noise = 0.3 * torch.randn(tensor.shape, generator=generator)
        tensor.copy_(1 + noise if name.endswith("norm.weight") else noise)
    return model.to(dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(_model(_config()), tmp_path / "model")


def _logits(model: K2Model) -> torch.Tensor:
    with torch.no_grad():
        return model.compute_logits(model(torch.arange(9), ForwardBatch.packed([9])))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(tmp_path: Path, max_shard_bytes: int, dtype: torch.dtype) -> None:
    model = _model(_config(), dtype)
    folder = save_model(model, tmp_path / "model", max_shard_bytes=max_shard_bytes)
    loaded = load_model(folder)
    for (name, ours), (other, theirs) in zip(model.checkpoint_tensors(), loaded.checkpoint_tensors(), strict=True):
        assert name == other and ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
    assert torch.equal(_logits(model), _logits(loaded))
    assert not loaded.training


def test_k2_shards_have_five_and_six_digits_and_an_index(tmp_path: Path) -> None:
    folder = save_model(_model(_config()), tmp_path / "k2", max_shard_bytes=20_000)
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(re.fullmatch(r"model-\d{5}-of-\d{6}\.safetensors", name) for name in shards)
    assert shards[0] == f"model-00001-of-{len(shards):06d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for _, t in _model(_config()).checkpoint_tensors())
    other = save_model(_model(_config(model_type="deepseek_v3")), tmp_path / "v3", max_shard_bytes=20_000)
    assert (other / f"model-00001-of-{len(shards):05d}.safetensors").is_file()


def test_safetensors_own_reader_sees_published_names(folder: Path) -> None:
    model = _model(_config())
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {name for name, _ in model.checkpoint_tensors()}
        assert torch.equal(file.get_tensor(EXPERT), dict(model.checkpoint_tensors())[EXPERT])
        assert file.get_slice(BIAS).get_dtype() == "F32"


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_transformers_loads_the_export(tmp_path: Path, max_shard_bytes: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = _model(_config(model_type="deepseek_v3"))
    folder = save_model(model, tmp_path / "model", max_shard_bytes=max_shard_bytes)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(theirs).__name__ == "DeepseekV3ForCausalLM" and theirs.dtype == torch.float32
    theirs.set_experts_implementation("eager")
    with torch.no_grad():
        expected = theirs(torch.arange(9)[None]).logits[0]
    assert (_logits(model) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_checkpoint_that_transformers_wrote_is_loaded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    first = save_model(_model(_config(model_type="deepseek_v3")), tmp_path / "ours")
    transformers.AutoModelForCausalLM.from_pretrained(first).save_pretrained(tmp_path / "theirs")
    assert torch.equal(_logits(load_model(tmp_path / "theirs")), _logits(load_model(first)))


def test_cast_on_save_and_on_load_keeps_the_router_bias(tmp_path: Path) -> None:
    model = _model(_config())
    folder = save_model(model, tmp_path / "model", dtype=torch.bfloat16)
    assert load_config(folder).torch_dtype == "bfloat16"
    stored = load_file(folder / "model.safetensors")
    assert stored[EXPERT].dtype == torch.bfloat16 and stored[BIAS].dtype == torch.float32
    kept, cast = load_model(folder), load_model(folder, dtype=torch.float32)
    assert kept.lm_head.weight.dtype == torch.bfloat16 and cast.lm_head.weight.dtype == torch.float32
    for loaded in (kept, cast):
        gate = loaded.model.layers[1].mlp.gate
        assert torch.equal(gate.e_score_correction_bias, model.model.layers[1].mlp.gate.e_score_correction_bias)


def test_a_bfloat16_router_bias_becomes_float32(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors | {BIAS: tensors[BIAS].bfloat16()})
    assert load_model(folder).model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_rotary_tables_and_prediction_layers_are_skipped(folder: Path) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "model.layers.2.eh_proj.weight": torch.ones(3, 3),
        "model.layers.2.mlp.experts.0.up_proj.weight": torch.ones(3, 3),
    }
    before = _logits(load_model(folder))
    _edit(folder, lambda tensors: tensors | extra)
    assert torch.equal(_logits(load_model(folder)), before)


def _edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def _refused(folder: Path, *parts: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_missing_tensor(folder: Path) -> None:
    _edit(folder, lambda tensors: {k: v for k, v in tensors.items() if k != EXPERT})
    _refused(folder, "model.safetensors", EXPERT, "missing")


def test_an_unexpected_tensor(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors | {"model.layers.0.self_attn.q_norm.weight": torch.ones(2)})
    _refused(folder, "model.safetensors", "q_norm.weight", "not expected")


def test_a_reshaped_tensor(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors | {EXPERT: tensors[EXPERT].T.contiguous()})
    _refused(folder, "model.safetensors", EXPERT, "[32, 16]", "[16, 32]")


def test_a_quantized_tensor_without_a_quantization_config(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors | {EXPERT: tensors[EXPERT].to(torch.float8_e4m3fn)})
    _refused(folder, EXPERT, "F8_E4M3")


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.999])
def test_a_truncated_file(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    _refused(folder, "model.safetensors", "truncated")


def test_a_file_that_is_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n" * 3)
    _refused(folder, "model.safetensors", "not a safetensors file")


def test_shards_come_from_the_index_only(tmp_path: Path) -> None:
    folder = save_model(_model(_config()), tmp_path / "model", max_shard_bytes=20_000)
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    first = index["weight_map"][BIAS]
    (folder / first).rename(folder / "any_name.bin")
    _refused(folder, first, "missing")
    index["weight_map"] = {k: "any_name.bin" if v == first else v for k, v in index["weight_map"].items()}
    index_path.write_text(json.dumps(index))
    load_model(folder)
    moved = {**index["weight_map"], BIAS: index["weight_map"]["lm_head.weight"]}
    index_path.write_text(json.dumps({"weight_map": moved}))
    _refused(folder, moved[BIAS], BIAS, "missing")
    index_path.write_text(json.dumps({"weight_map": {**moved, BIAS: "../elsewhere.safetensors"}}))
    _refused(folder, BIAS, "not to a file of this folder")
    index_path.write_text(json.dumps({"metadata": {}}))
    _refused(folder, "weight_map")


def test_folders_and_configs_that_are_not_there(tmp_path: Path, folder: Path) -> None:
    _refused(tmp_path / "nowhere", "nowhere", "no such checkpoint folder")
    _refused(folder / "config.json", "not a checkpoint folder")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "no config.json")
    (folder / "config.json").write_text("{")
    _refused(folder, "config.json", "JSON")
    (folder / "config.json").write_text("[]")
    _refused(folder, "config.json", "object")
    (folder / "config.json").write_text(json.dumps(_config().to_hf() | {"attention_bias": True}))
    _refused(folder, "config.json", "attention_bias", error=ConfigError)
    (folder / "config.json").write_text(json.dumps(_config().to_hf()))
    (folder / "model.safetensors").unlink()
    _refused(folder, "no safetensors weights")


def test_quantization_is_refused_before_any_weight_is_read(folder: Path) -> None:
    raw = _config().to_hf() | {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(raw))
    _refused(folder, "fp8", "bfloat16", error=ConfigError)


def test_generation_config_and_tokenizer_files_travel(tmp_path: Path, folder: Path) -> None:
    assert load_generation_config(folder) == {"eos_token_id": [1]}
    (folder / "generation_config.json").write_text('{"eos_token_id": 5, "max_length": 77}')
    (folder / "tiktoken.model").write_bytes(b"AA== 0\n")
    (folder / "tokenizer_config.json").write_text("{}")
    copy = save_model(load_model(folder), tmp_path / "copy", copy_from=folder)
    assert load_generation_config(copy) == {"eos_token_id": 5, "max_length": 77}
    assert (copy / "tiktoken.model").read_bytes() == b"AA== 0\n" and (copy / "tokenizer_config.json").is_file()
    greedy = save_model(load_model(folder), tmp_path / "greedy", generation_config={"do_sample": False})
    assert load_generation_config(greedy) == {"do_sample": False}


def test_saving_over_a_checkpoint_replaces_it_and_keeps_other_files(tmp_path: Path) -> None:
    folder = save_model(_model(_config()), tmp_path / "model", max_shard_bytes=20_000)
    (folder / "README.md").write_text("a model card")
    save_model(_model(_config(vocab_size=70)), folder)
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert not (folder / "model.safetensors.index.json").exists()
    assert (folder / "README.md").read_text() == "a model card"
    assert load_model(folder).config.vocab_size == 70
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_nothing_and_harms_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("openk2.checkpoint.save.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(_model(_config(vocab_size=70)), folder)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert load_model(folder).config.vocab_size == 61


def test_headers_tell_what_is_stored(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    stored = {name: tensor for _, name, tensor in checkpoint.tensors()}
    assert stored[EXPERT].shape == (16, 32) and stored[EXPERT].dtype == "F32"
    assert checkpoint.weight_bytes == (folder / "model.safetensors").stat().st_size
