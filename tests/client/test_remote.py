"""The remote provider over a real connection: requests, retries, errors, aborts."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing
from typing import Any

import pytest

from openk2.chat.events import ChatEvent, Finished, TextDelta, collect_async
from openk2.chat.messages import Completion, ExpertUse, Message, TokenLogprob, ToolCall, ToolChoice, ToolSpec, Usage
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.client import RemoteProvider
from openk2.client.failures import NoEndpointError, RateLimitedError, RefusedKeyError
from openk2.client.remote import api_root
from openk2.config.sampling import SamplingParams
from openk2.errors import (
    ContextLengthError,
    ModelNotFoundError,
    OpenK2Error,
    OverloadedError,
    ProviderError,
    RequestError,
)

ASK = ChatRequest((Message("user", "hi"),))
ADD = ToolSpec.function("add", "Add.", {"type": "object", "properties": {"a": {"type": "integer"}}})


async def complete(provider: RemoteProvider, request: ChatRequest = ASK) -> Completion:
    return await collect_async(provider.stream(request))


async def test_text_usage_and_the_request(endpoint: Any, streamed: Any) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}
    endpoint.replies = [
        streamed({"content": "Hel"}, {"content": "lo"}, {"finish_reason": "stop"}, {"choices": [], "usage": usage})
    ]
    completion = await complete(RemoteProvider(endpoint.url, "m", "key-1"))
    assert (completion.message.content, completion.finish_reason) == ("Hello", "stop")
    assert completion.usage == Usage(7, 2, 5)
    assert endpoint.asked == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.headers[0]["Authorization"] == "Bearer key-1"


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ({"mode": "reflex", "per_token": 3.25}, ExpertUse("reflex", 6500, 2000)),
        ({"mode": "auto", "per_token": None}, ExpertUse("auto")),
        ({"mode": None, "per_token": 4}, ExpertUse(None, 8000, 2000)),
        ({"mode": "reflex", "per_token": "many"}, ExpertUse("reflex")),
        ({"mode": 3}, None),
        ([8], None),
    ],
)
async def test_the_experts_that_an_upstream_tells(endpoint: Any, streamed: Any, told: Any, read: Any) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "experts": told}
    endpoint.replies = [streamed({"content": "hi"}, {"finish_reason": "stop"}, {"choices": [], "usage": usage})]
    completion = await complete(RemoteProvider(endpoint.url, "m"))
    assert completion.usage.experts == read


async def test_everything_of_a_request_is_sent(endpoint: Any, streamed: Any) -> None:
    endpoint.replies = [streamed({"finish_reason": "stop"})]
    messages = (
        Message("system", [{"type": "text", "text": "S"}]),
        Message("user", "u", name="eve"),
        Message("assistant", None, tool_calls=(ToolCall("call_x1", "add", '{ "a":1 }'),)),
        Message("tool", "1", tool_call_id="call_x1"),
    )
    sampling = SamplingParams(
        max_tokens=5, temperature=0, top_p=0.5, top_k=3, min_p=0.1, seed=0, stop=("x",), ignore_eos=True, topk=4
    )
    choice = ToolChoice("required", "add", parallel=False)
    await complete(RemoteProvider(endpoint.url, "m"), ChatRequest(messages, (ADD,), choice, sampling))
    (body,) = endpoint.asked
    assert body["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "S"}]},
        {"role": "user", "content": "u", "name": "eve"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_x1", "type": "function", "function": {"name": "add", "arguments": '{ "a":1 }'}}
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "call_x1"},
    ]
    assert body["tools"] == [ADD.declaration]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["parallel_tool_calls"] is False
    sent = {"max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 0, "stop": ["x"]}
    assert sent | {"ignore_eos": True, "topk": 4} == {key: body[key] for key in (*sent, "ignore_eos", "topk")}
    assert "mode" not in body and "Authorization" not in endpoint.headers[0]
    await complete(RemoteProvider(endpoint.url, "m"), ChatRequest(messages, sampling=SamplingParams(mode="auto")))
    assert endpoint.asked[-1]["mode"] == "auto"


async def test_the_model_is_discovered_once(endpoint: Any, streamed: Any) -> None:
    endpoint.replies = [streamed({"content": "x", "finish_reason": "stop"})]
    provider = RemoteProvider(f"{endpoint.url}/v1/")
    await complete(provider)
    await complete(provider)
    assert provider.model == "first" and [body["model"] for body in endpoint.asked] == ["first", "first"]
    assert [provider.max_model_len, provider.max_model_len] == [4096, 4096]
    assert endpoint.paths.count("/v1/models") == 1


def test_a_failed_discovery_is_tried_again(endpoint: Any, reply: Any) -> None:
    models = endpoint.models
    endpoint.models = reply("loading", status=503)
    provider = RemoteProvider(endpoint.url)
    with pytest.raises(OverloadedError):
        provider.model  # noqa: B018
    endpoint.models = models
    assert (provider.model, provider.max_model_len) == ("first", 4096)


def test_no_model_listed(endpoint: Any, reply: Any) -> None:
    for body in ("{}", '{"data": []}', "nonsense", '{"data": null}'):
        endpoint.models = reply(body)
        with pytest.raises(ModelNotFoundError, match="lists no model"):
            RemoteProvider(endpoint.url).model  # noqa: B018
    assert RemoteProvider(endpoint.url, "m").max_model_len is None


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("http://h/v1/", "http://h/v1"),
        ("h:8000/v1/chat/completions", "http://h:8000/v1"),
        ("localhost:80", "http://localhost:80/v1"),
        ("https://h/openai/v1", "https://h/openai/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        ("https://h/api", "https://h/api/v1"),
    ],
)
def test_base_urls(given: str, root: str) -> None:
    assert api_root(given) == root


@pytest.mark.parametrize("given", ["", "ftp://h", "http://", "http://h:port", "http://[::1"])
def test_what_is_no_base_url(given: str) -> None:
    with pytest.raises(RequestError, match="no base URL"):
        RemoteProvider(given)


ERRORS = [
    (400, {"error": {"message": "bad temperature"}}, RequestError, "bad temperature"),
    (401, {"error": {"message": "wrong key"}}, RefusedKeyError, "OPENAI_API_KEY"),
    (404, {"error": {"message": "gone", "code": "model_not_found"}}, ModelNotFoundError, "gone"),
    (404, {"message": "The model `m` does not exist.", "object": "error"}, ModelNotFoundError, "does not exist"),
    (404, {"detail": "Not Found"}, NoEndpointError, "base URL"),
    (404, "<html>nginx</html>", NoEndpointError, "answered 404 "),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, RequestError, "field required"),
    (400, [{"error": {"message": "in a list"}}], RequestError, "in a list"),
    (400, {"error": "as a string"}, RequestError, "as a string"),
    (400, "plain text", RequestError, "plain text"),
]


@pytest.mark.parametrize(("status", "body", "kind", "part"), ERRORS)
async def test_refusals(status: int, body: Any, kind: type[OpenK2Error], part: str, endpoint: Any, reply: Any) -> None:
    endpoint.replies = [reply(body if isinstance(body, str) else json.dumps(body), status)]
    with pytest.raises(kind) as caught:
        await complete(RemoteProvider(endpoint.url, "m"))
    assert type(caught.value) is kind and part in str(caught.value) and "\n" not in str(caught.value)
    assert len(endpoint.asked) == 1, "a refusal is not asked again"


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        ("This model's maximum context length is 4096 tokens, but the prompt has 5000.", (5000, 4096)),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
            (9001, 8192),
        ),
        ("prompt is too long: 204921 tokens > 200000 maximum", (204921, 200000)),
        (
            "'max_tokens' is too large: 90. This model's maximum context length is 100 tokens and your request has 20 "
            "input tokens",
            None,
        ),
        ("Requested tokens exceed context window", None),
    ],
)
async def test_overflow(message: str, numbers: tuple[int, int] | None, endpoint: Any, reply: Any) -> None:
    endpoint.replies = [reply(json.dumps({"error": {"message": message}}), 400)]
    with pytest.raises(RequestError) as caught:
        await complete(RemoteProvider(endpoint.url, "m"))
    assert caught.value.code == "context_length_exceeded"
    if numbers is not None:
        assert isinstance(caught.value, ContextLengthError)
        assert (caught.value.prompt_tokens, caught.value.max_model_len) == numbers


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_a_passing_failure_is_retried(
    status: int, endpoint: Any, streamed: Any, reply: Any, pauses: list[float]
) -> None:
    endpoint.replies = [reply("", status), reply("", status), streamed({"content": "ok", "finish_reason": "stop"})]
    assert (await complete(RemoteProvider(endpoint.url, "m"))).message.content == "ok"
    assert len(pauses) == 2 and 0 < pauses[0] < pauses[1]


@pytest.mark.parametrize(
    ("status", "kind"), [(429, RateLimitedError), (503, OverloadedError), (529, OverloadedError), (500, ProviderError)]
)
async def test_retries_are_bounded(status: int, kind: type[OpenK2Error], endpoint: Any, reply: Any) -> None:
    endpoint.replies = [reply(json.dumps({"error": {"message": "busy"}}), status)]
    with pytest.raises(kind, match="busy") as caught:
        await complete(RemoteProvider(endpoint.url, "m", max_retries=2))
    assert type(caught.value) is kind and len(endpoint.asked) == 3


async def test_retry_after(endpoint: Any, streamed: Any, reply: Any, pauses: list[float]) -> None:
    ok = streamed({"content": "ok", "finish_reason": "stop"})
    endpoint.replies = [reply("", 429, {"Retry-After": "7"}), reply("", 429, {"retry-after-ms": "250"}), ok]
    await complete(RemoteProvider(endpoint.url, "m"))
    assert pauses == [7, 0.25]
    endpoint.asked.clear()
    endpoint.replies = [reply("", 429, {"Retry-After": "3600"}), ok]
    with pytest.raises(OverloadedError) as caught:
        await complete(RemoteProvider(endpoint.url, "m"))
    assert len(endpoint.asked) == 1, "nobody waits for an hour"
    assert caught.value.retry_after_s == 3600


async def test_nothing_is_retried_after_the_first_event(endpoint: Any, streamed: Any) -> None:
    endpoint.replies = [streamed({"content": "half"}, done=False)]
    seen: list[ChatEvent] = []
    with pytest.raises(ProviderError, match="before the answer was complete"):
        async for event in RemoteProvider(endpoint.url, "m").stream(ASK):
            seen.append(event)  # noqa: PERF401 - what came before the error is what is tested
    assert seen == [TextDelta("half")] and len(endpoint.asked) == 1


async def test_no_server() -> None:
    with pytest.raises(ProviderError, match=r"cannot reach http://127\.0\.0\.1:9/v1"):
        await complete(RemoteProvider("127.0.0.1:9", "m"))
    with pytest.raises(ProviderError, match="cannot reach"):
        await complete(RemoteProvider("127.0.0.1:9"))


async def test_a_silent_server(endpoint: Any, streamed: Any, reply: Any) -> None:
    release = threading.Event()

    class Silent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return release.wait(20)

    endpoint.replies = [reply(["data: {}\n\n"], hold=Silent())]
    try:
        with pytest.raises(OverloadedError, match=r"sent nothing for 0\.2 s"):
            await complete(RemoteProvider(endpoint.url, "m", timeout=0.2))
    finally:
        release.set()


async def test_closing_the_stream_closes_the_connection(endpoint: Any, streamed: Any, reply: Any) -> None:
    frames = streamed({"content": "one"}, done=False).body
    endpoint.replies = [reply(frames, hold=threading.Event())]
    async with aclosing(RemoteProvider(endpoint.url, "m").stream(ASK)) as stream:
        assert await anext(stream) == TextDelta("one")
    assert await asyncio.to_thread(endpoint.client_gone.wait, 20)


async def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    endpoint: Any, streamed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    endpoint.replies = [streamed({"content": "ok", "finish_reason": "stop"})]
    assert (await complete(RemoteProvider(endpoint.url, "m"))).message.content == "ok"


async def test_a_key_is_never_repeated(endpoint: Any, streamed: Any, reply: Any) -> None:
    provider = RemoteProvider(endpoint.url, "m", "sk-secret-1", key_source="the file keys.txt")
    endpoint.replies = [reply(json.dumps({"error": {"message": "Incorrect API key: sk-secret-1"}}), 401)]
    with pytest.raises(RefusedKeyError, match=r"Incorrect API key: \[API key\].*the file keys\.txt"):
        await complete(provider)
    endpoint.replies = [streamed({"content": "a"}, {"error": {"message": "sk-secret-1 was revoked"}})]
    with pytest.raises(ProviderError) as caught:
        await complete(provider)
    assert "secret" not in str(caught.value)


async def test_connections_are_kept_when_asked(endpoint: Any, streamed: Any) -> None:
    endpoint.replies = [streamed({"content": "ok", "finish_reason": "stop"})]
    provider = RemoteProvider(endpoint.url, "m", keeps_connections=True)
    assert [(await complete(provider)).message.content for _ in range(2)] == ["ok", "ok"]


async def test_a_raw_continuation(endpoint: Any, reply: Any) -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {"b": -0.5, "c": -1.5}]}
    chunks = [
        {"choices": [{"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "c", "finish_reason": "stop", "stop_reason": "X"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    ]
    endpoint.replies = [reply([*(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n"])]
    sampling = SamplingParams(max_tokens=5, stop=("X",), logprobs=2, skip_special_tokens=False)
    events = [event async for event in RemoteProvider(endpoint.url, "m").stream_text(TextRequest([1, 2, 3], sampling))]
    top = (TokenLogprob(b"b", -0.5), TokenLogprob(b"c", -1.5))
    assert events == [
        TextDelta("ab", (TokenLogprob(b"b", -0.5, top),)),
        TextDelta("c"),
        Finished("stop", Usage(3, 2), "X"),
    ]
    assert endpoint.paths == ["/v1/completions"]
    asked = {"model": "m", "prompt": [1, 2, 3], "stream": True, "stream_options": {"include_usage": True}}
    assert endpoint.asked == [asked | {"max_tokens": 5, "stop": ["X"], "skip_special_tokens": False, "logprobs": 2}]


async def test_a_continuation_that_breaks_off(endpoint: Any, reply: Any) -> None:
    endpoint.replies = [reply(['data: {"choices": [{"index": 0, "text": "half", "finish_reason": null}]}\n\n'])]
    with pytest.raises(ProviderError, match="before the answer was complete"):
        [event async for event in RemoteProvider(endpoint.url, "m").stream_text(TextRequest("Once"))]
