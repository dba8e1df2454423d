"""Each third-party client behind one interface: ask a question with tools, then bring the results back.

What a client makes of an answer is kept in its own types and only read out at the end, and the second turn sends
those same objects back, as a program written for that client does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

QUESTION = "Weather in Oslo and Rome?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
USER = {"role": "user", "content": QUESTION}


@dataclass(frozen=True)
class Answer:
    text: str
    calls: list[tuple[str, str, dict[str, Any]]]
    """(id, name, arguments) in the answer's order."""
    finish_reason: str
    native: Any
    """The assistant message in the client's own type."""


class Adapter(Protocol):
    def ask(self, *, stream: bool) -> Answer:
        """QUESTION with the tool WEATHER."""
        ...

    def bring_results(self, answer: Answer, results: Mapping[str, str], *, stream: bool) -> Answer:
        """The turn after `answer`; results are by call id, in the order in which they are sent."""
        ...


def _tool_results(results: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"role": "tool", "tool_call_id": call_id, "content": text} for call_id, text in results.items()]


def _openai_answer(choice: Any) -> Answer:
    calls = [(c.id, c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls or []]
    return Answer(choice.message.content or "", calls, choice.finish_reason, choice.message)


class OpenAI:
    """The official client; a stream goes through its strict accumulator."""

    def __init__(self, url: str, model: str) -> None:
        openai = pytest.importorskip("openai")
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        self.model = model

    def ask(self, *, stream: bool) -> Answer:
        return self._send([USER], stream)

    def bring_results(self, answer: Answer, results: Mapping[str, str], *, stream: bool) -> Answer:
        return self._send([USER, answer.native, *_tool_results(results)], stream)

    def _send(self, messages: Sequence[Any], stream: bool) -> Answer:
        body: dict[str, Any] = {"model": self.model, "messages": messages, "tools": [WEATHER]}
        if not stream:
            return _openai_answer(self.client.chat.completions.create(**body).choices[0])
        with self.client.chat.completions.stream(**body) as events:
            for _ in events:
                pass
            return _openai_answer(events.get_final_completion().choices[0])


class LangChain:
    """`ChatOpenAI`; a stream is the sum of its message chunks."""

    def __init__(self, url: str, model: str) -> None:
        module = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
        self.chat = module.ChatOpenAI(
            base_url=f"{url}/v1", api_key="any", model=model, max_retries=0, stream_usage=True
        )

    def ask(self, *, stream: bool) -> Answer:
        from langchain_core.messages import HumanMessage

        return self.send(self.chat.bind_tools([WEATHER]), [HumanMessage(QUESTION)], stream)

    def bring_results(self, answer: Answer, results: Mapping[str, str], *, stream: bool) -> Answer:
        from langchain_core.messages import HumanMessage, ToolMessage

        tool_messages = [ToolMessage(text, tool_call_id=call_id) for call_id, text in results.items()]
        return self.send(
            self.chat.bind_tools([WEATHER]), [HumanMessage(QUESTION), answer.native, *tool_messages], stream
        )

    @staticmethod
    def send(chat: Any, messages: Sequence[Any], stream: bool) -> Answer:
        if stream:
            first, *rest = chat.stream(messages)
            message = sum(rest, first)
        else:
            message = chat.invoke(messages)
        assert not message.invalid_tool_calls
        calls = [(call["id"], call["name"], call["args"]) for call in message.tool_calls]
        return Answer(message.text, calls, message.response_metadata["finish_reason"], message)


class LiteLLM:
    """`litellm.completion`; a stream is joined by its own chunk builder."""

    def __init__(self, url: str, model: str) -> None:
        self.litellm = pytest.importorskip("litellm", reason="litellm is not installed")
        self.target = {"model": f"openai/{model}", "base_url": f"{url}/v1", "api_key": "any", "max_retries": 0}

    def ask(self, *, stream: bool) -> Answer:
        return self.send([USER], stream)

    def bring_results(self, answer: Answer, results: Mapping[str, str], *, stream: bool) -> Answer:
        return self.send([USER, answer.native, *_tool_results(results)], stream)

    def send(self, messages: Sequence[Any], stream: bool) -> Answer:
        answer = self.litellm.completion(**self.target, messages=messages, tools=[WEATHER], stream=stream)
        if stream:
            answer = self.litellm.stream_chunk_builder(list(answer), messages=messages)
        return _openai_answer(answer.choices[0])


class LlamaIndex:
    """`OpenAILike`, whose stream accumulator goes by the order and the indices of the fragments."""

    def __init__(self, url: str, model: str) -> None:
        module = pytest.importorskip(
            "llama_index.llms.openai_like", reason="llama-index-llms-openai-like is not installed"
        )
        self.llm = module.OpenAILike(
            model=model,
            api_base=f"{url}/v1",
            api_key="any",
            max_retries=0,
            is_chat_model=True,
            is_function_calling_model=True,
            context_window=4096,
        )

    def ask(self, *, stream: bool) -> Answer:
        from llama_index.core.llms import ChatMessage

        return self._send([ChatMessage(role="user", content=QUESTION)], stream)

    def bring_results(self, answer: Answer, results: Mapping[str, str], *, stream: bool) -> Answer:
        from llama_index.core.llms import ChatMessage

        tool_messages = [
            ChatMessage(role="tool", content=text, additional_kwargs={"tool_call_id": call_id})
            for call_id, text in results.items()
        ]
        question = ChatMessage(role="user", content=QUESTION)
        return self._send([question, answer.native, *tool_messages], stream)

    def _send(self, messages: Sequence[Any], stream: bool) -> Answer:
        if stream:
            responses = list(self.llm.stream_chat(messages, tools=[WEATHER]))
            response = responses[-1]
            reasons = [r.raw.choices[0].finish_reason for r in responses if r.raw.choices]
            finish_reason = next(reason for reason in reasons if reason is not None)
        else:
            response = self.llm.chat(messages, tools=[WEATHER])
            finish_reason = response.raw.choices[0].finish_reason
        selections = self.llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        calls = [(call.tool_id, call.tool_name, call.tool_kwargs) for call in selections]
        return Answer(response.message.content or "", calls, finish_reason, response.message)


class AutoGen:
    """`OpenAIChatCompletionClient`, which keeps the text before calls as a thought."""

    def __init__(self, url: str, model: str) -> None:
        module = pytest.importorskip("autogen_ext.models.openai", reason="autogen-ext is not installed")
        abilities = {"function_calling": True, "json_output": True, "vision": False, "structured_output": True}
        self.target = {
            "model": model,
            "base_url": f"{url}/v1",
            "api_key": "any",
            "max_retries": 0,
            "model_info": {**abilities, "family": "unknown"},
        }
        self.make = module.OpenAIChatCompletionClient

    def ask(self, *, stream: bool) -> Answer:
        return asyncio.run(self._send([], stream))

    def bring_results(self, answer: Answer, results: Mapping[str, str], *, stream: bool) -> Answer:
        from autogen_core.models import AssistantMessage, FunctionExecutionResult, FunctionExecutionResultMessage

        names = {call_id: name for call_id, name, _ in answer.calls}
        brought = [
            FunctionExecutionResult(content=text, name=names[call_id], call_id=call_id, is_error=False)
            for call_id, text in results.items()
        ]
        native = answer.native
        turn = AssistantMessage(content=native.content, thought=native.thought, source="assistant")
        return asyncio.run(self._send([turn, FunctionExecutionResultMessage(content=brought)], stream))

    async def _send(self, messages: Sequence[Any], stream: bool) -> Answer:
        from autogen_core.models import UserMessage

        client = self.make(**self.target)
        request = [UserMessage(content=QUESTION, source="user"), *messages]
        function: Any = WEATHER["function"]
        if stream:
            *_, result = [part async for part in client.create_stream(request, tools=[function])]
        else:
            result = await client.create(request, tools=[function])
        await client.close()
        if isinstance(result.content, str):
            return Answer(result.content, [], result.finish_reason, result)
        calls = [(call.id, call.name, json.loads(call.arguments)) for call in result.content]
        reason = {"function_calls": "tool_calls"}.get(result.finish_reason, result.finish_reason)
        return Answer(result.thought or "", calls, reason, result)


ADAPTERS: dict[str, Callable[[str, str], Adapter]] = {
    "openai": OpenAI,
    "langchain": LangChain,
    "litellm": LiteLLM,
    "llama-index": LlamaIndex,
    "autogen": AutoGen,
}
