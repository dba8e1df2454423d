"""The loop with a scripted model: calls of a turn at once, errors as results, every way to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from openk2.agent import Agent, AgentEvent, CallFinished, CallStarted, Stopped, ToolError, TurnStarted, tool
from openk2.chat.events import TextDelta
from openk2.chat.messages import Message
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn, Turn, TurnFunction
from openk2.errors import ContextLengthError, ProviderError

MEETING_S = 20
"""Ends a test that fails; nothing that passes waits so long."""


def calling(*calls: ScriptedCall, text: str = "") -> ScriptedTurn:
    return ScriptedTurn(text, calls)


def script(*turns: Turn | TurnFunction) -> ScriptedProvider:
    return ScriptedProvider(turns)


async def events_of(agent: Agent, task: str = "go") -> list[AgentEvent]:
    return [event async for event in agent.events(task)]


def results(messages: Sequence[Message]) -> list[tuple[str | None, str]]:
    return [(message.tool_call_id, message.text) for message in messages if message.role == "tool"]


def echo(text: str) -> str:
    return text


def test_a_task_without_calls() -> None:
    provider = script("Hello there.")
    result = Agent(provider, system="Be brief.").run("Hi")
    assert (result.text, result.reason, result.turns, result.calls) == ("Hello there.", "finished", 1, ())
    assert [(message.role, message.text) for message in result.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello there."),
    ]
    assert result.finished and result.usage.completion_tokens == 2


def test_results_go_back_in_the_order_of_the_calls() -> None:
    release = threading.Event()

    def slow() -> str:
        assert release.wait(MEETING_S)
        return "slow result"

    def quick() -> str:
        release.set()
        return "quick result"

    provider = script(calling(ScriptedCall("slow", {}), ScriptedCall("quick", {})), "done")
    result = Agent(provider, [slow, quick]).run("go")
    assert results(provider.requests[1].messages) == [
        ("functions.slow:0", "slow result"),
        ("functions.quick:1", "quick result"),
    ]
    assert [end.call.name for end in result.calls] == ["quick", "slow"], "ends are told as they come"


@pytest.mark.parametrize("count", [2, 40])
def test_sync_calls_of_a_turn_run_at_once(count: int) -> None:
    everybody = threading.Barrier(count, timeout=MEETING_S)

    def meet(number: int) -> str:
        everybody.wait()  # passes only when all the calls are inside at the same moment
        return str(number)

    provider = script(calling(*(ScriptedCall("meet", {"number": at}) for at in range(count))), "done")
    result = Agent(provider, [meet]).run("go")
    assert [text for _, text in results(result.messages)] == [str(at) for at in range(count)]


async def test_async_and_sync_calls_run_at_once() -> None:
    in_thread, in_loop = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def sync_side() -> bool:
        loop.call_soon_threadsafe(in_loop.set)
        return in_thread.wait(MEETING_S)

    async def async_side() -> bool:
        await asyncio.wait_for(in_loop.wait(), MEETING_S)
        in_thread.set()
        return True

    provider = script(calling(ScriptedCall("async_side", {}), ScriptedCall("sync_side", {})), "done")
    result = await Agent(provider, [sync_side, async_side]).run_async("go")
    assert [text for _, text in results(result.messages)] == ["true", "true"]


async def test_events_in_order_with_overlapping_times() -> None:
    everybody = threading.Barrier(2, timeout=MEETING_S)

    def meet(who: str) -> str:
        everybody.wait()
        return who

    calls = [ScriptedCall("meet", {"who": "a"}), ScriptedCall("meet", {"who": "b"})]
    events = await events_of(Agent(script(calling(*calls, text="Two at once."), "done"), [meet]))
    kinds = [type(event) for event in events if not isinstance(event, TextDelta)]
    assert kinds == [TurnStarted, CallStarted, CallStarted, CallFinished, CallFinished, TurnStarted, Stopped]
    assert "".join(event.text for event in events[: kinds.index(CallStarted) + 3] if isinstance(event, TextDelta))
    ends = [event for event in events if isinstance(event, CallFinished)]
    assert max(end.started_s for end in ends) <= min(end.finished_s for end in ends)
    assert {end.index for end in ends} == {0, 1} and all(end.duration_s >= 0 for end in ends)
    assert isinstance(events[-1], Stopped) and events[-1].result.text == "done"


def test_what_goes_wrong_is_told_to_the_model() -> None:
    def broken() -> str:
        raise KeyError("missing\nkey")

    def refusing() -> str:
        raise ToolError("not\ntoday")

    def leaving() -> str:
        raise SystemExit(3)

    @tool(timeout_s=0.01)
    async def endless() -> str:
        await asyncio.Event().wait()
        return ""

    @tool(needs_approval=True)
    def dangerous() -> str:
        raise AssertionError("ran without approval")

    calls = [
        ScriptedCall("unknown", {}),
        ScriptedCall("echo", "{'text': 1}"),
        ScriptedCall("echo", {"text": 1}),
        ScriptedCall("echo", {}),
        ScriptedCall("echo", {"text": "a", "volume": 2}),
        ScriptedCall("echo", "[]"),
        *(ScriptedCall(name, {}) for name in ("broken", "refusing", "leaving", "endless", "dangerous")),
        ScriptedCall("echo", {"text": "fine"}),
    ]
    provider = script(calling(*calls), "sorry")
    result = Agent(provider, [echo, broken, refusing, leaving, endless, dangerous]).run("go")
    told = [text for _, text in results(provider.requests[1].messages)]
    expected = [
        "there is no tool 'unknown'; the tools are: echo, broken,",
        "the arguments of echo are not JSON",
        "invalid arguments for echo: text: 1 is not of type",
        'invalid arguments for echo: "text" is a required property',
        "there is no argument 'volume'",
        "invalid arguments for echo",
        "KeyError: 'missing\\nkey'",
        "not today",
        "SystemExit: 3",
        "endless did not finish within 0.01 s",
        "dangerous was not run: it needs an approval",
    ]
    for text, part in zip(told, expected, strict=False):
        assert text.startswith("error: ") and part in text and "\n" not in text, text
    assert told[-1] == "fine"
    errors = {end.index for end in result.calls if end.is_error}
    assert errors == set(range(len(expected))) and result.finished


@pytest.mark.parametrize("answer", [True, False])
async def test_approval(answer: bool) -> None:
    ran = []

    @tool(needs_approval=True)
    def write(text: str) -> None:
        ran.append(text)

    async def approve(call: object) -> bool:
        return answer

    provider = script(calling(ScriptedCall("write", {"text": "x"})), "done")
    await Agent(provider, [write], approve=approve).run_async("go")
    assert ran == (["x"] if answer else [])


def test_results_are_json_and_bounded() -> None:
    def many() -> dict[str, object]:
        return {"ü": [1, None], "at": threading}

    def long() -> str:
        return "x" * 100

    provider = script(calling(ScriptedCall("many", {}), ScriptedCall("long", {})), "done")
    Agent(provider, [many, long], max_result_chars=80).run("go")
    told = [text for _, text in results(provider.requests[1].messages)]
    assert told[0].startswith('{"ü": [1, null], "at": "<module')
    assert told[1] == "x" * 80 + "\n[cut: 20 more characters]"


def test_max_turns() -> None:
    provider = ScriptedProvider(lambda request: calling(ScriptedCall("echo", {"text": str(len(request.messages))})))
    result = Agent(provider, [echo], max_turns=3).run("go")
    assert (result.reason, result.turns, len(result.calls)) == ("max_turns", 3, 3)
    assert "limit of 3 turns" in result.detail
    assert result.messages[-1].role == "tool", "every call has its result"


def test_identical_calls_stop_before_the_third() -> None:
    spelled = iter(['{"text":"a"}', '{ "text": "a" }', '{"text":"\\u0061"}'])
    provider = ScriptedProvider(lambda request: calling(ScriptedCall("echo", next(spelled))))
    result = Agent(provider, [echo]).run("go")
    assert (result.reason, len(result.calls), result.turns) == ("repeated_calls", 2, 3)
    assert "echo" in result.detail
    asked = [call.id for message in result.messages for call in message.tool_calls]
    assert [id for id, _ in results(result.messages)] == asked, "every call has its result"


def test_calls_that_change_nothing_in_turns_stop_too() -> None:
    texts = iter("abababab")
    provider = ScriptedProvider(lambda request: calling(ScriptedCall("echo", {"text": next(texts)})))
    result = Agent(provider, [echo]).run("go")
    assert (result.reason, len(result.calls)) == ("repeated_calls", 4)


def test_the_same_call_with_new_results_goes_on() -> None:
    count = iter(range(10))

    def poll() -> int:
        return next(count)

    provider = script(*[calling(ScriptedCall("poll", {}))] * 5, "ready")
    result = Agent(provider, [poll]).run("go")
    assert result.finished and len(result.calls) == 5


@pytest.mark.parametrize(
    ("turn", "reason", "detail"),
    [
        ("", "empty_turn", "neither text nor a call"),
        (" \n", "empty_turn", "neither text nor a call"),
        (ScriptedTurn("half an ans", finish_reason="length"), "length", "token limit"),
        (ProviderError("gone"), "error", "gone"),
        (ContextLengthError(prompt_tokens=9, max_model_len=8), "context_length", "8 tokens"),
        (ScriptedTurn("half", error=ProviderError("broke\noff")), "error", "broke off"),
    ],
)
def test_other_reasons_to_stop(turn: Turn, reason: str, detail: str) -> None:
    result = Agent(script(turn), [echo]).run("go")
    assert result.reason == reason and detail in result.detail and not result.finished


def test_a_cut_answer_with_whole_calls_goes_on() -> None:
    cut = ScriptedTurn(
        calls=[ScriptedCall("echo", {"text": "a"}), ScriptedCall("echo", {"text": "b"})], finish_reason="length"
    )
    result = Agent(script(cut, "done"), [echo]).run("go")
    assert [end.result for end in result.calls] == ["a"] and result.finished


def test_calls_of_a_stream_that_breaks_are_not_run() -> None:
    ran = []

    def act() -> None:
        ran.append(1)

    turn = ScriptedTurn(calls=[ScriptedCall("act", {})], error=ProviderError("broke off"))
    assert Agent(script(turn), [act]).run("go").reason == "error"
    assert not ran


def test_a_run_can_be_continued() -> None:
    provider = script(calling(ScriptedCall("echo", {"text": "a"})), "first", "second")
    agent = Agent(provider, [echo], system="S")
    first = agent.run("one")
    second = agent.run("two", first.messages)
    assert [message.text for message in second.messages if message.role == "user"] == ["one", "two"]
    assert [message.role for message in second.messages].count("system") == 1


async def test_closing_the_events_aborts_the_answer() -> None:
    provider = script("a long answer")
    async with aclosing(Agent(provider).events("go")) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    assert provider.aborted == 1


async def test_closing_the_events_cancels_calls() -> None:
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with aclosing(Agent(script(calling(ScriptedCall("endless", {}))), [endless]).events("go")) as events:
        async for event in events:
            if isinstance(event, CallStarted):
                break
    assert cancelled.is_set()


def test_tools_are_declared_to_the_model() -> None:
    provider = script("ok")
    Agent(provider, [echo]).run("go")
    (spec,) = provider.requests[0].tools
    assert spec.name == "echo" and spec.parameters["required"] == ["text"]


def test_two_tools_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two tools are named 'echo'"):
        Agent(script(), [echo, echo])
