"""Canonical call ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openk2.chat.ids import canonicalize, count_calls, parse_call_id
from openk2.chat.messages import Message, ToolCall
from openk2.errors import RequestError


def assistant(*calls: tuple[str, str]) -> Message:
    return Message("assistant", tool_calls=tuple(ToolCall(call_id, name, "{}") for call_id, name in calls))


def result(call_id: str | None) -> Message:
    return Message("tool", "r", tool_call_id=call_id)


def ids(messages: tuple[Message, ...]) -> list[str | None]:
    return [call.id for message in messages for call in message.tool_calls] + [
        message.tool_call_id for message in messages if message.role == "tool"
    ]


def test_counts_over_the_conversation() -> None:
    history = [assistant(("a", "f"), ("b", "g")), result("b"), result("a"), assistant(("c", "f")), result("c")]
    canonical = canonicalize(history)
    assert [call.id for message in canonical for call in message.tool_calls] == [
        "functions.f:0",
        "functions.g:1",
        "functions.f:2",
    ]
    assert [message.tool_call_id for message in canonical if message.role == "tool"] == [
        "functions.g:1",
        "functions.f:0",
        "functions.f:2",
    ]
    assert count_calls(history) == 3


def test_an_id_used_again_means_the_latest_call() -> None:
    history = [assistant(("call_0", "f")), result("call_0"), assistant(("call_0", "g")), result("call_0")]
    assert ids(canonicalize(history)) == ["functions.f:0", "functions.g:1", "functions.f:0", "functions.g:1"]


def test_one_id_for_two_calls_of_a_turn_is_paired_in_order() -> None:
    history = [assistant(("", "f"), ("", "f")), result(""), result("")]
    assert ids(canonicalize(history)) == ["functions.f:0", "functions.f:1", "functions.f:0", "functions.f:1"]


@pytest.mark.parametrize("call_id", [None, "other"])
def test_a_result_of_no_call_is_refused(call_id: str | None) -> None:
    with pytest.raises(RequestError, match=r"messages\[1\]\.tool_call_id") as caught:
        canonicalize([assistant(("a", "f")), result(call_id)])
    assert caught.value.param == "messages[1].tool_call_id"


@given(turns=st.lists(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=5)), max_size=3), max_size=4))
def test_canonical_is_stable(turns: list[list[tuple[str, str]]]) -> None:
    history = [message for calls in turns for message in (assistant(*calls), *(result(c[0]) for c in calls))]
    canonical = canonicalize(history)
    assert canonicalize(canonical) == canonical
    assert [m.tool_call_id for m in canonical if m.role == "tool"] == [c.id for m in canonical for c in m.tool_calls]


@pytest.mark.parametrize(
    ("header", "parsed"),
    [
        ("functions.get_weather:0", ("get_weather", 0)),
        (" search:2\n", ("search", 2)),
        ("functions.a.b-c:12", ("a.b-c", 12)),
        ("functions.a:1:3", ("a:1", 3)),
        ("functions.f", None),
        ("call00003", None),
        ("", None),
    ],
)
def test_parse(header: str, parsed: tuple[str, int] | None) -> None:
    assert parse_call_id(header) == parsed
