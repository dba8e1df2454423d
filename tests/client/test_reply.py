"""Answers in the shapes that servers are known to send; each must read as the reference shape would."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openk2.chat.events import (
    CallBegin,
    CallDelta,
    CallEnd,
    ChatEvent,
    Finished,
    ReasoningDelta,
    TextDelta,
    collect,
    collect_async,
)
from openk2.chat.messages import Completion, Message, ToolCall
from openk2.chat.provider import ChatRequest
from openk2.client import RemoteProvider
from openk2.client.reply import ReplyReader
from openk2.client.sse import event_data
from openk2.errors import ContextLengthError, OverloadedError, ProviderError

A, B = '{"x": 1}', '{"y": [2]}'


def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def part(index: int | None = None, arguments: Any = None, name: str | None = None, id: str | None = None) -> Any:
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    found = {"index": index, "id": id, "function": function}
    return {key: value for key, value in found.items() if value is not None}


def parts(*calls: Any) -> list[Any]:
    return [chunk(tool_calls=[call]) for call in calls]


def read(chunks: Sequence[Any], *, done: bool = True, first_index: int = 0) -> list[ChatEvent]:
    reader = ReplyReader(first_index)
    events = [event for one in chunks for event in reader.feed(one)]
    return [*events, *reader.finish(done_seen=done)]


def well_formed(events: Sequence[ChatEvent]) -> bool:
    """The grammar of the event model."""
    letters = {ReasoningDelta: "r", TextDelta: "t", CallBegin: "b", CallDelta: "d", CallEnd: "e", Finished: "f"}
    indices = [event.index for event in events if isinstance(event, CallBegin)]
    word = "".join(letters[type(event)] for event in events)
    return bool(re.fullmatch(r"r*t*(bd*e)*(bd*)?f", word)) and indices == list(range(len(indices)))


def completion(events: Sequence[ChatEvent]) -> Completion:
    assert well_formed(events), events
    return collect(events)


END = chunk("tool_calls")
BOTH = (ToolCall("ida", "a", A), ToolCall("idb", "b", B))
SHAPES: dict[str, list[Any]] = {
    "reference": [
        *parts(part(0, "", "a", "ida"), part(0, A[:3]), part(0, A[3:])),
        *parts(part(1, "", "b", "idb"), part(1, B)),
        END,
    ],
    "interleaved fragments": [
        *parts(part(0, "", "a", "ida"), part(1, "", "b", "idb")),
        *parts(part(0, A[:3]), part(1, B[:4]), part(0, A[3:]), part(1, B[4:])),
        END,
    ],
    "both in one delta": [chunk("tool_calls", tool_calls=[part(0, A, "a", "ida"), part(1, B, "b", "idb")])],
    "first index is 1": [*parts(part(1, A, "a", "ida"), part(2, B, "b", "idb")), END],
    "no index": [
        *parts(part(None, "", "a", "ida"), part(None, A)),
        *parts(part(None, B[:3], "b", "idb"), part(None, B[3:])),
        END,
    ],
    "every index is 0": [*parts(part(0, A, "a", "ida"), part(0, B, "b", "idb")), END],
    "id and name repeated": [
        *parts(part(0, "", "a", "ida"), part(0, A[:2], "a", "ida"), part(0, A[2:], "a", "ida")),
        *parts(part(1, "", "b", "idb"), part(1, B, "b", "idb")),
        END,
    ],
    "repeated ids without an index": [
        *parts(part(None, A[:3], "a", "ida"), part(None, A[3:], None, "ida"), part(None, B, "b", "idb")),
        END,
    ],
    "no arguments key in the header": [
        *parts(part(0, None, "a", "ida"), part(0, A), part(1, None, "b", "idb"), part(1, B)),
        END,
    ],
    "arguments as an object": [*parts(part(0, json.loads(A), "a", "ida"), part(1, json.loads(B), "b", "idb")), END],
    "reason is stop": [*parts(part(0, A, "a", "ida"), part(1, B, "b", "idb")), chunk("stop")],
    "reason is function_call": [*parts(part(0, A, "a", "ida"), part(1, B, "b", "idb")), chunk("function_call")],
    "no reason": parts(part(0, A, "a", "ida"), part(1, B, "b", "idb")),
    "white space after the arguments": [
        *parts(part(0, A, "a", "ida"), part(1, "", "b", "idb"), part(0, "\n"), part(1, B)),
        END,
    ],
    "null everywhere": [
        chunk(role="assistant", content=None, tool_calls=None),
        {"choices": [{"index": 0, "delta": None}], "usage": None},
        *parts(part(0, A, "a", "ida"), part(1, B, "b", "idb")),
        END,
        {"choices": None},
    ],
    "a whole completion": [
        {
            "choices": [
                {
                    "index": 0,
                    "message": {"content": None, "tool_calls": [part(None, A, "a", "ida"), part(None, B, "b", "idb")]},
                    "finish_reason": "tool_calls",
                }
            ]
        }
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_read_the_same(shape: str) -> None:
    found = completion(read(SHAPES[shape]))
    assert found.finish_reason == "tool_calls"
    assert tuple(ToolCall(c.id, c.name, c.arguments.rstrip()) for c in found.message.tool_calls) == BOTH


@given(st.data())
def test_any_interleaving_and_splitting(data: st.DataObject) -> None:
    texts = data.draw(
        st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=3).map(json.dumps), max_size=4)
    )
    queues = []
    for index, text in enumerate(texts):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        queues.append([part(index, "", f"f{index}", f"id{index}"), *(part(index, piece) for piece in pieces)])
    sent = [queue.pop(0) for queue in queues]
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        sent.append(queue.pop(0))
    found = completion(read([*parts(*sent), END])).message.tool_calls
    assert found == tuple(ToolCall(f"id{at}", f"f{at}", text) for at, text in enumerate(texts))


def test_the_reference_shape_is_handed_on_at_once() -> None:
    reader = ReplyReader()
    seen = [list(reader.feed(one)) for one in SHAPES["reference"]]
    assert seen[:3] == [[CallBegin(0, "ida", "a")], [CallDelta(0, A[:3])], [CallDelta(0, A[3:])]]
    assert seen[3] == [CallEnd(0), CallBegin(1, "idb", "b")]


def test_missing_arguments_are_an_empty_object() -> None:
    for header in (part(0, "", "a", "x"), part(0, None, "a", "x")):
        assert completion(read([*parts(header), END])).message.tool_calls == (ToolCall("x", "a", "{}"),)


def test_missing_ids_are_made() -> None:
    found = completion(read([*parts(part(0, A, "a"), part(1, B, "b")), END], first_index=3))
    assert [call.id for call in found.message.tool_calls] == ["functions.a:3", "functions.b:4"]


def test_reason_tool_calls_without_calls_is_stop() -> None:
    assert completion(read([chunk(content="x"), END])).finish_reason == "stop"


def test_a_cut_call_is_not_delivered() -> None:
    found = completion(read([*parts(part(0, A, "a", "ida"), part(1, B[:5], "b", "idb")), chunk("length")]))
    assert found.finish_reason == "length" and found.message.tool_calls == BOTH[:1]
    found = completion(read([*parts(part(0, A, "a", "ida"), part(1, None, "b", "idb")), chunk("length")]))
    assert found.message.tool_calls == BOTH[:1]


def test_arguments_that_are_no_json_are_the_callers_to_judge() -> None:
    found = completion(read([*parts(part(0, "{'x'", "a", "i")), END]))
    assert found.message.tool_calls == (ToolCall("i", "a", "{'x'"),)


@pytest.mark.parametrize("names", [["reasoning_content"], ["reasoning"], ["reasoning_content", "reasoning"]])
def test_thoughts_are_set_apart_and_other_choices_left_out(names: list[str]) -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "other", "reasoning_content": "other"}}]}
    thought = chunk(content=None, **dict.fromkeys(names, "hm"))
    found = completion(read([thought, other, thought, chunk("stop", content="x")]))
    assert (found.message.reasoning, found.message.content) == ("hmhm", "x")


def test_an_unfinished_stream_is_an_error() -> None:
    with pytest.raises(ProviderError, match="before the answer was complete"):
        read([chunk(content="x")], done=False)
    assert completion(read([chunk("stop", content="x")], done=False)).finish_reason == "stop"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "it broke", "type": "api_error"}, ProviderError),
        ({"message": "it broke", "type": "overloaded_error"}, OverloadedError),
        ("it broke", ProviderError),
    ],
)
def test_an_error_in_the_stream(error: Any, kind: type[ProviderError]) -> None:
    with pytest.raises(kind, match="it broke"):
        read([chunk(content="x"), {"error": error}])


def test_overflow_in_the_stream() -> None:
    message = "maximum context length is 4096 tokens, but the prompt has 5000"
    with pytest.raises(ContextLengthError):
        read([{"error": {"message": message, "code": "context_length_exceeded"}}])


@pytest.mark.parametrize("bad", [["list"], 3, None, "text"])
def test_what_is_no_completion(bad: Any) -> None:
    with pytest.raises(ProviderError, match="no chat completion"):
        read([bad])


def test_other_reasons() -> None:
    with pytest.raises(ProviderError, match="content filter"):
        read([chunk("content_filter")])
    with pytest.raises(ProviderError, match="without a name"):
        read([*parts(part(0, A, None, "x")), END])


FRAMES = [
    "data: {1}\n\ndata: {2}\n\ndata: [DONE]\n\n",
    "data:{1}\n\ndata:{2}\n\ndata:[DONE]\n\n",
    "data: {1}\r\n\r\ndata: {2}\r\n\r\ndata: [DONE]\r\n\r\n",
    "data: {1}\ndata: {2}\ndata: [DONE]\n",
    ": ping\n\nevent: message\nid: 7\ndata: {1}\n\n: ping\ndata: {2}\n\nretry: 5\n\ndata: [DONE]",
]


async def in_pieces(text: str, size: int) -> AsyncIterator[bytes]:
    data = text.encode()
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("text", FRAMES)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_event_lines(text: str, size: int) -> None:
    assert [data async for data in event_data(in_pieces(text, size))] == ["{1}", "{2}", "[DONE]"]


async def test_data_on_several_lines() -> None:
    found = [json.loads(data) async for data in event_data(in_pieces('data: {\ndata:  "é": 1\ndata: }\n\n', 1))]
    assert found == [{"é": 1}]


async def test_over_the_wire(endpoint: Any, reply: Any) -> None:
    """A whole completion as JSON, carriage returns, no [DONE], characters that are line breaks elsewhere."""
    request = ChatRequest((Message("user", "hi"),))
    text = json.dumps(chunk(content="é\u2028"), ensure_ascii=False)
    endpoint.replies = [
        reply(json.dumps(SHAPES["a whole completion"][0])),
        reply([f"data: {text}\r\n\r\n", f"data: {json.dumps(chunk('stop'))}\r\n\r\n"]),
        reply(["data: {nonsense\n\n"]),
    ]
    provider = RemoteProvider(endpoint.url, "m")
    assert (await collect_async(provider.stream(request))).message.tool_calls == BOTH
    assert (await collect_async(provider.stream(request))).message.content == "é\u2028"
    with pytest.raises(ProviderError, match="no JSON"):
        await collect_async(provider.stream(request))
