"""Guides name the right tokens, their loss is the cross-entropy of attention, and training moves the heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.test_trainer import make_trainer

import openk2
from openk2.chat.messages import Message, ToolCall, ToolSpec
from openk2.chat.template import ChatTemplate
from openk2.errors import ConfigError
from openk2.tokenizer import Tokenizer
from openk2.training.data import conversations
from openk2.training.guide_loss import GuideLoss
from openk2.training.guides import DECISION, KINDS, find_guides
from openk2.training.packing import render_example
from openk2.training.recipe import GuidesConfig, Recipe

NANO = Path(openk2.__file__).parent / "assets" / "k2-nano"


@pytest.fixture(scope="module")
def nano_template() -> ChatTemplate:
    return ChatTemplate(Tokenizer.from_folder(NANO))


def spec(name: str, description: str, **parameters: str) -> ToolSpec:
    properties = {key: {"description": told, "type": "string"} for key, told in parameters.items()}
    return ToolSpec.function(name, description, {"type": "object", "properties": properties})


def told(template: ChatTemplate, tools: tuple[ToolSpec, ...], messages: tuple[Message, ...]) -> dict[str, list[str]]:
    """Each kind's rows as `<the row's token and the one before> -> <targets' tokens>`."""
    ids = render_example(template, tools, messages).token_ids
    names = {v: k for k, v in template.tokenizer.specials.items()}
    show = [names.get(i) or template.tokenizer.decode([i]) for i in ids]
    return {
        kind: [f"{show[row - 1]}{show[row]} -> {' '.join(show[p] for p in places)}" for row, places in rows]
        for kind, rows in find_guides(ids, template.tokenizer).items()
    }


def test_each_kind_looks_where_its_name_says(nano_template: ChatTemplate) -> None:
    tools = (
        spec("play_list", "Put on music in order", title="Which list"),
        spec("delete_part", "Throw away", part="The part"),
    )
    call = ToolCall("functions.delete_part:0", "delete_part", '{"part": "red box"}')
    messages = (
        Message("user", "delete part red box"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "gone 77", tool_call_id=call.id),
        Message("assistant", "It is gone 77."),
    )
    rows = told(nano_template, tools, messages)
    own, before = '":"', '[{"'
    labels = [r.split(" -> ")[1] for r in rows["label"]]
    assert labels[0] == before and "play" in labels and labels[-1] == "de", (
        "no tool before, then play_list, then itself"
    )
    assert [r.split(" -> ") for r in rows["previous"]] == [[own + "play", before], [own + "de", "play"]]
    assert any(r.startswith(" part -> part") for r in rows["named"])
    assert all(r.endswith("-> <|im_system|>") for r in rows["described"]), "no description has a word of the request"
    assert " part -> de" in rows["named_owner"]
    assert [r.split(" -> ")[1] for r in rows["tool"]] == ["de", "de"], "the call's dot and the turn's start"
    assert [r.split(" -> ")[0] for r in rows["tool"]] == ["functions.", "assistant<|im_middle|>"]
    assert all("part" in r.split(" -> ")[1] for r in rows["request"])
    assert len(rows["parameter"]) == 1 and "part" in rows["parameter"][0].split(" -> ")[1]
    ends = [r.split(" -> ")[0] for r in rows["key_of"]]
    assert [r.split(" -> ") for r in rows["key_of"]] == [[ends[0], "title"], [ends[1], "part"]]
    assert [r.split(" -> ")[1] for r in rows["told_of"]] == ["Which list", "part"]
    assert all(end.endswith("}}") or "}" in end for end in ends)
    assert [r.split(" -> ")[1] for r in rows["belongs"]] == ["play", "de"]
    assert all(r.endswith("-> <|im_system|>") for r in rows["bound"][:-1]), "words that speak of a tool only"
    assert rows["bound"][-1] == " red -> " + rows["slot"][0].split(" -> ")[1]
    before = ["0<|tool_call_argument_begin|>", '<|tool_call_argument_begin|>{"', "assistant<|im_middle|>"]
    assert [r.split(" -> ") for r in rows["given"]] == [[row, "red"] for row in before]
    assert [r.split(" -> ")[1] for r in rows["key"]] == ["part", "part", "<|im_system|>"]
    assert rows["asked"] == ["assistant<|im_middle|> -> <|im_system|>"], "nothing is missing"
    assert [r.split(" -> ")[0] for r in rows["slot"]] == ['part":', '": "'] and "}" in rows["slot"][0].split(" -> ")[1]
    assert [r.split(" -> ")[0] for r in rows["decision"]] == [
        "assistant<|im_middle|>",
        "functions.",
        '<|tool_call_argument_begin|>{"',
        'part":',
        '": "',
        "box",
        '"}<|tool_call_end|>',
        "assistant<|im_middle|>",
    ], "call or answer, which tool, which key, what kind of value, which value, where it ends, whether one more follows"
    copied = "".join(r.split(" -> ")[1] for r in rows["source"])
    assert "red" in copied and "box" in copied and "77" in copied


def test_a_value_whose_parameter_is_named_after_it_is_not_bound(nano_template: ChatTemplate) -> None:
    tools = (spec("delete", "Throw away", part="The part", level="How much"),)
    call = ToolCall("functions.delete:0", "delete", '{"level": "high", "part": "red box"}')
    messages = (
        Message("user", "delete red box as the part level high please"),
        Message("assistant", None, tool_calls=(call,)),
    )
    rows = told(nano_template, tools, messages)
    assert len(rows["slot"]) == 4
    assert [r.split(" -> ")[0] for r in rows["bound"]] == [" high"]


def test_what_is_asked_for_is_told_by_the_call_that_follows(nano_template: ChatTemplate) -> None:
    tools = (spec("delete", "Throw away", part="Which", file_name="Who"),)
    call = ToolCall("functions.delete:0", "delete", '{"part": "red box", "file_name": "Anna"}')
    messages = (
        Message("user", "delete red box"),
        Message("assistant", "Please tell me the file name."),
        Message("user", "Anna"),
        Message("assistant", None, tool_calls=(call,)),
    )
    rows = told(nano_template, tools, messages)
    end = next(r.split(" -> ")[0] for r in rows["key_of"] if r.endswith("-> file name"))
    missing, complete = (r.split(" -> ")[1] for r in rows["asked"])
    assert end.endswith(missing) and complete == "<|im_system|>"
    assert [r.split(" -> ")[1] for r in rows["given"] if r.startswith("assistant")] == ["red", "An"]
    assert [r.split(" -> ")[1] for r in rows["key"]] == ["part", "part", "file", "file", "<|im_system|>"]
    copied = [r.split(" -> ")[1] for r in rows["source"]]
    assert copied[-2:] == ["file", "name"], "from the declaration"
    assert copied[:5] == ["le", "te", "_", "name", "red"], "what follows a name's start and a key's, and the value"
    assert {r.split(" -> ")[0] for r in rows["bound"]} >= {" red"}


def test_names_with_one_start_are_guided_where_they_part(nano_template: ChatTemplate) -> None:
    tools = (spec("play_list", "Put on music"), spec("play_part", "Act"))
    call = ToolCall("functions.play_part:0", "play_part", "{}")
    messages = (Message("user", "play part"), Message("assistant", None, tool_calls=(call,)))
    rows = told(nano_template, tools, messages)
    assert [r.split(" -> ") for r in rows["tool"]] == [
        ["functions.", "play"],
        ["play_", "part"],
        ["assistant<|im_middle|>", "play"],
    ]


def test_no_target_lies_in_the_future_and_copies_are_equal(nano_template: ChatTemplate) -> None:
    seen = dict.fromkeys((*KINDS, DECISION), 0)
    for _, c in zip(range(40), conversations(5, "train", stage=3), strict=False):
        ids = render_example(nano_template, c.tools, c.messages).token_ids
        for kind, rows in find_guides(ids, nano_template.tokenizer).items():
            seen[kind] += len(rows)
            for row, places in rows:
                assert row < len(ids) - 1
                if kind == DECISION:
                    continue
                assert places and min(places) >= 0 and max(places) <= row
                if kind == "source":
                    assert ids[row + 1] == ids[places[0]]
    assert min(seen.values()) > 20, seen


def test_text_that_is_not_a_declaration_has_no_guides(nano_template: ChatTemplate) -> None:
    tokenizer = nano_template.tokenizer
    ids = tokenizer.encode("plain text ") * 3
    assert not any(find_guides(ids, tokenizer).values())
    broken = tokenizer.encode_with_specials("<|im_system|>tool_declare<|im_middle|>[{oops<|im_end|>")
    assert not any(find_guides(broken, tokenizer).values())


def test_the_loss_is_the_cross_entropy_of_the_attention() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(9, 3, 8), torch.randn(9, 3, 8)
    guides = [{"tool": [(3, (1,)), (2, (0, 2))]}, {"tool": [(4, (0, 1, 4))]}]
    loss = GuideLoss(guides, (0, 4, 9), {"tool": [(1, 2), (1, 0)]})
    loss.observe(0, q, k, 0.3)
    assert not loss.means()
    loss.observe(1, q, k, 0.3)
    expected = []
    for start, row, places in ((0, 3, (1,)), (0, 2, (0, 2)), (4, 4, (0, 1, 4))):
        for head in (2, 0):
            scores = (k[start : start + row + 1, head] @ q[start + row, head]) * 0.3
            expected.append(-scores.log_softmax(0)[list(places)].mean())
    torch.testing.assert_close(loss.means()["tool"], torch.stack(expected).mean())


def test_the_gradient_of_the_loss_is_autograds() -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(9, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    guides = [{"tool": [(3, (1,)), (2, (0, 2))], "key": [(1, (0,))]}, {"tool": [(4, (0, 1, 4))], "key": []}]
    loss = GuideLoss(guides, (0, 4, 9), {"tool": [(1, 2), (1, 0)], "key": [(1, 2)]})
    loss.observe(1, q, k, 0.3)
    expected = []
    for start, row, places, heads, weight in (
        (0, 3, (1,), (2, 0), 2.0 / 6),
        (0, 2, (0, 2), (2, 0), 2.0 / 6),
        (4, 4, (0, 1, 4), (2, 0), 2.0 / 6),
        (0, 1, (0,), (2,), 3.0),
    ):
        for head in heads:
            scores = (k[start : start + row + 1, head] @ q[start + row, head]) * 0.3
            expected.append(-scores.log_softmax(0)[list(places)].mean() * weight)
    means = loss.means()
    ours = torch.autograd.grad(2.0 * means["tool"] + 3.0 * means["key"], [q, k])
    for got, want in zip(ours, torch.autograd.grad(torch.stack(expected).sum(), [q, k]), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_training_turns_the_guided_head(recipe: Recipe, template: ChatTemplate, tmp_path: Path) -> None:
    guided = replace(
        recipe,
        guides=GuidesConfig(weight=1.0, until_tokens=10**9, heads={"source": [[2, 0]]}),
        optimizer=replace(recipe.optimizer, lr=1e-2),
        schedule=replace(recipe.schedule, stable_tokens=10**6),
    )
    trainer = make_trainer(guided, template, tmp_path)
    losses = [trainer.train_step()["guides"]["source"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0], losses
    trainer.tokens = 10**9
    assert "guides" not in trainer.train_step(), "past until_tokens"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown guide 'names'"):
        GuidesConfig(heads={"names": [[0, 0]]})


def test_decisions_weigh_more_and_the_weights_sum_to_one() -> None:
    guides = [{DECISION: []}, {DECISION: [(1, ())]}]
    supervised = torch.tensor([True, False, True, True])
    loss = GuideLoss(guides, (0, 2, 4), {})
    assert loss.weigh(supervised, 3.0).tolist() == pytest.approx([0.2, 0.2, 0.6])
