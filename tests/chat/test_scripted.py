"""The scripted provider: its streams keep the rules of the event model."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, TextDelta, collect, collect_async
from openk2.chat.messages import Completion, Message, ToolCall, Usage
from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import OverloadedError, ProviderError, RequestError

ASK = ChatRequest((Message("user", "two words"),))


async def events_of(provider: ScriptedProvider, request: ChatRequest = ASK) -> list[ChatEvent]:
    return [event async for event in provider.stream(request)]


async def completion_of(provider: ScriptedProvider, request: ChatRequest = ASK) -> Completion:
    return await collect_async(provider.stream(request))


async def test_a_turn_streams_text_then_calls_in_small_pieces() -> None:
    calls = [ScriptedCall("add", {"a": 1, "b": 2}), ScriptedCall("now", "{}")]
    events = await events_of(ScriptedProvider([ScriptedTurn("Let me see.", calls)], piece_chars=3))
    assert events[:4] == [TextDelta("Let"), TextDelta(" me"), TextDelta(" se"), TextDelta("e.")]
    kinds = [type(event) for event in events[4:]]
    assert kinds == [CallBegin, *[CallDelta] * 5, CallEnd, CallBegin, CallDelta, CallEnd, Finished]
    completion = collect(events)
    assert completion.finish_reason == "tool_calls"
    assert completion.message.tool_calls == (
        ToolCall("functions.add:0", "add", '{"a":1,"b":2}'),
        ToolCall("functions.now:1", "now", "{}"),
    )
    assert completion.usage == Usage(prompt_tokens=2, completion_tokens=5)


async def test_ids_count_over_the_conversation() -> None:
    past = Message("assistant", None, tool_calls=(ToolCall("x", "add", "{}"), ToolCall("y", "add", "{}")))
    provider = ScriptedProvider([ScriptedTurn(calls=[ScriptedCall("add", {}), ScriptedCall("add", {}, id="call_7")])])
    completion = await completion_of(provider, ChatRequest((*ASK.messages, past)))
    assert [call.id for call in completion.message.tool_calls] == ["functions.add:2", "call_7"]


async def test_turns_come_in_order_and_requests_are_kept() -> None:
    async def late(request: ChatRequest) -> str:
        await asyncio.sleep(0)
        return f"seen {request.messages[-1].text}"

    provider = ScriptedProvider(["one", lambda request: ScriptedTurn(request.messages[0].text.upper()), late])
    assert provider.remaining == 3
    said = [(await completion_of(provider)).message.content for _ in range(3)]
    assert said == ["one", "TWO WORDS", "seen two words"]
    assert provider.requests == [ASK] * 3 and provider.remaining == 0
    with pytest.raises(ProviderError, match="3 turns, and turn 4"):
        await completion_of(provider)


async def test_one_function_answers_everything() -> None:
    provider = ScriptedProvider(lambda request: str(len(request.messages)))
    assert [(await completion_of(provider)).message.content for _ in range(3)] == ["1", "1", "1"]


async def test_errors_before_and_within_a_stream() -> None:
    provider = ScriptedProvider([RequestError("no"), ScriptedTurn("half", error=OverloadedError("full"))])
    with pytest.raises(RequestError, match="no"):
        await events_of(provider)
    stream = provider.stream(ASK)
    assert await anext(stream) == TextDelta("half")
    with pytest.raises(OverloadedError, match="full"):
        await anext(stream)


async def test_length_cuts_the_last_call() -> None:
    turn = ScriptedTurn(calls=[ScriptedCall("a", {}), ScriptedCall("b", {"x": "long text"})], finish_reason="length")
    completion = await completion_of(ScriptedProvider([turn]))
    assert completion.finish_reason == "length"
    assert [call.name for call in completion.message.tool_calls] == ["a"]


async def test_closing_a_stream_counts_as_aborted() -> None:
    provider = ScriptedProvider(["a long answer", "another"])
    async with aclosing(provider.stream(ASK)) as stream:  # type: ignore[type-var]
        await anext(stream)
    assert provider.aborted == 1
    await events_of(provider)
    assert provider.aborted == 1


def test_a_single_turn_in_place_of_the_list_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="list of turns"):
        ScriptedProvider("hello")
