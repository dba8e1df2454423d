"""The embedded model in transformers: the same weights, the same prompts, the same greedy tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from openk2 import assets
from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.chat.messages import Message, ToolCall, ToolSpec
from openk2.checkpoint import load_model, save_model
from openk2.config import SamplingParams
from openk2.llm import LLM
from openk2.models import ForwardBatch

pytestmark = pytest.mark.peers

NEW_TOKENS = 48
TIE = 1e-3
"""Two logits nearer than this are a tie, which sums in another order may break either way."""

WEATHER = ToolSpec.function(
    "get_weather",
    "Weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
ASKED = Message("user", "What is 37 * 12 and what is 19 + 23?")
CALLS = Message(
    "assistant",
    None,
    tool_calls=(
        ToolCall("functions.calculate:0", "calculate", '{"expression":"37 * 12"}'),
        ToolCall("functions.calculate:1", "calculate", '{"expression":"19 + 23"}'),
    ),
)
RESULTS = (
    Message("tool", "444", tool_call_id="functions.calculate:0"),
    Message("tool", "42", tool_call_id="functions.calculate:1"),
)
CONVERSATIONS: dict[str, tuple[tuple[Message, ...], tuple[ToolSpec, ...]]] = {
    "no tools": ((Message("user", "Hello! Who are you?"),), ()),
    "one tool": ((Message("user", "How is the weather in Oslo?"),), (WEATHER,)),
    "parallel": ((ASKED,), BUILTIN_TOOLS[2:]),
    "results": ((ASKED, CALLS, *RESULTS), BUILTIN_TOOLS[3:4]),
    "no tool fits": ((Message("user", "Book me a table for two, please."),), (WEATHER, BUILTIN_TOOLS[4])),
    "ids of all kinds": (
        (Message("system", "Réponds 简短 👋 <|im_end|>"), Message("user", "x = {'a': [1, 2]}")),
        (WEATHER,),
    ),
}


@pytest.fixture(scope="module")
def ours() -> Iterator[LLM]:
    with LLM("k2-nano", dtype=torch.float32) as llm:
        yield llm


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as we export it, in float32."""
    source = assets.path("k2-nano")
    model = load_model(source, dtype=torch.float32)
    return save_model(model, tmp_path_factory.mktemp("export") / "k2-nano", copy_from=source)


@pytest.fixture(scope="module")
def theirs(export: Path) -> Any:
    """The export, read by transformers itself. It calls this architecture deepseek_v3."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    raw = json.loads((export / "config.json").read_text(encoding="utf-8"))
    config = transformers.DeepseekV3Config(**(raw | {"model_type": "deepseek_v3"}))
    model, info = transformers.DeepseekV3ForCausalLM.from_pretrained(
        export, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    model.set_experts_implementation("eager")
    model.generation_config.eos_token_id = None
    return model.eval()


def greedy(theirs: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """transformers' continuation, past the end of the turn, and by how much each of its tokens led the second best."""
    output = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    leads = [float(best - second) for best, second in (logits[0].topk(2).values for logits in output.logits)]
    return output.sequences[0, len(prompt) :].tolist(), leads


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_tokens_are_those_of_transformers(ours: LLM, theirs: Any, name: str) -> None:
    messages, tools = CONVERSATIONS[name]
    prompt = ours.template.render(messages, tools)
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    answer = ours.generate(prompt, sampling).token_ids
    expected, leads = greedy(theirs, prompt)
    assert len(answer) == len(expected) == NEW_TOKENS
    for at, (token, reference) in enumerate(zip(answer, expected, strict=True)):
        if token != reference:
            assert leads[at] < TIE, f"token {at} is {token}, not {reference}, which leads by {leads[at]:.4f}"
            return  # a tie: from here on they continue different texts


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_logits_of_the_prompt_are_those_of_transformers(ours: LLM, export: Path, theirs: Any, name: str) -> None:
    """Greedy tokens hide small errors where the model is sure of itself; logits do not."""
    prompt = torch.tensor(ours.template.render(*CONVERSATIONS[name]))
    model = load_model(export)
    with torch.no_grad():
        logits = model.compute_logits(model(prompt, ForwardBatch.packed([len(prompt)])))
        expected = theirs(prompt[None]).logits[0]
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-4


def test_the_export_has_the_published_names(export: Path) -> None:
    """Read by safetensors itself; names and layout as in the published checkpoints, spelled out."""
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    with safe_open(export / "model.safetensors", framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    attention = [
        *("q_a_proj", "q_a_layernorm", "q_b_proj"),
        *("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"),
    ]
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        expected |= {f"{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
        expected |= {f"{layer}.self_attn.{part}.weight" for part in attention}
        mlps = ["mlp"]
        if number >= config["first_k_dense_replace"]:
            mlps = ["mlp.shared_experts", *(f"mlp.experts.{e}" for e in range(config["n_routed_experts"]))]
            expected |= {f"{layer}.mlp.gate.weight", f"{layer}.mlp.gate.e_score_correction_bias"}
        expected |= {f"{layer}.{mlp}.{part}_proj.weight" for mlp in mlps for part in ("gate", "up", "down")}
    assert set(tensors) == expected

    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    last = f"model.layers.{config['num_hidden_layers'] - 1}"
    kv_rows = heads * (config["qk_nope_head_dim"] + config["v_head_dim"])
    assert tensors[f"{last}.self_attn.kv_b_proj.weight"].shape == (kv_rows, config["kv_lora_rank"])
    assert tensors[f"{last}.mlp.experts.0.gate_proj.weight"].shape == (config["moe_intermediate_size"], hidden)
    with safe_open(assets.path("k2-nano") / "model.safetensors", framework="pt") as file:
        for name, tensor in tensors.items():
            assert torch.equal(tensor, file.get_tensor(name).float()), name
