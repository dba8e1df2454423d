"""Our adapters in the peft library: the same names, and the same logits as after our own merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openk2 import assets
from openk2.checkpoint import load_model, save_model
from openk2.models import ForwardBatch
from openk2.training.adapter_files import merge_adapter_, save_adapter
from openk2.training.lora import LoraConfig, adapters, add_adapters_

pytestmark = pytest.mark.peers


def test_peft_reads_what_we_write(tmp_path: Path) -> None:
    """Of the attention's matrices: for transformers 5, PEFT takes every `gate_proj` and the like for an expert's."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    source = assets.path("k2-nano")
    base = save_model(load_model(source, dtype=torch.float32), tmp_path / "base", copy_from=source)
    config = LoraConfig(rank=4, alpha=8.0)
    ours = load_model(base)
    add_adapters_(ours, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, adapter in adapters(ours):
        torch.nn.init.normal_(adapter.lora_B.weight, std=0.05, generator=generator)
    save_adapter(ours, config, str(base), tmp_path / "adapter")

    raw = json.loads((base / "config.json").read_text(encoding="utf-8"))
    shape = transformers.DeepseekV3Config(**(raw | {"model_type": "deepseek_v3"}))
    theirs = transformers.DeepseekV3ForCausalLM.from_pretrained(
        base, config=shape, dtype=torch.float32, attn_implementation="eager"
    )
    theirs.set_experts_implementation("eager")
    prompt = torch.arange(10, 80)
    with torch.no_grad():
        plain = theirs(prompt[None]).logits[0]
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    names = {name for name, _ in adapted.named_modules() if hasattr(_, "lora_A") and len(_.lora_A)}
    assert names == {f"base_model.model.{name}" for name, _ in adapters(ours)}
    merged = load_model(base)
    assert merge_adapter_(merged, tmp_path / "adapter") == len(names)
    with torch.no_grad():
        expected = adapted(prompt[None]).logits[0]
        found = merged.compute_logits(merged(prompt, ForwardBatch.packed([len(prompt)])))
        ours_live = ours.compute_logits(ours(prompt, ForwardBatch.packed([len(prompt)])))
    assert float((expected - plain).abs().max()) > 0.05, "the adapter does something"
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) / scale < 1e-4
    assert float((ours_live - expected).abs().max()) / scale < 1e-4
