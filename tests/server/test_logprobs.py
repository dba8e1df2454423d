"""Log probabilities on the wire: chats, completions and responses, whole and streamed, in the client's own types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from openk2.chat.events import ChatEvent, Finished, TextDelta, collect
from openk2.chat.messages import TokenLogprob, Usage
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.chat.scripted import ScriptedProvider
from openk2.client.reply import ReplyReader
from openk2.client.request import request_body
from openk2.config import SamplingParams
from openk2.server.openai.schema import read_chat_completion

from .conftest import HTTP, RunningServer, running

WAVE = "\U0001f44b".encode()
TOKENS = (
    TokenLogprob(b"Hi", -0.25, (TokenLogprob(b"Hi", -0.25), TokenLogprob(b"Ho", -2.0))),
    TokenLogprob(WAVE[:2], -1.5, (TokenLogprob(b"!", -0.5), TokenLogprob(WAVE[:2], -1.5))),
    TokenLogprob(WAVE[2:], 0.0, (TokenLogprob(WAVE[2:], 0.0),)),
    TokenLogprob(b"!", -0.125, (TokenLogprob(b"!", -0.125), TokenLogprob(b"?", -3.0))),
)
WIRE = [
    {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": list(token.bytes),
        "top_logprobs": [{"token": t.text, "logprob": t.logprob, "bytes": list(t.bytes)} for t in token.top],
    }
    for token in TOKENS
]
USER = {"role": "user", "content": "Hi"}


class Telling(ScriptedProvider):
    """Says the same in three pieces, with log probabilities where they are asked for."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        async for event in self.stream_text(TextRequest("", request.sampling)):
            yield event

    async def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        for text, tokens in (("Hi", TOKENS[:1]), ("\U0001f44b", TOKENS[1:3]), ("!", TOKENS[3:])):
            yield TextDelta(text, () if request.sampling.logprobs is None else tokens)
        yield Finished("stop", Usage(1, 4))


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(Telling([])) as server:
        yield server


def test_chats(server: RunningServer) -> None:
    create = server.client.chat.completions.create
    body: Any = {"model": "kimi-k2", "messages": [USER], "logprobs": True, "top_logprobs": 2}
    plain = create(**body).choices[0].logprobs
    assert plain is not None and [token.model_dump() for token in plain.content or []] == WIRE
    chunks = [chunk.choices[0].logprobs for chunk in create(**body, stream=True)]
    assert [token.model_dump() for told in chunks if told for token in told.content or []] == WIRE
    with server.client.chat.completions.stream(**body) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].logprobs is not None
    assert [token.model_dump() for token in final.choices[0].logprobs.content or []] == WIRE
    assert create(model="kimi-k2", messages=[USER]).choices[0].logprobs is None  # not asked for


def test_completions(server: RunningServer) -> None:
    create = server.client.completions.create
    plain = create(model="kimi-k2", prompt="a", logprobs=2).choices[0].logprobs
    assert plain is not None
    first, last = "bytes:\\xf0\\x9f", "bytes:\\x91\\x8b"
    assert plain.tokens == ["Hi", first, last, "!"]
    assert plain.token_logprobs == [-0.25, -1.5, 0.0, -0.125]
    assert plain.top_logprobs == [
        {"Hi": -0.25, "Ho": -2.0},
        {"!": -0.5, first: -1.5},
        {last: 0.0},
        {"!": -0.125, "?": -3.0},
    ]
    assert plain.text_offset == [0, 2, 2, 3]
    chunks = [chunk.choices[0].logprobs for chunk in create(model="kimi-k2", prompt="a", logprobs=2, stream=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for told in chunks if told for entry in getattr(told, name)] == getattr(plain, name)


def test_responses(server: RunningServer) -> None:
    body: Any = {"model": "kimi-k2", "input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    plain = server.client.responses.create(**body).output[0].content[0]
    assert [token.model_dump() for token in plain.logprobs] == WIRE
    with server.client.responses.stream(**body) as stream:
        final = stream.get_final_response()
    assert [token.model_dump() for token in final.output[0].content[0].logprobs] == WIRE
    deltas = [
        event for event in server.client.responses.create(**body, stream=True) if event.type.endswith("text.delta")
    ]
    assert [token.token for event in deltas for token in event.logprobs] == [token.text for token in TOKENS]


def test_another_server_is_asked_and_read_alike(server: RunningServer) -> None:
    """A request through the client's body, and an answer through its reader, are the same again."""
    sampling = SamplingParams(
        logprobs=2, frequency_penalty=0.5, presence_penalty=-1, repetition_penalty=1.2, min_p=0.1, min_tokens=3,
        logit_bias=((5, 1.5),), stop_token_ids=(7,),
    )  # fmt: skip
    request = read_chat_completion({"messages": [USER]}).choice_requests()[0]
    asked = request_body(ChatRequest(request.messages, sampling=sampling), "kimi-k2")
    assert read_chat_completion(asked).choice_requests()[0].sampling == sampling
    reader = ReplyReader()
    body = HTTP.post(f"{server.url}/v1/chat/completions", json=asked | {"stream": False, "stream_options": None}).json()
    events = [*reader.feed(body), *reader.finish(done_seen=True)]
    assert collect(events).logprobs == TOKENS


def test_a_server_that_leaves_the_bytes_out() -> None:
    chunk = {"delta": {"content": "x"}, "logprobs": {"content": [{"token": "x", "logprob": -1}]}}
    (event,) = ReplyReader().feed({"choices": [chunk]})
    assert event == TextDelta("x", (TokenLogprob(b"x", -1),))
