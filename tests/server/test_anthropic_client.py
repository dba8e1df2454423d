"""The official client against the server, over loopback. Without that package these are skipped."""

from __future__ import annotations

import json

import pytest

from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import ContextLengthError, OverloadedError, ProviderError
from openk2.server.settings import ServerSettings

from .conftest import HTTP, RunningServer

anthropic = pytest.importorskip("anthropic")

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
USER = {"role": "user", "content": "Weather in Oslo and Rome?"}
TWO_CALLS = ScriptedTurn(
    "I will look.",
    [ScriptedCall("get_weather", {"city": "Oslo"}), ScriptedCall("get_weather", {"city": "Rome"})],
    usage=Usage(20, 9, 4),
)


def client_of(server: RunningServer, key: str = "any") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=120, http_client=HTTP)


def answer(client: anthropic.Anthropic, stream: bool, **body):
    """The message; streamed, what the client's own accumulator makes of it."""
    body = {"model": "scripted", "max_tokens": 100} | body
    if not stream:
        return client.messages.create(**body)
    with client.messages.stream(**body) as events:
        return events.get_final_message()


BOTH_WAYS = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


@BOTH_WAYS
def test_text(serve, stream):
    client = client_of(serve(ScriptedProvider([ScriptedTurn("Héllo wörld 👋", usage=Usage(7, 5, 2))])))
    message = answer(client, stream, messages=[USER], system="S")
    assert [(block.type, block.text) for block in message.content] == [("text", "Héllo wörld 👋")]
    assert (message.stop_reason, message.stop_sequence, message.role) == ("end_turn", None, "assistant")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 2, 5)
    assert type(message).model_validate_json(message.model_dump_json())  # every field is of the declared type


def test_text_stream_yields_the_text(serve):
    client = client_of(serve(ScriptedProvider(["Once upon a time"])))
    with client.messages.stream(model="scripted", max_tokens=9, messages=[USER]) as stream:
        assert "".join(stream.text_stream) == "Once upon a time"


@BOTH_WAYS
def test_calls_and_their_results_go_round(serve, stream):
    provider = ScriptedProvider([TWO_CALLS, "Oslo is cold, Rome is warm."])
    client = client_of(serve(provider))
    first = answer(client, stream, messages=[USER], tools=[WEATHER])
    assert first.stop_reason == "tool_use"
    text, oslo, rome = first.content
    assert text.text == "I will look."
    assert [(call.name, call.input) for call in (oslo, rome)] == [
        ("get_weather", {"city": "Oslo"}),
        ("get_weather", {"city": "Rome"}),
    ]
    assert oslo.id != rome.id and oslo.id.startswith("toolu_")
    results = [
        {"type": "tool_result", "tool_use_id": rome.id, "content": [{"type": "text", "text": "25"}]},
        {"type": "tool_result", "tool_use_id": oslo.id, "content": "-3"},
    ]
    messages = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = answer(client, stream, messages=messages, tools=[WEATHER])
    assert second.content[0].text == "Oslo is cold, Rome is warm."
    _, turn, warm, cold = provider.requests[1].messages
    assert [json.loads(call.arguments) for call in turn.tool_calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert [(warm.text, warm.tool_call_id), (cold.text, cold.tool_call_id)] == [("25", rome.id), ("-3", oslo.id)]
    assert [call.id for call in turn.tool_calls] == [oslo.id, rome.id]


@BOTH_WAYS
@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (ScriptedTurn("", usage=Usage(1, 0)), "end_turn"),
        (ScriptedTurn("a", finish_reason="length", usage=Usage(1, 100)), "max_tokens"),
        (ScriptedTurn("a", stop_string="END"), "stop_sequence"),
        (ScriptedTurn("", [ScriptedCall("get_weather", "")]), "tool_use"),
    ],
)
def test_stop_reasons(serve, turn, reason, stream):
    client = client_of(serve(ScriptedProvider([turn])))
    message = answer(client, stream, messages=[USER], tools=[WEATHER], stop_sequences=["END"])
    assert message.stop_reason == reason
    assert message.stop_sequence == ("END" if reason == "stop_sequence" else None)


def test_counting(serve):
    client = client_of(serve(ScriptedProvider([])))
    assert client.messages.count_tokens(model="scripted", messages=[USER], tools=[WEATHER]).input_tokens == 5


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (ContextLengthError(prompt_tokens=9, max_model_len=8), "BadRequestError", "prompt is too long: 9 tokens > 8 m"),
        (OverloadedError("no room"), "InternalServerError", "no room"),
        (ProviderError("the engine ended"), "InternalServerError", "the engine ended"),
    ],
)
@BOTH_WAYS
def test_errors_are_of_the_clients_own_classes(serve, error, raised, text, stream):
    client = client_of(serve(ScriptedProvider([error])))
    with pytest.raises(anthropic.APIStatusError, match=text) as caught:
        answer(client, stream, messages=[USER])
    assert isinstance(caught.value, getattr(anthropic, raised))
    assert caught.value.request_id == caught.value.body["request_id"]


def test_refusals_are_of_the_clients_own_classes(serve):
    server = serve(ScriptedProvider([]), ServerSettings(api_keys=("secret",)))
    with pytest.raises(anthropic.AuthenticationError):
        answer(client_of(server), False, messages=[USER])
    with pytest.raises(anthropic.NotFoundError):
        answer(client_of(server, "secret"), False, messages=[USER], model="gpt-17")
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].input_schema"):
        answer(client_of(server, "secret"), False, messages=[USER], tools=[WEATHER | {"input_schema": {}}])


def test_a_stream_that_breaks_raises_in_the_client(serve):
    client = client_of(serve(ScriptedProvider([ScriptedTurn("some text", error=ProviderError("the engine ended"))])))
    text = ""
    with (
        pytest.raises(anthropic.APIError, match="the engine ended"),
        client.messages.stream(model="scripted", max_tokens=9, messages=[USER]) as stream,
    ):
        for piece in stream.text_stream:
            text += piece
    assert text == "some text"
