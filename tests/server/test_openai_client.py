"""The official client against the server, over loopback: what a user's program sees."""

from __future__ import annotations

import json

import openai
import pytest
from openai.types.chat import ChatCompletion

from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import ContextLengthError, ProviderError

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
USER = {"role": "user", "content": "Weather in Oslo and Rome?"}
ONE_CALL = ScriptedTurn("", [ScriptedCall("get_weather", {"city": "Oslo"})])
TWO_CALLS = ScriptedTurn(
    "I will look.",
    [ScriptedCall("get_weather", {"city": "Oslo"}), ScriptedCall("get_weather", {"city": "Rome"})],
    usage=Usage(20, 9, 4),
)


def streamed(client: openai.OpenAI, **body) -> ChatCompletion:
    """What the client's own accumulator makes of the stream."""
    with client.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def calls_of(completion: ChatCompletion) -> list[tuple[str, str, dict]]:
    calls = completion.choices[0].message.tool_calls or []
    return [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_the_guides_quick_start_runs_with_only_base_url_changed(serve):
    provider = ScriptedProvider(lambda _: "def fib(n): ...", model="k2-nano")
    client = serve(provider).client
    response = client.chat.completions.create(
        model="moonshotai/Kimi-K2-Instruct-0905-FP8",
        messages=[{"role": "user", "content": "Write a Python fibonacci function"}],
        temperature=0.6,
    )
    assert response.choices[0].message.content == "def fib(n): ..."
    assert response.choices[0].finish_reason == "stop"
    assert response.model == "k2-nano"  # an alias is answered, and the answer says by whom
    client.chat.completions.create(
        model="kimi-k2-0905",
        messages=[{"role": "user", "content": "Analyze this codebase..."}],
        temperature=0.6,
        max_tokens=4096,
    )
    assert provider.requests[1].sampling.max_tokens == 4096


def test_streamed_chat_equals_the_plain_answer(serve):
    client = serve(ScriptedProvider(lambda _: ScriptedTurn("Héllo wörld 👋", usage=Usage(7, 5, 2)))).client
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
    plain = client.chat.completions.create(**body)
    both = streamed(client, **body, stream_options={"include_usage": True})
    assert both.choices[0].message.content == plain.choices[0].message.content == "Héllo wörld 👋"
    assert both.usage == plain.usage
    assert plain.usage.prompt_tokens == 7 and plain.usage.prompt_tokens_details.cached_tokens == 2


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (ONE_CALL, [("functions.get_weather:0", "get_weather", {"city": "Oslo"})]),
        (
            TWO_CALLS,
            [
                ("functions.get_weather:0", "get_weather", {"city": "Oslo"}),
                ("functions.get_weather:1", "get_weather", {"city": "Rome"}),
            ],
        ),
    ],
    ids=["single", "parallel"],
)
def test_calls_arrive_both_ways(serve, turn, expected):
    client = serve(ScriptedProvider(lambda _: turn)).client
    body = {"model": "scripted", "messages": [USER], "tools": [WEATHER]}
    plain = client.chat.completions.create(**body)
    both = streamed(client, **body)
    assert calls_of(plain) == calls_of(both) == expected
    assert plain.choices[0].finish_reason == both.choices[0].finish_reason == "tool_calls"
    assert plain.choices[0].message.content == both.choices[0].message.content == (turn.text or None)


def test_a_second_turn_brings_the_results_back(serve):
    provider = ScriptedProvider([TWO_CALLS, "Oslo is cold, Rome is warm."])
    client = serve(provider).client
    first = client.chat.completions.create(model="scripted", messages=[USER], tools=[WEATHER])
    message = first.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": message.tool_calls[1].id, "content": [{"type": "text", "text": "25"}]},
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "-3"},
    ]
    second = client.chat.completions.create(
        model="scripted", messages=[USER, message.model_dump(), *results], tools=[WEATHER]
    )
    assert second.choices[0].message.content == "Oslo is cold, Rome is warm."
    _, assistant, rome, oslo = provider.requests[1].messages
    assert assistant.text == "I will look."
    assert [call.arguments for call in assistant.tool_calls] == ['{"city":"Oslo"}', '{"city":"Rome"}']
    assert (rome.text, rome.tool_call_id) == ("25", assistant.tool_calls[1].id)
    assert (oslo.text, oslo.tool_call_id) == ("-3", assistant.tool_calls[0].id)


def test_unknown_model(serve):
    client = serve(ScriptedProvider(["never"])).client
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-17", messages=[USER])
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


def test_malformed_tool_schema(serve):
    provider = ScriptedProvider(["never"])
    client = serve(provider).client
    broken = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": "x"}}}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="scripted", messages=[USER], tools=[WEATHER, broken])
    assert error.value.param == "tools[1].function.parameters.properties"
    assert not provider.requests


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_past_the_window(serve, stream):
    client = serve(ScriptedProvider([ContextLengthError(prompt_tokens=5000, max_model_len=4096)])).client
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="scripted", messages=[USER], stream=stream)
    assert error.value.code == "context_length_exceeded"
    assert (error.value.body["prompt_tokens"], error.value.body["max_model_len"]) == (5000, 4096)


def test_a_stream_that_breaks_raises_in_the_client(serve):
    turn = ScriptedTurn("some text", error=ProviderError("the engine ended"))
    client = serve(ScriptedProvider(lambda _: turn)).client
    text = ""
    with pytest.raises(openai.APIError, match="the engine ended"):
        for chunk in client.chat.completions.create(model="scripted", messages=[USER], stream=True):
            text += chunk.choices[0].delta.content
    assert text == "some text"
    with pytest.raises(openai.InternalServerError, match="the engine ended"):
        client.chat.completions.create(model="scripted", messages=[USER])


def test_models_lists_the_loaded_one_first(serve):
    client = serve(ScriptedProvider([], model="k2-nano")).client
    models = client.models.list().data
    assert models[0].id == "k2-nano"
    assert {model.root for model in models} == {"k2-nano"}
    assert client.models.retrieve("moonshotai/Kimi-K2-Instruct-0905-FP8").id in {model.id for model in models}


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_are_independent_and_seeded(serve, stream):
    provider = ScriptedProvider(lambda request: f"seed {request.sampling.seed}")
    client = serve(provider).client
    body = {"model": "scripted", "messages": [USER], "n": 3, "seed": 40}
    completion = streamed(client, **body) if stream else client.chat.completions.create(**body)
    assert [choice.message.content for choice in completion.choices] == ["seed 40", "seed 41", "seed 42"]
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    if not stream:
        assert completion.usage.completion_tokens == 6  # words stand in for tokens
        assert completion.usage.prompt_tokens == 5  # the prompt counts once
