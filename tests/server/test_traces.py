"""How an answer came about, for a request that asks; and which token kept a prompt from being found in the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openk2.chat.messages import Message, Usage
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.chat.scripted import ScriptedProvider, ScriptedTurn
from openk2.chat.trace import Trace
from openk2.config.sampling import SamplingParams
from openk2.server.cache_misses import CacheMisses
from openk2.server.request_record import RequestRecord
from openk2.server.settings import ServerSettings
from openk2.server.traces import MAX_TRACES, RequestTrace, Traces

from .conftest import HTTP, RunningServer, Serve

CHAT = "/v1/chat/completions"
RULES = "".join(f"Rule {i}: the number {i * 7919 % 1000} is to be treated with care. " for i in range(40))


class Characters(ScriptedProvider):
    """A model whose tokens are characters, and which tells how it answers. `cached` of them are said to be found."""

    cached = 0

    def stream(self, request: Any) -> Any:
        prompt = "\n".join(message.text for message in request.messages)
        if request.trace is not None:
            trace(prompt, into=request.trace)
            request.trace.sampling = SamplingParams(temperature=0.6, stop=("end",))
            request.trace.constraint = {"tools": ["f"]}
            request.trace.token_ids += [ord("H"), ord("i")]
        return super().stream(request)

    def stream_text(self, request: TextRequest) -> Any:
        sampling = replace(request.sampling, temperature=0.6)
        return self.stream(ChatRequest((Message("user", str(request.prompt)),), sampling=sampling, trace=request.trace))


def trace(prompt: str, into: Trace | None = None) -> Trace:
    made = into or Trace()
    made.prompt_token_ids = [ord(character) for character in prompt]
    made.decode = lambda ids: "".join(map(chr, ids))
    return made


def ask(url: str, text: str, *, path: str = CHAT, **headers: str) -> str:
    """The request's id."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 9}
    response = HTTP.post(
        url + path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    assert response.status_code == 200
    return response.headers["x-request-id"]


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_request_that_asks_is_traced(serve: Serve, path: str) -> None:
    url = serve(Characters(lambda _: ScriptedTurn("Hi", usage=Usage(5, 2, 3)))).url
    found = HTTP.get(f"{url}/debug/trace/{ask(url, 'Hello', path=path, x_openk2_trace='1')}").json()
    assert found["path"] == path and found["status"] == 200 and found["cache_miss"] is None
    (choice,) = found["choices"]
    assert choice["prompt"] == "Hello" and choice["prompt_token_ids"] == [ord(c) for c in "Hello"]
    assert choice["text"] == "Hi" and choice["token_ids"] == [72, 105]
    assert choice["cached_tokens"] == 3 and choice["finish_reason"] == "stop"
    assert choice["sampling"]["temperature"] == 0.6 and choice["sampling"]["stop"] == ["end"]
    assert choice["constraint"] == {"tools": ["f"]}


def test_a_continuation_that_asks_is_traced(serve: Serve) -> None:
    url = serve(Characters(lambda _: ScriptedTurn("Hi", usage=Usage(5, 2, 3)))).url
    body = {"prompt": ["Once", "Twice"], "max_tokens": 9}
    response = HTTP.post(f"{url}/v1/completions", json=body, headers={"x-openk2-trace": "1"})
    found = HTTP.get(f"{url}/debug/trace/{response.headers['x-request-id']}").json()
    assert [choice["prompt"] for choice in found["choices"]] == ["Once", "Twice"]
    assert all(choice["token_ids"] == [72, 105] and choice["finish_reason"] == "stop" for choice in found["choices"])


def test_others_are_not(serve: Serve) -> None:
    url = serve(Characters(lambda _: "Hi"), ServerSettings(explain_cache_misses=True)).url
    missing = HTTP.get(f"{url}/debug/trace/{ask(url, 'Hello')}")
    assert missing.status_code == 404 and "x-openk2-trace" in missing.json()["error"]["message"]


def test_a_trace_asks_for_the_key(serve: Serve) -> None:
    url = serve(Characters(lambda _: "Hi"), ServerSettings(api_keys=("k",))).url
    request_id = ask(url, "Hello", x_openk2_trace="1", x_api_key="k")
    assert HTTP.get(f"{url}/debug/trace/{request_id}").status_code == 401
    assert HTTP.get(f"{url}/debug/trace/{request_id}", headers={"x-api-key": "k"}).status_code == 200


def test_the_newest_are_kept() -> None:
    traces = Traces()
    for number in range(MAX_TRACES + 1):
        traces.add(RequestTrace(RequestRecord(request_id=str(number), method="POST", path="/"), []))
    assert traces.get("0") is None and traces.get("1") is not None and traces.get(str(MAX_TRACES)) is not None


def test_the_first_differing_token_and_the_text_around_it(serve: Serve) -> None:
    url = serve(Characters(lambda _: "Hi"), ServerSettings(explain_cache_misses=True)).url
    first = ask(url, f"It is Monday, 10:31. {RULES}One?")
    second = ask(url, f"It is Monday, 11:02. {RULES}Two?", x_openk2_trace="1")
    (miss,) = HTTP.get(f"{url}/debug/cache-misses").json()["data"]
    assert miss == HTTP.get(f"{url}/debug/trace/{second}").json()["cache_miss"]
    assert (miss["request_id"], miss["earlier_request_id"], miss["reason"]) == (second, first, "changed")
    assert miss["shared_tokens"] == len("It is Monday, 1") and miss["cached_tokens"] == 0
    assert miss["before"] == "It is Monday, 1"
    assert miss["earlier"].startswith("0:31. Rule 0") and miss["now"].startswith("1:02. Rule 0")


def test_it_is_off_by_default(serve: Serve) -> None:
    assert HTTP.get(f"{serve(Characters([])).url}/debug/cache-misses").status_code == 404


def explained(earlier: str, now: str, cached_tokens: int) -> Any:
    misses = CacheMisses()
    assert misses.explain("earlier", trace(earlier), 0) is None
    return misses.explain("now", trace(now), cached_tokens)


def test_what_went_on_and_was_found_is_no_miss() -> None:
    assert explained(RULES, RULES + "And now?", cached_tokens=len(RULES) - 16) is None


def test_what_was_not_kept_is_told_apart() -> None:
    miss = explained(RULES, RULES + "And now?", cached_tokens=64)
    assert miss.reason == "not_kept" and miss.lost_tokens == len(RULES) - 64 and miss.now == "And now?"


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        (f"One. {RULES}", "Quite another matter, at length: " + "".join(f"{i}, " for i in range(500))),
        ("Short.", "Brief."),
        ("", RULES),
    ],
    ids=["another conversation", "too short", "unknown prompt"],
)
def test_nothing_in_common_is_no_miss(earlier: str, now: str) -> None:
    assert explained(earlier, now, cached_tokens=0) is None


def test_a_shared_beginning_before_another_question_is_no_miss() -> None:
    other = "".join(f"{i * 31 % 97} or {i * 17 % 89}; " for i in range(200))
    assert explained(RULES + "What of this? " * 60, RULES + other, cached_tokens=len(RULES)) is None


def test_through_the_model(nano_server: RunningServer) -> None:
    request_id = ask(nano_server.url, "Hello there", x_openk2_trace="1")
    (choice,) = HTTP.get(f"{nano_server.url}/debug/trace/{request_id}").json()["choices"]
    assert "<|im_user|>" in choice["prompt"] and "Hello there" in choice["prompt"]
    assert choice["sampling"]["max_tokens"] == 9 and choice["constraint"]["tool_choice"]["mode"] == "auto"
    assert choice["token_ids"] and len(choice["prompt_token_ids"]) > 5 and choice["finish_reason"] in ("stop", "length")
