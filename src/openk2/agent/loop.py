"""The agent: a model that calls tools until the task is done or a limit stops it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from openk2.agent.declare import Tool
from openk2.agent.events import AgentEvent, AgentResult, CallFinished, Stopped, StopReason, TurnStarted
from openk2.agent.step import answer, result_messages, run_calls
from openk2.agent.toolset import DEFAULT_MAX_RESULT_CHARS, Approve, Toolset
from openk2.chat.events import TextDelta
from openk2.chat.messages import Completion, Message, ToolCall, Usage
from openk2.chat.provider import ChatProvider, ChatRequest
from openk2.config.sampling import SamplingParams
from openk2.errors import OpenK2Error


class Agent:
    """Answers tasks with a model and tools.

        agent = Agent(LLM(), tools=[fetch_weather])
        print(agent.run("What is the weather in Oslo?").text)

    Tools are `Tool` objects or plain functions. All calls of a turn run at once; their errors are told to the model.
    """

    def __init__(
        self,
        provider: ChatProvider,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        *,
        system: str | None = None,
        max_turns: int = 20,
        max_repeats: int = 2,
        sampling: SamplingParams | None = None,
        approve: Approve | None = None,
        max_result_chars: int = DEFAULT_MAX_RESULT_CHARS,
    ) -> None:
        """
        Args:
            system: The system message; None leaves it to the chat template.
            max_turns: Most answers of the model to one task.
            max_repeats: A turn all of whose calls got the same result this many times before is not run again.
            approve: Asked before a tool with `needs_approval` runs; None refuses those.
            max_result_chars: Longer tool results are cut.
        """
        if max_turns < 1 or max_repeats < 1:
            raise ValueError("max_turns and max_repeats must be at least 1")
        self._provider = provider
        self._toolset = Toolset(tools, approve=approve, max_result_chars=max_result_chars)
        self._system = system
        self._max_turns = max_turns
        self._max_repeats = max_repeats
        self._sampling = sampling or SamplingParams()

    def run(self, task: str, history: Sequence[Message] = ()) -> AgentResult:
        """Carry out the task; for code without an event loop. Never raises for what the model or a tool did."""
        return asyncio.run(self.run_async(task, history))

    async def run_async(self, task: str, history: Sequence[Message] = ()) -> AgentResult:
        """Carry out the task."""
        async with aclosing(self.events(task, history)) as events:
            async for event in events:
                if isinstance(event, Stopped):
                    return event.result
        raise AssertionError("a run ends with Stopped")

    async def events(self, task: str, history: Sequence[Message] = ()) -> AsyncGenerator[AgentEvent, None]:
        """Carry out the task and tell what happens; the last event is `Stopped`. Closing the generator aborts the run.

        `history` is an earlier conversation to go on from, such as `AgentResult.messages`.
        """
        run = _Run(self._opening(task, history))
        stop: tuple[StopReason, str] | None = None
        while stop is None:
            run.turns += 1
            yield TurnStarted(run.turns, time.monotonic())
            completion: Completion | None = None
            try:
                async with aclosing(answer(self._provider, run.request(self._toolset, self._sampling))) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, TextDelta):
                            yield piece
                        else:
                            completion = piece
            except OpenK2Error as error:
                overflow = error.code == "context_length_exceeded"
                stop = ("context_length" if overflow else "error"), " ".join(str(error).split())
                break
            assert completion is not None, "an answer ends with its completion"
            run.add_answer(completion)
            stop = run.reason_to_stop(completion, self._max_repeats)
            if stop is None:
                finished: list[CallFinished] = []
                async with aclosing(run_calls(self._toolset, completion.message.tool_calls, run.turns)) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, CallFinished):
                            finished.append(event)
                run.add_results(finished)
                if run.turns >= self._max_turns:
                    stop = "max_turns", f"the limit of {self._max_turns} turns was reached before the task was done"
        assert stop is not None
        yield Stopped(run.result(*stop))

    def _opening(self, task: str, history: Sequence[Message]) -> list[Message]:
        messages = list(history)
        if self._system is not None and not any(message.role == "system" for message in messages[:1]):
            messages.insert(0, Message("system", self._system))
        return [*messages, Message("user", task)]


def _key(call: ToolCall) -> tuple[str, str]:
    """Equal for calls that mean the same, however their JSON is written."""
    try:
        return call.name, json.dumps(json.loads(call.arguments), sort_keys=True)
    except ValueError:
        return call.name, call.arguments


@dataclass
class _Run:
    """The state of one run."""

    messages: list[Message]
    turns: int = 0
    text: str = ""
    calls: list[CallFinished] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    answered: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """Call -> its last result, and in how many turns in a row of its own it was that one."""

    def request(self, toolset: Toolset, sampling: SamplingParams) -> ChatRequest:
        return ChatRequest(tuple(self.messages), toolset.specs, sampling=sampling)

    def add_answer(self, completion: Completion) -> None:
        self.messages.append(completion.message)
        self.text = completion.message.text or self.text
        used = completion.usage
        self.usage = Usage(
            self.usage.prompt_tokens + used.prompt_tokens,
            self.usage.completion_tokens + used.completion_tokens,
            self.usage.cached_tokens + used.cached_tokens,
        )

    def reason_to_stop(self, completion: Completion, max_repeats: int) -> tuple[StopReason, str] | None:
        """Why the run ends with this answer; None when its calls are to be run."""
        calls = completion.message.tool_calls
        if completion.finish_reason == "error":
            self.messages.pop()
            return "error", "the provider's stream ended before the answer was complete"
        if calls:
            if not all(self.answered.get(_key(call), ("", 0))[1] >= max_repeats for call in calls):
                return None
            detail = f"{calls[0].name} was asked for again after {max_repeats} identical results"
            self.messages += [Message("tool", f"error: not run: {detail}", tool_call_id=call.id) for call in calls]
            return "repeated_calls", detail
        if completion.finish_reason == "length":
            return "length", "the answer was cut by the token limit"
        if not completion.message.text.strip():
            self.messages.pop()  # an empty assistant message teaches the model to go on with empty ones
            return "empty_turn", "the model answered with neither text nor a call"
        return "finished", "the model gave its answer"

    def add_results(self, finished: Sequence[CallFinished]) -> None:
        self.calls += finished
        self.messages += result_messages(finished)
        for key, result in {_key(end.call): end.result for end in finished}.items():
            last, count = self.answered.get(key, ("", 0))
            self.answered[key] = (result, count + 1 if last == result else 1)

    def result(self, reason: StopReason, detail: str) -> AgentResult:
        return AgentResult(self.text, reason, detail, self.turns, tuple(self.calls), tuple(self.messages), self.usage)
