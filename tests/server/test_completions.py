"""`/v1/completions`: a prompt as it stands, streamed or not, and what is refused."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import openai
import pytest
from tests.support.vocabularies import synthetic_ranks

from openk2.chat.events import ChatEvent, Finished, TextDelta
from openk2.chat.messages import TokenLogprob, Usage
from openk2.chat.provider import TextRequest
from openk2.chat.scripted import ScriptedProvider
from openk2.config import SamplingParams
from openk2.errors import ProviderError, RequestError
from openk2.server.openai.completions import CompletionRequest, read_completion
from openk2.server.openai.logprobs import TextLogprobs
from openk2.tokenizer import save_ranks

from .conftest import HTTP, RunningServer, Serve, running


def read(**body: Any) -> CompletionRequest:
    return read_completion({"prompt": "Once"} | body)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Once", ("Once",)),
        (["Once"], ("Once",)),
        ([1, 2], ((1, 2),)),
        ([[1, 2]], ((1, 2),)),
        (["a", "<|im_end|>"], ("a", "<|im_end|>")),
        ([[1], "a", [2, 3]], ((1,), "a", (2, 3))),
    ],
)
def test_prompts(given: Any, prompts: Any) -> None:
    assert read(prompt=given).prompts == prompts


def test_settings_are_those_of_chats() -> None:
    body = read(max_tokens=7, temperature=0, seed=3, stop=["\n"], n=2, echo=False, best_of=2, suffix=None, user="u")
    assert body.sampling == SamplingParams(max_tokens=7, temperature=0, seed=3, stop=("\n",))
    assert (body.n, body.stream, body.ignored) == (2, False, ("user",))
    assert read(skip_special_tokens=False).sampling.skip_special_tokens is False
    assert read().sampling.max_tokens == 16 and read(min_tokens=20).sampling.max_tokens == 20


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("prompt", {"prompt": None}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": []}),
        ("prompt[0]", {"prompt": [[]]}),
        ("prompt", {"prompt": {"a": 1}}),
        ("prompt", {"prompt": ["a"] * 17, "n": 8}),
        ("prompt[1]", {"prompt": ["a", ""]}),
        ("prompt[1]", {"prompt": ["a", 3]}),
        ("prompt[1][0]", {"prompt": ["a", ["b"]]}),
        ("prompt[1]", {"prompt": [1, "a"]}),
        ("prompt[0]", {"prompt": [True]}),
        ("echo", {"echo": "yes"}),
        ("suffix", {"suffix": "end"}),
        ("best_of", {"best_of": 2, "n": 3}),
        ("best_of", {"best_of": 9}),
        ("best_of", {"best_of": 2, "stream": True}),
        ("logprobs", {"logprobs": 6}),
        ("logit_bias.x", {"logit_bias": {"x": 1}}),
        ("frequency_penalty", {"frequency_penalty": 3}),
        ("n", {"n": 0}),
        ("stop", {"stop": 3}),
        ("stream_options", {"stream_options": {}}),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(param: str, body: dict) -> None:
    with pytest.raises(RequestError) as error:
        read(**body)
    assert error.value.http_status == 400
    assert error.value.param == param and param in str(error.value)


class Echo(ScriptedProvider):
    """Continues a prompt with itself, word by word; `broken` ends in an error."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__([])
        self.broken = broken
        self.asked: list[tuple[str | Sequence[int], SamplingParams]] = []

    async def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        prompt, sampling = request.prompt, request.sampling
        self.asked.append((prompt, sampling))
        words = str(prompt).split()
        for word in words:
            told = (
                TokenLogprob(f" {word}".encode(), -float(sampling.seed or 0)) if sampling.logprobs is not None else None
            )
            yield TextDelta(f" {word}", () if told is None else (told,))
        if self.broken:
            raise ProviderError("out of words")
        yield Finished("length" if sampling.max_tokens == len(words) else "stop", Usage(5, len(words), 4))


def test_whole_answers(serve: Serve) -> None:
    provider = Echo()
    answer = serve(provider).client.completions.create(model="kimi-k2", prompt="a b c", n=2, seed=7, max_tokens=3)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.system_fingerprint
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [
        (0, " a b c", "length"),
        (1, " a b c", "length"),
    ]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 6, 11)
    assert [sampling.seed for _, sampling in provider.asked] == [7, 8]


def test_streams_add_up_to_the_same(serve: Serve) -> None:
    client = serve(Echo()).client
    chunks = list(
        client.completions.create(
            model="kimi-k2", prompt="a b", n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    *texts, last = chunks
    assert last.choices == [] and last.usage.completion_tokens == 4 and texts[0].usage is None
    for index in range(2):
        mine = [choice for chunk in texts for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in mine) == " a b"
        assert [choice.finish_reason for choice in mine] == [None, None, "stop"]


def test_several_prompts(serve: Serve) -> None:
    """Choices of a prompt stand together; each prompt counts once."""
    client = serve(Echo()).client
    body = {"model": "kimi-k2", "prompt": ["a b", "c d e"], "n": 2, "echo": True}
    answer = client.completions.create(**body)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "a b a b"), (1, "a b a b"), (2, "c d e c d e"), (3, "c d e c d e"),
    ]  # fmt: skip
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 10)
    *chunks, last = client.completions.create(**body, stream=True, stream_options={"include_usage": True})
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for choice in answer.choices:
        assert "".join(part.text for part in choices if part.index == choice.index) == choice.text
    assert last.usage == answer.usage


def test_the_best_of_several(serve: Serve) -> None:
    """By log probability per token; in `Echo` it falls with the seed, which it shares the name of."""
    provider = Echo()
    client = serve(provider).client
    body = {"model": "kimi-k2", "prompt": ["a b", "c"], "best_of": 3, "n": 2, "seed": -1}
    answer = client.completions.create(**body, logprobs=0)
    assert [choice.logprobs.token_logprobs for choice in answer.choices] == [[1.0, 1.0], [0.0, 0.0], [1.0], [0.0]]
    assert answer.usage.completion_tokens == 9
    plain = client.completions.create(**body)
    assert [choice.logprobs for choice in plain.choices] == [None] * 4
    assert [sampling.logprobs for _, sampling in provider.asked] == [0] * 12


def test_the_best_of_several_with_the_prompt_told(server: RunningServer) -> None:
    """The choice is the likeliest of the continuations alone, whatever the prompt's own tokens count."""
    body = {"model": "kimi-k2", "prompt": "the weather", "max_tokens": 12, "temperature": 1, "logprobs": 0}
    n = server.client.completions.create(prompt="the weather", model="kimi-k2", max_tokens=1).usage.prompt_tokens

    def of_answer(choice: Any) -> float:
        told = choice.logprobs.token_logprobs[n:]
        return sum(told) / len(told) if told else -math.inf

    for seed in range(4):
        each = server.client.completions.create(**body, n=4, seed=seed, echo=True).choices
        best = server.client.completions.create(**body, best_of=4, seed=seed, echo=True).choices
        assert [choice.text for choice in best] == [max(each, key=of_answer).text]


def test_a_stream_that_breaks_says_so(serve: Serve) -> None:
    with pytest.raises(openai.APIError, match="out of words"):
        list(serve(Echo(broken=True)).client.completions.create(model="kimi-k2", prompt="a", stream=True))


def test_a_provider_of_chats_only(serve: Serve) -> None:
    response = HTTP.post(f"{serve(ScriptedProvider([])).url}/v1/completions", json={"prompt": "a"})
    assert response.status_code == 404 and "/v1/chat/completions" in response.json()["error"]["message"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from openk2.llm import LLM

    folder = tmp_path_factory.mktemp("tokenizer")
    save_ranks(synthetic_ranks(), folder / "tiktoken.model")
    with LLM("random:nano", tokenizer=folder, max_model_len=128) as llm, running(llm) as server:
        yield server


def test_a_model_continues_text_and_ids_alike(server: RunningServer) -> None:
    body = {"model": "kimi-k2", "max_tokens": 12, "temperature": 1, "seed": 4, "extra_body": {"ignore_eos": True}}
    text = server.client.completions.create(prompt="the weather", **body)
    ids = HTTP.post(f"{server.url}/tokenize", json={"prompt": "the weather"}).json()["tokens"]
    streamed = list(server.client.completions.create(prompt=ids, stream=True, **body))
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == text.choices[0].text
    assert text.choices[0].finish_reason == streamed[-1].choices[0].finish_reason == "length"
    assert (text.usage.prompt_tokens, text.usage.completion_tokens) == (len(ids), 12)
    told = server.client.completions.create(prompt="the weather", echo=True, logprobs=2, **body)
    assert told.choices[0].text == "the weather" + text.choices[0].text
    logprobs = told.choices[0].logprobs
    assert "".join(logprobs.tokens[: len(ids)]) == "the weather" and logprobs.text_offset[len(ids)] == len(
        "the weather"
    )
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    assert all(value <= 0 for value in logprobs.token_logprobs[1:]) and all(
        1 <= len(top) <= 3 for top in logprobs.top_logprobs[1:]
    )
    echoed = server.client.completions.create(prompt=[ids, "x"], echo=True, **body)
    assert echoed.choices[0].text == "the weather" + text.choices[0].text and echoed.choices[1].text[0] == "x"


def test_prompts_that_the_model_cannot_have(server: RunningServer) -> None:
    for prompt, code in ([10**6], None), ([5] * 128, "context_length_exceeded"):
        response = HTTP.post(f"{server.url}/v1/completions", json={"prompt": prompt, "echo": True})
        assert response.status_code == 400 and response.json()["error"]["code"] == code


def test_tokens_without_a_text_share_one_entry_that_of_the_likeliest() -> None:
    told_of = ((b"a", -0.1), (b"", -2.0), (b"", -3.0), (b"\xe2", -4.0))
    top = tuple(TokenLogprob(text, logprob) for text, logprob in told_of)
    told = TextLogprobs().next([TokenLogprob(b"a", -0.1, top)])
    assert told is not None
    assert told["top_logprobs"] == [{"a": -0.1, "": -2.0, "bytes:\\xe2": -4.0}]
