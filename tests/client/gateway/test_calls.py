"""What upstreams do to calls, and what a client gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openk2.chat.events import CallBegin, CallDelta, CallEnd, Finished, TextDelta
from openk2.chat.messages import Message, ToolCall, ToolChoice, Usage
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn, Turn
from openk2.client.gateway import InvalidCalls
from openk2.client.gateway.calls import InvalidCallError

from .conftest import ADD, ASK, complete, gateway, listed

GOOD = ScriptedTurn(calls=[ScriptedCall("add", {"a": 1})])
BAD = {
    "undeclared": ScriptedCall("subtract", {"a": 1}),
    "not json": ScriptedCall("add", '{"a": 1'),
    "schema": ScriptedCall("add", {"a": "one"}),
}
LEAKED = (
    "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.add:9<|tool_call_argument_begin|>"
    '{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.greet:9<|tool_call_argument_begin|>'
    '{"who": "<b>"}<|tool_call_end|><|tool_calls_section_end|>'
)


async def test_ids_are_canonical_in_both_directions() -> None:
    upstream = ScriptedProvider([ScriptedTurn(calls=[ScriptedCall("add", {"a": n}, id="call_x") for n in (1, 2)])])
    history = (
        Message("user", "hi"),
        Message("assistant", None, tool_calls=(ToolCall("toolu_01", "greet", "{}"),)),
        Message("tool", "done", tool_call_id="toolu_01"),
    )
    answer = await complete(gateway(upstream), replace(ASK, messages=history))
    assert [call.id for call in answer.message.tool_calls] == ["functions.add:1", "functions.add:2"]
    asked = upstream.requests[0].messages
    assert asked[1].tool_calls[0].id == asked[2].tool_call_id == "functions.greet:0"


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (ScriptedCall("functions.add:4", {"a": 1}), '{"a":1}'),
        (ScriptedCall("functions.add", {"a": 1}), '{"a":1}'),
        (ScriptedCall("add", '"{\\"a\\": 1}"'), '{"a": 1}'),
        (ScriptedCall("greet", "  "), "{}"),
    ],
)
async def test_what_is_repaired(call: ScriptedCall, arguments: str) -> None:
    answer = await complete(gateway(ScriptedProvider([ScriptedTurn(calls=[call])])))
    (got,) = answer.message.tool_calls
    assert got.name in ("add", "greet") and got.arguments == arguments and answer.finish_reason == "tool_calls"


@pytest.mark.parametrize("piece_chars", [1, 3, 7, 1000])
async def test_calls_left_in_the_text_are_read_from_there(piece_chars: int) -> None:
    through = gateway(ScriptedProvider([LEAKED], piece_chars=piece_chars))
    answer = await complete(through)
    assert answer.message.content == "Let me see." and answer.finish_reason == "tool_calls"
    assert [(call.id, call.arguments) for call in answer.message.tool_calls] == [
        ("functions.add:0", '{"a": 1}'),
        ("functions.greet:1", '{"who": "<b>"}'),
    ]
    assert through.counts["leaked"] == 1


async def test_markers_are_text_where_nothing_can_be_called() -> None:
    answer = await complete(gateway(ScriptedProvider([LEAKED])), replace(ASK, tools=()))
    assert answer.message.content == LEAKED and answer.finish_reason == "stop"


@pytest.mark.parametrize("kind", BAD)
async def test_an_invalid_call_is_asked_for_again_once(kind: str) -> None:
    bad = ScriptedTurn(calls=[BAD[kind]])
    through = gateway(ScriptedProvider([bad, GOOD]))
    assert (await complete(through)).message.tool_calls[0].arguments == '{"a":1}'
    assert through.counts["asked again"] == through.counts[f"invalid {kind}"] == 1
    upstream = ScriptedProvider([bad, bad, GOOD])
    with pytest.raises(InvalidCallError) as caught:
        await complete(gateway(upstream))
    assert caught.value.kind == kind and upstream.remaining == 1


async def test_what_has_begun_is_not_begun_again() -> None:
    upstream = ScriptedProvider([ScriptedTurn("Well", calls=[BAD["schema"]]), GOOD])
    events = []
    with pytest.raises(InvalidCallError, match="add.*'one'|one"):
        async for event in gateway(upstream).stream(ASK):
            events.append(event)  # noqa: PERF401 - what came before the error is what is tested
    assert events == [TextDelta("Well")] and upstream.remaining == 1


async def test_error_means_no_second_try() -> None:
    upstream = ScriptedProvider([ScriptedTurn(calls=[BAD["undeclared"]]), GOOD])
    with pytest.raises(InvalidCallError, match=r"'subtract'.*allowed: add, greet"):
        await complete(gateway(upstream, invalid_calls=InvalidCalls.ERROR))
    assert upstream.remaining == 1


async def test_pass_hands_on_arguments_as_they_come() -> None:
    turn = ScriptedTurn(calls=[BAD["schema"]], usage=Usage(1, 2))
    through = gateway(ScriptedProvider([turn], piece_chars=6), invalid_calls=InvalidCalls.PASS)
    assert await listed(through.stream(ASK)) == [
        CallBegin(0, "functions.add:0", "add"),
        CallDelta(0, '{"a":"'),
        CallDelta(0, 'one"}'),
        CallEnd(0),
        Finished("tool_calls", Usage(1, 2)),
    ]
    assert through.counts["invalid schema"] == 1


async def test_text_is_handed_on_piece_by_piece() -> None:
    events = await listed(gateway(ScriptedProvider(["a < b and c<|d"], piece_chars=2)).stream(ASK))
    texts = [event.text for event in events if isinstance(event, TextDelta)]
    assert texts == ["a ", "< ", "b ", "an", "d ", "c", "<|d"], "only what may begin a marker waits"


@pytest.mark.parametrize(
    ("choice", "turn", "kind"),
    [
        (ToolChoice("none"), GOOD, "undeclared"),
        (ToolChoice("required", "greet"), GOOD, "undeclared"),
        (ToolChoice("required"), "No.", "missing"),
        (ToolChoice(), LEAKED.replace("functions.add:9", ""), "undeclared"),
        (ToolChoice(), LEAKED[: LEAKED.index('{"who')], "cut"),
    ],
)
async def test_what_the_request_does_not_allow(choice: ToolChoice, turn: Turn, kind: str) -> None:
    with pytest.raises(InvalidCallError) as caught:
        await complete(
            gateway(ScriptedProvider([turn]), invalid_calls=InvalidCalls.ERROR), replace(ASK, tool_choice=choice)
        )
    assert caught.value.kind == kind


async def test_one_call_where_one_is_allowed() -> None:
    turn = ScriptedTurn(calls=[ScriptedCall("add", {"a": n}) for n in (1, 2)])
    answer = await complete(gateway(ScriptedProvider([turn])), replace(ASK, tool_choice=ToolChoice(parallel=False)))
    assert [call.arguments for call in answer.message.tool_calls] == ['{"a":1}']


async def test_a_call_cut_by_the_limit_is_not_delivered() -> None:
    turn = ScriptedTurn(
        calls=[ScriptedCall("add", {"a": 1}), ScriptedCall("add", {"a": 22222})], finish_reason="length"
    )
    answer = await complete(gateway(ScriptedProvider([turn])))
    assert len(answer.message.tool_calls) == 1 and answer.finish_reason == "length"


async def test_a_caller_may_opt_out_of_the_schema_but_not_of_the_names() -> None:
    request = replace(ASK, tools=(ADD,), grammar=False)
    assert (
        await complete(gateway(ScriptedProvider([ScriptedTurn(calls=[BAD["schema"]])])), request)
    ).message.tool_calls
    with pytest.raises(InvalidCallError):
        await complete(
            gateway(ScriptedProvider([ScriptedTurn(calls=[BAD["undeclared"]])]), invalid_calls=InvalidCalls.ERROR),
            request,
        )
