"""The strict reader: what an answer says, and each departure from the API's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openk2.client.wire import WireAnswer
from openk2.evals.verify.reply import Call, Reply, read_reply
from openk2.evals.verify.validity import call_faults

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}},
}


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **fields: Any) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return json.dumps({"id": "c1", "created": 1, "model": "m", "choices": choices, **fields})


def call(
    index: int | None = 0, id: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    part = {key: value for key, value in (("index", index), ("id", id)) if value is not None}
    return {"tool_calls": [{**part, "function": function}]}


END = (chunk({}, "tool_calls"), chunk(usage=USAGE), "[DONE]")


def stream(*payloads: str, status: int = 200, kind: str = "text/event-stream") -> Reply:
    return read_reply(WireAnswer(status, kind, payloads, 1.0, 2.0), streamed=True)


def whole(body: Any, status: int = 200) -> Reply:
    return read_reply(WireAnswer(status, "application/json", (json.dumps(body),), 1.0, 2.0), streamed=False)


def test_a_stream_adds_up_to_the_whole_answer() -> None:
    reply = stream(
        chunk({"role": "assistant", "content": "Let "}),
        chunk({"content": "me see."}),
        chunk(call(0, "functions.find:0", "find", "")),
        chunk(call(0, arguments='{"n":')),
        chunk(call(0, arguments=" 1}")),
        chunk(call(1, "functions.find:1", "find", "{}")),
        *END,
    )
    message = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "functions.find:0", "type": "function", "function": {"name": "find", "arguments": '{"n": 1}'}},
            {"id": "functions.find:1", "type": "function", "function": {"name": "find", "arguments": "{}"}},
        ],
    }
    same = whole(
        {
            "id": "c1",
            "created": 1,
            "model": "m",
            "object": "chat.completion",
            "usage": USAGE,
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        }
    )
    assert reply.response == same.response
    assert reply.faults == same.faults == ()
    assert reply.calls == (Call("functions.find:0", "find", '{"n": 1}'), Call("functions.find:1", "find", "{}"))


@pytest.mark.parametrize(
    ("payloads", "fault"),
    [
        ((chunk(call(0, "a", "find", "{}")), chunk({}, "tool_calls"), chunk(usage=USAGE)), "no [DONE]"),
        ((chunk(call(0, "a", "find", "{}")), chunk({}, "tool_calls"), "[DONE]"), "no usage in the stream"),
        ((chunk(call(None, "a", "find", "{}")), *END), "without its index"),
        ((chunk(call(0, None, "find", "{}")), *END), "begins without its id"),
        ((chunk(call(0, "a", None, "{}")), *END), "begins without its name"),
        ((chunk(call(0, "a", "find", "{")), chunk(call(0, "b", arguments="}")), *END), "id changes"),
        ((chunk(call(0, "a", "find", {"n": 1})), *END), "arguments that are no string"),
        ((chunk({}, "stop"), chunk({"content": "more"}), chunk(usage=USAGE), "[DONE]"), "after the finish_reason"),
        ((chunk({}, "stop"), *END), "more than one finish_reason"),
        ((chunk({}, "stop"), chunk(usage=USAGE, id="c2"), "[DONE]"), "different ids"),
    ],
)
def test_a_fault_of_a_stream_is_named(payloads: tuple[str, ...], fault: str) -> None:
    reply = stream(*payloads)
    assert reply.error is None
    assert len(reply.faults) == 1 and fault in reply.faults[0]


def test_usage_in_the_vendors_place_counts() -> None:
    last = json.dumps({"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]})
    reply = stream(chunk({"content": "Hi"}), last, "[DONE]")
    assert not reply.faults and reply.prompt_tokens == 5


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (stream(), "the stream is empty"),
        (stream(chunk({"content": "Hi"}), "[DONE]"), "without a finish_reason"),
        (stream(chunk({"content": "Hi"}), '{"error": {"message": "boom"}}'), "broke off: boom"),
        (stream("oops"), "no JSON"),
        (stream("{}", kind="application/json"), "asked for a stream, got application/json"),
        (stream('{"error": {"message": "too many"}}', status=429), "HTTP 429: too many"),
        (whole({"choices": []}), "no choices"),
        (whole({"choices": [{"message": {"content": "Hi"}}]}), "no finish_reason"),
        (whole({"error": {"message": "boom"}}), "an error with status 200: boom"),
    ],
)
def test_what_is_no_answer_says_why(reply: Reply, error: str) -> None:
    assert reply.error is not None and error in reply.error
    assert reply.response == {"error": reply.error}


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (Call("a", "find", '{"n": 1}'), None),
        (Call("a", "find", '{"other": 1}'), None),
        (Call("a", "find", '{"n": "1"}'), "schema"),
        (Call("a", "find", "[]"), "schema"),
        (Call("a", "find", '{"n": 1'), "not json"),
        (Call("a", "find", '{"n": NaN}'), "not json"),
        (Call("a", "fetch", "{}"), "undeclared"),
        (Call("a", "", "{}"), "undeclared"),
    ],
)
def test_call_faults(made: Call, kind: str | None) -> None:
    assert [fault.kind for fault in call_faults([made], [TOOL])] == ([] if kind is None else [kind])


def test_a_tool_without_a_schema_takes_any_json() -> None:
    """The vendor's script counts calls of such a tool as failures."""
    for parameters in ({}, None):
        tool = {"type": "function", "function": {"name": "find", "parameters": parameters}}
        assert not call_faults([Call("a", "find", '{"x": 1}')], [tool])
