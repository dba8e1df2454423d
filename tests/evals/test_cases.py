from __future__ import annotations

import hashlib
import json
from collections import Counter
from importlib import resources

import jsonschema_rs
import pytest

from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.chat.messages import Message, ToolCall, ToolSpec
from openk2.errors import DataError
from openk2.evals import Case, ExpectedCall, case_from_reference, written_cases

WRITTEN = [*written_cases("handwritten"), *written_cases("builtin")]
FROZEN = {
    "handwritten.jsonl": "87eeb86d3cad8c87c8caf838677367a9d4269ca17af428e7f6b71fd31e2a4f65",
    "tools.jsonl": "e8f955e810cc3f2d29a15bc520e41e59a8478c3dff965c0d891261191badd1ce",
}
TOOLS = (ToolSpec.function("ping", "Ping.", {"type": "object", "properties": {"host": {"type": "string"}}}),)


def test_the_sets_have_what_the_evaluation_promises() -> None:
    hand, builtin = written_cases("handwritten"), written_cases("builtin")
    assert len(hand) >= 200
    assert all(len(case.tools) >= 3 for case in hand)
    assert min(Counter(case.kind for case in hand).values()) >= 10
    assert len(builtin) >= 80
    assert all({tool.name for tool in case.tools} == {tool.name for tool in BUILTIN_TOOLS} for case in builtin)


def test_ids_and_questions_are_unique() -> None:
    assert len({case.id for case in WRITTEN}) == len(WRITTEN)
    assert len({repr((case.messages, case.tools)) for case in WRITTEN}) == len(WRITTEN)


def test_the_issue_s_own_requests_are_in() -> None:
    by_text = {case.messages[0].text: case for case in WRITTEN}
    todo = by_text["Find all Python files with TODO comments"]
    assert todo.calls == (ExpectedCall("search_files", {"pattern": "TODO", "lang": "py"}),)
    three = [c for c in WRITTEN if len(c.calls) == 3 and {x.name for x in c.calls} >= {"calculate", "current_time"}]
    assert len(three) >= 3
    assert any(
        {x.name for x in c.calls} == {"fetch_user_data", "get_order_history", "check_inventory"} for c in WRITTEN
    )


def test_the_handwritten_set_is_frozen() -> None:
    """It was committed before the first training run; a change of it ends the comparison with earlier figures."""
    folder = resources.files("openk2.evals").joinpath("tasks", "toolcalls")
    digests = {name: hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() for name in FROZEN}
    assert digests == FROZEN


def test_every_value_that_counts_as_right_is_valid_for_the_tool() -> None:
    for tools, call in ((case.tools, call) for case in WRITTEN for call in case.calls):
        schema = next(tool.parameters for tool in tools if tool.name == call.name)
        choices = {key: [call.arguments[key], *call.alternatives.get(key, ())] for key in call.arguments}
        choices |= {key: list(values or ()) for key, values in call.optional.items()}
        assert set(choices) <= set(schema["properties"])
        assert set(schema.get("required", ())) <= set(call.arguments)
        assert set(call.alternatives) <= set(call.arguments)
        for key, values in choices.items():
            for value in values:
                jsonschema_rs.validate(schema["properties"][key], value)


def test_results_in_written_conversations_answer_their_calls() -> None:
    for case in WRITTEN:
        asked = [call.id for message in case.messages for call in message.tool_calls]
        assert asked == [message.tool_call_id for message in case.messages if message.role == "tool"]
        assert [name.rpartition(":")[2] for name in asked] == [str(at) for at in range(len(asked))]
        assert case.messages[-1].role in ("user", "tool")


def _reference(messages: list[Message], expected: Message) -> Case:
    return case_from_reference("g/1", "g", TOOLS, messages, expected, "no_tool")


def test_reference_kinds_follow_from_the_shape() -> None:
    user, result = (
        Message("user", "ping a"),
        Message("tool", '{"ms": 12, "host": "a"}', tool_call_id="functions.ping:0"),
    )
    call = ToolCall("functions.ping:0", "ping", '{"host":"a"}')
    assert _reference([user], Message("assistant", tool_calls=(call,))).kind == "single"
    assert _reference([user], Message("assistant", tool_calls=(call, call))).kind == "parallel"
    assert _reference([user, result], Message("assistant", tool_calls=(call,))).kind == "chain"
    assert _reference([user], Message("assistant", "I cannot.")).kind == "no_tool"
    answer = _reference([user, result], Message("assistant", "It answered within 12 ms."))
    assert (answer.kind, answer.contains) == ("answer", ("12", "a"))


def test_malformed_cases_are_refused() -> None:
    broken = Message("assistant", tool_calls=(ToolCall("functions.ping:0", "ping", "[1]"),))
    with pytest.raises(DataError, match="no object"):
        _reference([Message("user", "x")], broken)
    with pytest.raises(DataError, match="does not show: pong"):
        Case("x", "s", "single", TOOLS, (Message("user", "x"),), (ExpectedCall("pong", {}),))
    with pytest.raises(DataError, match="expects 0 calls"):
        Case("x", "s", "single", TOOLS, (Message("user", "x"),))
    with pytest.raises(DataError, match="handwritten and builtin"):
        written_cases("other")


def test_history_arguments_are_the_compact_sorted_json_of_the_wire() -> None:
    for case in WRITTEN:
        for message in case.messages:
            for call in message.tool_calls:
                parsed = json.loads(call.arguments)
                assert call.arguments == json.dumps(parsed, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
