"""The whole front before upstreams over loopback: sound ones, and one that is broken in every way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx2 as httpx
import pytest
from tests.support.loopback import on_loopback
from tests.support.vocabularies import synthetic_ranks

from openk2.chat.events import ChatEvent, Finished, TextDelta
from openk2.chat.messages import ExpertUse, Usage
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.chat.template import ChatTemplate
from openk2.client import RemoteProvider
from openk2.client.gateway import Gateway, Router, Upstream
from openk2.client.gateway.completions import CompletionsProvider
from openk2.client.gateway.health import HealthWatch, would_answer
from openk2.config.sampling import SamplingParams
from openk2.server.app import create_app
from openk2.tokenizer import Tokenizer

from .conftest import HTTP, Serve, eventually, running

ASK = {"messages": [{"role": "user", "content": "hi"}]}
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = ScriptedTurn("Let me see.", calls=[ScriptedCall("add", {"a": 1}, id="call_x")], usage=Usage(20, 5, 16))


def before(*urls: str, **options: Any) -> Gateway:
    remotes = [RemoteProvider(url, max_retries=0, **options) for url in urls]
    return Gateway(Router([Upstream(url, remote, remote) for url, remote in zip(urls, remotes, strict=True)]))


def test_every_api_answers_from_one_upstream(serve: Serve) -> None:
    upstream = ScriptedProvider(lambda _: CALL)
    url = serve(before(serve(upstream).url)).url

    chat = HTTP.post(f"{url}/v1/chat/completions", json={**ASK, "tools": [ADD], "top_k": 7, "seed": 3}).json()
    (call,) = chat["choices"][0]["message"]["tool_calls"]
    assert call["id"] == "functions.add:0" and call["function"] == {"name": "add", "arguments": '{"a":1}'}
    assert chat["choices"][0]["finish_reason"] == "tool_calls"
    assert chat["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
    assert upstream.requests[0].sampling == SamplingParams(top_k=7, seed=3)

    tool = {"type": "function", "name": "add", "parameters": ADD["function"]["parameters"]}  # type: ignore[index]
    items = HTTP.post(f"{url}/v1/responses", json={"input": "hi", "tools": [tool]}).json()["output"]
    assert [item["type"] for item in items] == ["message", "function_call"] and items[1]["arguments"] == '{"a":1}'

    tool = {"name": "add", "input_schema": ADD["function"]["parameters"]}  # type: ignore[index]
    message = HTTP.post(f"{url}/v1/messages", json={**ASK, "model": "kimi-k2", "max_tokens": 9, "tools": [tool]}).json()
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"] and message[
        "stop_reason"
    ] == "tool_use"
    assert upstream.requests[-1].sampling.max_tokens == 9

    assert (
        HTTP.get(f"{url}/v1/models").json()["data"][0]["root"] == HTTP.get(f"{url}/v1/models").json()["data"][0]["id"]
    )
    assert HTTP.get(f"{url}/ready").status_code == 200
    metrics = HTTP.get(f"{url}/metrics").text
    assert "vllm:request_success_total" in metrics and 'openk2:gateway_calls_total{what="ids"} 3.0' in metrics
    assert metrics.count("openk2:upstream_up{") == 1 and 'outcome="answered"' in metrics
    refused = HTTP.post(f"{url}/v1/completions", json={"prompt": "Once"})
    assert refused.status_code == 404 and "chats only" in refused.json()["error"]["message"]


def test_the_experts_of_an_answer_come_through(serve: Serve) -> None:
    turn = ScriptedTurn("hi", usage=Usage(20, 5, 16, experts=ExpertUse("reflex", 65, 20)))
    url = serve(before(serve(ScriptedProvider(lambda _: turn)).url)).url
    chat = HTTP.post(f"{url}/v1/chat/completions", json=ASK).json()
    assert chat["usage"]["experts"] == {"mode": "reflex", "per_token": 3.25}
    message = HTTP.post(f"{url}/v1/messages", json={**ASK, "model": "kimi-k2", "max_tokens": 9}).json()
    assert message["usage"]["experts"] == {"mode": "reflex", "per_token": 3.25}


def test_text_comes_before_the_upstream_has_ended(serve: Serve) -> None:
    release = threading.Event()

    class Slow(ScriptedProvider):
        async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:  # type: ignore[override]
            yield TextDelta("first")
            await asyncio.to_thread(release.wait, 60)
            yield TextDelta(" second")
            yield Finished("stop")

    url = serve(before(serve(Slow([])).url)).url
    texts = []
    with HTTP.stream("POST", f"{url}/v1/chat/completions", json={**ASK, "tools": [ADD], "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                texts.append(choices[0]["delta"].get("content"))
                if texts[-1] == "first":
                    release.set()
    assert "".join(filter(None, texts)) == "first second"


def sse(*chunks: str) -> list[bytes]:
    return [f"data: {chunk}\n\n".encode() for chunk in chunks]


def chunk(text: str, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]})


FAILURES: dict[str, tuple[int, Any, dict[str, str]]] = {
    "refuses-key": (401, {"error": {"message": "no such key"}}, {}),
    "limits": (429, {"error": {"message": "slowly"}}, {"retry-after": "7"}),
    "full": (503, {"error": {"message": "full"}}, {}),
    "fails": (500, "<html>oops</html>", {}),
    "too-long": (
        400,
        {"error": {"message": "maximum context length is 8192 tokens, your messages resulted in 9001"}},
        {},
    ),
    "too-long-unsaid": (400, {"error": {"message": "The prompt exceeds the context window"}}, {}),
    "refuses": (400, {"error": {"message": "top_k is unsupported"}}, {}),
    "absent": (404, {"detail": "Not Found"}, {}),
    "says-html": (200, "<html>hello</html>", {}),
    "says-nonsense": (200, sse("{nonsense"), {}),
    "cuts": (200, sse(chunk("half")), {}),
    "errs-late": (200, sse(chunk("half"), '{"error": {"message": "out of memory"}}'), {}),
    "errs-early": (200, sse('{"error": {"message": "out of memory"}}'), {}),
}
"""What the broken upstream answers to a request for a model of this name."""
EXPECTED = {
    "refuses-key": (403, "permission_error", "permission_error"),
    "limits": (429, "rate_limit_error", "rate_limit_error"),
    "full": (503, "overloaded_error", "overloaded_error"),
    "fails": (502, "api_error", "api_error"),
    "too-long": (400, "invalid_request_error", "invalid_request_error"),
    "too-long-unsaid": (400, "invalid_request_error", "invalid_request_error"),
    "refuses": (400, "invalid_request_error", "invalid_request_error"),
    "absent": (404, "invalid_request_error", "not_found_error"),
    "says-html": (502, "api_error", "api_error"),
    "says-nonsense": (502, "api_error", "api_error"),
    "cuts": (502, "api_error", "api_error"),
    "errs-late": (502, "api_error", "api_error"),
    "errs-early": (502, "api_error", "api_error"),
    "says-nothing": (504, "timeout_error", "timeout_error"),
    "is-not-there": (502, "api_error", "api_error"),
}
"""Status and type in OpenAI's form, and the type in Anthropic's."""


async def broken_upstream(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    more = True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    model = json.loads(body)["model"] if body else "fails"
    if model == "says-nothing":
        await receive()
        return
    status, answer, headers = FAILURES[model]
    kind = (
        "text/event-stream"
        if isinstance(answer, list)
        else "text/html"
        if isinstance(answer, str)
        else "application/json"
    )
    parts = (
        answer if isinstance(answer, list) else [(answer if isinstance(answer, str) else json.dumps(answer)).encode()]
    )
    head = [(name.encode(), value.encode()) for name, value in {"content-type": kind, **headers}.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
def broken() -> Iterator[str]:
    with on_loopback(broken_upstream) as url:
        yield url


@pytest.mark.parametrize("failure", EXPECTED)
async def test_failures_of_upstreams_are_told_in_each_api(failure: str, broken: str) -> None:
    timeout = 2.0 if failure == "says-nothing" else 60
    provider = before(
        "127.0.0.1:9" if failure == "is-not-there" else broken, model=failure, timeout=timeout, api_key="sk-1"
    )
    status, openai_type, anthropic_type = EXPECTED[failure]
    transport = httpx.ASGITransport(create_app(provider))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        chat = await client.post("/v1/chat/completions", json=ASK)
        assert (chat.status_code, chat.json()["error"]["type"]) == (status, openai_type), chat.text
        response = await client.post("/v1/responses", json={"input": "hi"})
        assert (response.status_code, response.json()["error"]["type"]) == (status, openai_type), response.text
        message = await client.post("/v1/messages", json={**ASK, "model": failure, "max_tokens": 9})
        assert message.status_code == (529 if status == 503 else status)
        assert message.json()["type"] == "error" and message.json()["error"]["type"] == anthropic_type, message.text
    assert "sk-1" not in chat.text + response.text + message.text
    if failure == "limits":
        assert chat.headers["retry-after"] == message.headers["retry-after"] == "7"
    if failure.startswith("too-long"):
        assert chat.json()["error"]["code"] == "context_length_exceeded"
        how_much = "9001 tokens > 8192 maximum" if failure == "too-long" else "http"
        assert f"prompt is too long: {how_much}" in message.text


@pytest.mark.parametrize("failure", ["cuts", "errs-late"])
async def test_a_stream_that_breaks_ends_with_its_error(failure: str, broken: str) -> None:
    transport = httpx.ASGITransport(create_app(before(broken, model=failure)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        chat = await client.post("/v1/chat/completions", json={**ASK, "stream": True})
        lines = [line for line in chat.text.splitlines() if line]
        assert "half" in chat.text and "error" in json.loads(lines[-1].removeprefix("data: "))
        message = await client.post("/v1/messages", json={**ASK, "model": failure, "max_tokens": 9, "stream": True})
        assert "half" in message.text and "event: error" in message.text and "message_stop" not in message.text


def test_a_request_goes_on_to_the_next_upstream(serve: Serve, broken: str) -> None:
    sound = serve(ScriptedProvider(lambda _: "sound", model="fails")).url
    url = serve(before("http://127.0.0.1:9", broken, sound, model="fails")).url
    for number in range(6):
        body = {"messages": [{"role": "user", "content": f"conversation {number}"}]}
        answer = HTTP.post(f"{url}/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == "sound", answer.text


def test_upstreams_are_watched(serve: Serve, broken: str) -> None:
    with running(ScriptedProvider(lambda _: "x")) as server:
        remote = RemoteProvider(server.url)
        assert would_answer(remote)
        upstream = Upstream(server.url, remote, remote, is_up=False)
        watch = HealthWatch([upstream], every_s=0.05)
        assert eventually(lambda: upstream.is_up)
    assert eventually(lambda: not upstream.is_up), "it has ended"
    watch.stop()
    assert not would_answer(RemoteProvider(broken)), "it answers every probe with a 500"


class Raw(ScriptedProvider):
    """An engine whose chats are not to be trusted: it only continues tokens."""

    def __init__(self, text: str) -> None:
        super().__init__(lambda _: "never asked")
        self._text = text
        self.prompts: list[str | Sequence[int]] = []

    async def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        prompt, sampling = request.prompt, request.sampling
        self.prompts.append(prompt)
        assert not sampling.skip_special_tokens and sampling.max_tokens == 77
        for character in self._text:
            yield TextDelta(character)
        yield Finished("stop", Usage(len(prompt), 9))


def test_chats_over_raw_completions(serve: Serve) -> None:
    tokenizer = Tokenizer(synthetic_ranks())
    template = ChatTemplate(tokenizer)
    upstream = Raw(
        "On it.<|tool_calls_section_begin|><|tool_call_begin|>functions.add:5<|tool_call_argument_begin|>"
        '{"a": 2}<|tool_call_end|><|tool_calls_section_end|>'
    )
    remote = RemoteProvider(serve(upstream).url)
    chats = CompletionsProvider(remote, template)
    url = serve(Gateway(Router([Upstream("u", chats)]), template=template)).url
    answer = HTTP.post(f"{url}/v1/chat/completions", json={**ASK, "tools": [ADD], "max_tokens": 77}).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == "On it."
    assert message["tool_calls"][0]["id"] == "functions.add:0"
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": 2}'
    assert not upstream.requests and answer["usage"]["prompt_tokens"] == len(upstream.prompts[0])
    counted = HTTP.post(f"{url}/v1/messages/count_tokens", json={**ASK, "model": "kimi-k2"}).json()
    told = HTTP.post(f"{url}/tokenize", json=ASK).json()
    assert counted["input_tokens"] == told["count"] == len(told["tokens"])
