"""Clients that programs are written for, each against a real server in front of a script.

`make test-clients` runs these in an environment of their own; a client that is not installed is skipped.
"""

from __future__ import annotations

import json

import pytest
from tests.clients.adapters import ADAPTERS, USER, WEATHER, LangChain, LiteLLM
from tests.server.conftest import Serve

from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import ContextLengthError, ProviderError

pytestmark = pytest.mark.clients

OSLO = ScriptedCall("get_weather", {"city": "Oslo"})
ROME = ScriptedCall("get_weather", {"city": "Rome"})
PARALLEL = ScriptedTurn("I will look.", [OSLO, ROME], usage=Usage(20, 9, 4))
PARALLEL_CALLS = [
    ("functions.get_weather:0", "get_weather", {"city": "Oslo"}),
    ("functions.get_weather:1", "get_weather", {"city": "Rome"}),
]
BOTH_WAYS = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
EVERY_CLIENT = pytest.mark.parametrize("name", ADAPTERS)


@EVERY_CLIENT
@BOTH_WAYS
def test_chat(serve: Serve, name: str, stream: bool) -> None:
    provider = ScriptedProvider(["Héllo wörld 👋"])
    answer = ADAPTERS[name](serve(provider).url, "scripted").ask(stream=stream)
    assert (answer.text, answer.calls, answer.finish_reason) == ("Héllo wörld 👋", [], "stop")
    (request,) = provider.requests
    assert [(message.role, message.text) for message in request.messages] == [("user", USER["content"])]
    assert [tool.name for tool in request.tools] == ["get_weather"]


@EVERY_CLIENT
@BOTH_WAYS
@pytest.mark.parametrize("text", ["", "I will look."], ids=["calls alone", "text before the calls"])
def test_parallel_calls(serve: Serve, name: str, stream: bool, text: str) -> None:
    provider = ScriptedProvider([ScriptedTurn(text, [OSLO, ROME])])
    answer = ADAPTERS[name](serve(provider).url, "scripted").ask(stream=stream)
    assert (answer.text, answer.calls, answer.finish_reason) == (text, PARALLEL_CALLS, "tool_calls")


@EVERY_CLIENT
@BOTH_WAYS
def test_a_call_without_arguments(serve: Serve, name: str, stream: bool) -> None:
    provider = ScriptedProvider([ScriptedTurn("", [ScriptedCall("get_weather", "{}"), ROME])])
    answer = ADAPTERS[name](serve(provider).url, "scripted").ask(stream=stream)
    assert [arguments for _, _, arguments in answer.calls] == [{}, {"city": "Rome"}]


@EVERY_CLIENT
@BOTH_WAYS
def test_a_second_turn_with_results(serve: Serve, name: str, stream: bool) -> None:
    provider = ScriptedProvider([PARALLEL, "Oslo is cold, Rome is warm."])
    client = ADAPTERS[name](serve(provider).url, "scripted")
    first = client.ask(stream=stream)
    results = {"functions.get_weather:1": "25", "functions.get_weather:0": "-3"}
    second = client.bring_results(first, results, stream=stream)
    assert (second.text, second.calls) == ("Oslo is cold, Rome is warm.", [])
    user, assistant, rome, oslo = provider.requests[1].messages
    assert (user.role, user.text) == ("user", USER["content"])
    assert (assistant.role, assistant.text) == ("assistant", "I will look.")
    calls = [(call.id, call.name, json.loads(call.arguments)) for call in assistant.tool_calls]
    assert calls == PARALLEL_CALLS
    assert [(m.role, m.text, m.tool_call_id) for m in (rome, oslo)] == [
        ("tool", "25", "functions.get_weather:1"),
        ("tool", "-3", "functions.get_weather:0"),
    ]


@BOTH_WAYS
def test_langchain_reads_the_usage(serve: Serve, stream: bool) -> None:
    usage = LangChain(serve(ScriptedProvider([PARALLEL])).url, "scripted").ask(stream=stream).native.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (20, 9, 29)
    assert usage["input_token_details"]["cache_read"] == 4


@pytest.mark.parametrize(
    ("tool_choice", "mode", "tool"),
    [("any", "required", None), ("get_weather", "required", "get_weather"), ("none", "none", None)],
)
def test_langchain_tool_choice(serve: Serve, tool_choice: str, mode: str, tool: str | None) -> None:
    provider = ScriptedProvider(["whatever"])
    client = LangChain(serve(provider).url, "scripted")
    bound = client.chat.bind_tools([WEATHER], tool_choice=tool_choice, parallel_tool_calls=False)
    client.send(bound, [("user", "Weather?")], stream=False)
    choice = provider.requests[0].tool_choice
    assert (choice.mode, choice.name, choice.parallel) == (mode, tool, False)


def test_litellm_knows_a_full_window(serve: Serve) -> None:
    client = LiteLLM(
        serve(ScriptedProvider([ContextLengthError(prompt_tokens=5000, max_model_len=4096)])).url, "scripted"
    )
    with pytest.raises(client.litellm.ContextWindowExceededError):
        client.send([USER], stream=False)


@EVERY_CLIENT
def test_a_stream_that_breaks_is_an_error_in_the_client(serve: Serve, name: str) -> None:
    provider = ScriptedProvider([ScriptedTurn("some text", error=ProviderError("the engine ended"))])
    with pytest.raises(Exception, match="the engine ended"):
        ADAPTERS[name](serve(provider).url, "scripted").ask(stream=True)
