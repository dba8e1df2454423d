"""Kinds of tokens, and the counting of experts against a plain loop over the router's own choices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.conftest import numbered
from typer.testing import CliRunner

from openk2.chat.template import ChatTemplate
from openk2.cli import main as cli
from openk2.config import ModelConfig
from openk2.errors import ConfigError, DataError
from openk2.models import ForwardBatch, K2Model
from openk2.training.init import random_init_
from openk2.training.specialisation import KINDS, classify, count_choices, experts_of, layer_loads, sequences


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig) -> K2Model:
    made = K2Model(replace(tiny_config, hidden_size=32, q_lora_rank=16, kv_lora_rank=16)).float()
    random_init_(made, 0)
    return made


def spelled(template: ChatTemplate, ids: list[int], kinds: list[int], kind: str) -> str:
    return template.tokenizer.decode(i for i, k in zip(ids, kinds, strict=True) if KINDS[k] == kind)


def test_every_token_of_a_conversation_has_its_kind(template: ChatTemplate) -> None:
    made = next(numbered(7, 0))
    ids, kinds = classify(template.render(made.messages, made.tools, add_generation_prompt=False), template)
    assert spelled(template, ids, kinds, "tool calls") == (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
        '{"n": 7}<|tool_call_end|><|tool_calls_section_end|>'
    )
    assert json.loads(spelled(template, ids, kinds, "declarations"))[0]["function"]["name"] == "add"
    assert "add " in spelled(template, ids, kinds, "prose") and "Done ." in spelled(template, ids, kinds, "prose")
    numbers = spelled(template, ids, kinds, "numbers")
    assert numbers.startswith("7") and numbers.endswith("7") and not numbers.strip("70")
    assert set(spelled(template, ids, kinds, "control").replace("<|", " ").split()) >= {"im_end|>", "im_middle|>"}


def test_code_is_told_by_file_and_by_fence(template: ChatTemplate, tmp_path: Path) -> None:
    ids = template.tokenizer.encode("See 12:\n```python\nx = 12\n```\nSo.")
    assert spelled(template, *classify(ids, template), "code") == "x = 12\n"
    assert spelled(template, *classify(ids, template), "numbers") == "12"
    (tmp_path / "a.py").write_text("x = 12\n")
    ((ids, kinds),) = sequences(str(tmp_path / "a.py"), template, 100)
    assert spelled(template, ids, kinds, "code") == "x = 12\n"


def test_counts_are_those_of_the_router(model: K2Model, template: ChatTemplate) -> None:
    data = [classify(template.tokenizer.encode(text), template) for text in ("one 12 two", "three 345 and more")]
    counts = count_choices(model, data, 10**9)
    expected = {i: torch.zeros_like(t) for i, t in counts.items()}
    gate_inputs: list[torch.Tensor] = []
    for i in counts:
        gate = model.decoder_layers[i].mlp.gate  # type: ignore[union-attr]
        hook = gate.register_forward_pre_hook(lambda module, given: gate_inputs.append(given[0]))
        for ids, kinds in data:
            gate_inputs.clear()
            batch = ForwardBatch.packed([len(ids)])
            with torch.no_grad():
                model(torch.tensor(ids), batch)
                scores = torch.sigmoid(gate_inputs[0].float() @ gate.weight.float().T)
            for row, kind in zip(scores, kinds, strict=True):
                for expert in row.topk(model.config.num_experts_per_tok).indices:
                    expected[i][kind, expert] += 1
        hook.remove()
    assert counts.keys() == {1, 2}
    assert all(torch.equal(counts[i], expected[i]) for i in counts)
    assert all(not m._forward_hooks for m in model.modules())


def test_figures_of_a_known_table() -> None:
    table = torch.zeros(len(KINDS), 4, dtype=torch.int64)
    table[KINDS.index("code")] = torch.tensor([6, 2, 0, 0])
    table[KINDS.index("prose")] = torch.tensor([2, 6, 8, 0])
    (layer,) = layer_loads({3: table}, 2)
    assert (layer.layer, layer.idle, layer.imbalance) == (3, 1, 8 / 6)
    code, prose = layer.kinds
    assert (code.kind, code.tokens, prose.kind, prose.tokens) == ("code", 4, "prose", 8)
    assert code.distance == prose.distance == pytest.approx(0.5 * (0.625 + 0.125 + 0.5))
    assert code.top[0] == (0, pytest.approx(0.75 / 0.125)) and code.shares == (0.75, 0.25, 0, 0)
    assert prose.top[0] == (2, None)


def test_each_source_gets_its_part(model: K2Model, template: ChatTemplate, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import this\n" * 500)
    (tmp_path / "b.txt").write_text("words and words\n" * 500)
    layers = experts_of(model, template, [str(tmp_path / "a.py"), str(tmp_path / "b.txt")], 4000)
    assert {k.kind: k.tokens for k in layers[0].kinds} == {"code": 2048, "prose": 2048}
    talks = tmp_path / "t.jsonl"
    talks.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    assert {k.kind for k in experts_of(model, template, [str(talks)], 100)[0].kinds} == {"prose", "control"}
    with pytest.raises(DataError, match="cannot read"):
        experts_of(model, template, [str(tmp_path / "none.jsonl")], 100)
    dense = K2Model(replace(model.config, n_routed_experts=None)).float()
    with pytest.raises(ConfigError, match="no experts"):
        count_choices(dense, [], 1)


def test_the_command_shows_the_embedded_model(tmp_path: Path) -> None:
    run = CliRunner()
    page = tmp_path / "e.html"
    result = run.invoke(cli.app, ["experts", "--tokens", "500", "--json", "--html", str(page)])
    assert result.exit_code == 0, result.output
    layers = json.loads(result.output)["layers"]
    assert [layer["layer"] for layer in layers] == [1, 2, 3, 4, 5]
    assert "tool calls" in {kind["kind"] for kind in layers[0]["kinds"]}
    assert page.read_text().count("<svg") == 5
    assert "tool calls" in run.invoke(cli.app, ["experts", "--tokens", "200"]).output
