"""`/tokenize` and `/detokenize`, the probes beside them, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.vocabularies import synthetic_ranks

from openk2.chat.messages import Message, ToolSpec
from openk2.chat.scripted import ScriptedProvider
from openk2.chat.template import ChatTemplate
from openk2.server.model_slot import ModelSlot
from openk2.server.settings import ServerSettings
from openk2.tokenizer import Tokenizer

from .conftest import HTTP, RunningServer, Serve, running

USER = {"role": "user", "content": "What is the weather in Paris?"}
PING = {"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}}}
PONG = {"type": "function", "function": {"name": "pong"}}
TOKENIZER = Tokenizer(synthetic_ranks())


class LocalProvider(ScriptedProvider):
    """A scripted answer under a real tokenizer and template."""

    template = ChatTemplate(TOKENIZER)
    max_model_len = 512


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(LocalProvider([])) as server:
        yield server


def post(server: RunningServer, path: str, body: Any) -> Any:
    return HTTP.post(server.url + path, json=body)


@pytest.mark.parametrize("text", ["", "the weather", "héllo 你好 \U0001f44b\n", "<|im_end|>[BOS]"])
def test_text_there_and_back(server: RunningServer, text: str) -> None:
    answer = post(server, "/tokenize", {"model": "kimi-k2", "prompt": text}).json()
    assert answer == {"count": len(answer["tokens"]), "max_model_len": 512, "tokens": TOKENIZER.encode(text)}
    assert not TOKENIZER.special_ids & set(answer["tokens"])
    assert post(server, "/detokenize", {"model": "kimi-k2", "tokens": answer["tokens"]}).json() == {"prompt": text}


def test_token_strings(server: RunningServer) -> None:
    answer = post(server, "/tokenize", {"prompt": "the é", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["the", " ", "\ufffd", "\ufffd"]  # a token may hold part of a character


@pytest.mark.parametrize(
    ("body", "tools", "opened"),
    [
        ({}, [], True),
        ({"add_generation_prompt": False}, [], False),
        ({"tools": [PING, PONG]}, [PING, PONG], True),
        (
            {
                "tools": [PING, PONG],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [PONG]}},
            },
            [PONG],
            True,
        ),
    ],
)
def test_messages_are_the_prompt_of_a_chat_completion(
    server: RunningServer, body: dict, tools: list, opened: bool
) -> None:
    answer = post(server, "/tokenize", {"messages": [USER]} | body).json()
    expected = LocalProvider.template.render(
        [Message("user", USER["content"])], [ToolSpec(tool) for tool in tools], add_generation_prompt=opened
    )
    assert answer["tokens"] == expected
    text = post(server, "/detokenize", {"tokens": expected}).json()["prompt"]
    assert text.endswith("<|im_assistant|>assistant<|im_middle|>") is opened


def test_a_partial_message_is_left_open(server: RunningServer) -> None:
    begun = {"role": "assistant", "content": "It is", "partial": True}
    answer = post(server, "/tokenize", {"messages": [USER, begun]}).json()
    text = post(server, "/detokenize", {"tokens": answer["tokens"]}).json()["prompt"]
    assert text.endswith("<|im_assistant|>assistant<|im_middle|>It is")


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        ("/tokenize", "prompt", {}),
        ("/tokenize", "prompt", {"prompt": 3}),
        ("/tokenize", "prompt", {"prompt": "a", "messages": [USER]}),
        ("/tokenize", "messages", {"messages": []}),
        ("/tokenize", "messages[0].role", {"messages": [{"role": "robot"}]}),
        ("/tokenize", "tools[0].type", {"messages": [USER], "tools": [{}]}),
        ("/tokenize", "add_generation_prompt", {"messages": [USER], "add_generation_prompt": 1}),
        ("/tokenize", "return_token_strs", {"prompt": "a", "return_token_strs": "yes"}),
        ("/tokenize", "model", {"prompt": "a", "model": 3}),
        ("/tokenize", None, [1]),
        ("/detokenize", "tokens", {}),
        ("/detokenize", "tokens", {"tokens": "a"}),
        ("/detokenize", "tokens[1]", {"tokens": [1, "a"]}),
        ("/detokenize", "tokens[0]", {"tokens": [True]}),
        ("/detokenize", "tokens[0]", {"tokens": [-1]}),
        ("/detokenize", "tokens[2]", {"tokens": [0, TOKENIZER.vocab_size - 1, TOKENIZER.vocab_size]}),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(server: RunningServer, path: str, param: str | None, body: Any) -> None:
    response = post(server, path, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param and response.json()["error"]["message"]


def test_an_unknown_model_and_an_unknown_tokenizer(server: RunningServer, serve: Serve) -> None:
    response = post(server, "/tokenize", {"model": "gpt", "prompt": "a"})
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    for path, body in {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]}}.items():
        response = post(serve(ScriptedProvider([], model="elsewhere")), path, body)
        assert response.status_code == 404 and "'elsewhere'" in response.json()["error"]["message"]


def test_ready_is_a_probe_and_tokenize_needs_the_key(serve: Serve) -> None:
    slot = ModelSlot()
    server = serve(slot, ServerSettings(api_keys=("secret",)))
    assert HTTP.get(f"{server.url}/ready").status_code == 503
    assert post(server, "/tokenize", {"prompt": "a"}).status_code == 401
    headers = {"x-api-key": "secret"}
    assert HTTP.post(f"{server.url}/tokenize", json={"prompt": "a"}, headers=headers).status_code == 503
    slot.fill(LocalProvider([]))
    assert HTTP.get(f"{server.url}/ready").json() == {"status": "ok"}
    assert HTTP.post(f"{server.url}/tokenize", json={"prompt": "a"}, headers=headers).status_code == 200
