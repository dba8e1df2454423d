"""Errors under `/v1/messages`: Anthropic's envelope, types and statuses, whoever refuses; and counting tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from openk2.chat.scripted import ScriptedProvider
from openk2.errors import RequestError
from openk2.server.model_slot import ModelSlot
from openk2.server.settings import ServerSettings

from .conftest import HTTP, RunningServer, running

BODY = {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi there"}]}


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    """(status, type, message), the envelope's shape being checked."""
    body = response.json()
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert set(body["error"]) == {"type", "message"} and body["error"]["message"]
    assert int(response.headers["content-length"]) == len(response.content)
    return response.status_code, body["error"]["type"], body["error"]["message"]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(ScriptedProvider(lambda request: "Hello!")) as server:
        yield server


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a": NaN}', b'{"a": "\xff"}', b"[" * 100_000])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_what_is_no_json_object_is_a_400(server, path, data):
    assert error_of(HTTP.post(server.url + path, content=data))[:2] == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_wrong_field_is_named(server, path):
    status, kind, message = error_of(HTTP.post(server.url + path, json=BODY | {"messages": [{"role": "robot"}]}))
    assert (status, kind) == (400, "invalid_request_error") and "messages[0]" in message


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_an_unknown_model_is_a_404(server, path):
    status, kind, message = error_of(HTTP.post(server.url + path, json=BODY | {"model": "gpt-17"}))
    assert (status, kind) == (404, "not_found_error") and "gpt-17" in message


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("DELETE", "/v1/messages/count_tokens", 405, "invalid_request_error"),
    ],
)
def test_other_addresses(server, method, path, status, kind):
    assert error_of(HTTP.request(method, server.url + path))[:2] == (status, kind)


def test_other_apis_keep_their_envelope(server):
    response = HTTP.post(f"{server.url}/v1/messagesx", json=BODY)
    assert response.status_code == 404 and response.json()["error"]["code"] == "unknown_url"
    assert "request-id" not in response.headers


def test_a_model_goes_by_its_aliases(server):
    response = HTTP.post(f"{server.url}/v1/messages", json=BODY | {"model": "moonshotai/Kimi-K2-Instruct-0905"})
    assert response.status_code == 200 and response.json()["model"] == "scripted"
    without = {key: value for key, value in BODY.items() if key != "model"}
    assert HTTP.post(f"{server.url}/v1/messages", json=without).json()["model"] == "scripted"


def test_a_huge_body_is_a_413(serve):
    url = serve(ScriptedProvider([]), ServerSettings(max_body_bytes=1000)).url
    assert error_of(HTTP.post(f"{url}/v1/messages", content=b" " * 1001))[:2] == (413, "request_too_large")


def test_the_guards_refusals_are_translated(serve):
    url = serve(ScriptedProvider(lambda _: "Hello!"), ServerSettings(api_keys=("secret",))).url + "/v1/messages"
    assert error_of(HTTP.post(url, json=BODY))[:2] == (401, "authentication_error")
    assert error_of(HTTP.post(url, json=BODY, headers={"x-api-key": "wrong"}))[:2] == (401, "authentication_error")
    assert error_of(HTTP.post(url, json=BODY, headers={"host": "evil.example"}))[:2] == (403, "permission_error")
    headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01", "anthropic-beta": "a-2025-01-01,b"}
    assert HTTP.post(url, json=BODY, headers=headers).status_code == 200
    assert HTTP.post(url, json=BODY, headers={"authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_tells_nothing_of_itself(serve, stream):
    def buggy(_):
        raise KeyError("secret detail")

    response = HTTP.post(f"{serve(ScriptedProvider(buggy)).url}/v1/messages", json=BODY | {"stream": stream})
    assert error_of(response)[:2] == (500, "api_error") and "secret" not in response.text


def test_a_model_that_still_loads_is_overloaded(serve):
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        response = HTTP.post(serve(ModelSlot()).url + path, json=BODY)
        assert error_of(response)[:2] == (529, "overloaded_error") and response.headers["retry-after"]


def test_what_has_no_effect_is_named_in_a_header(server):
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {"name": "f", "input_schema": {"type": "object"}}]
    response = HTTP.post(f"{server.url}/v1/messages", json=BODY | {"metadata": {}, "tools": tools})
    assert response.headers["x-openk2-ignored"] == "tools.web_search_20250305,metadata"


def test_tools_of_which_none_can_be_called_are_refused(server):
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    response = HTTP.post(f"{server.url}/v1/messages", json=BODY | {"tools": tools})
    assert error_of(response)[:2] == (400, "invalid_request_error") and "'web_search_20250305'" in response.text


def test_counted_tokens_are_those_of_the_answers_usage(server):
    counted = HTTP.post(f"{server.url}/v1/messages/count_tokens?beta=true", json=BODY)
    assert counted.json() == {"input_tokens": 2}
    usage = HTTP.post(f"{server.url}/v1/messages", json=BODY).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == 2


class Elsewhere:
    """A provider that cannot count."""

    model = "elsewhere"

    async def stream(self, request):
        raise RequestError("never asked")
        yield


def test_a_provider_that_cannot_count_is_a_404(serve):
    response = HTTP.post(f"{serve(Elsewhere()).url}/v1/messages/count_tokens", json=BODY | {"model": "elsewhere"})
    status, kind, message = error_of(response)
    assert (status, kind) == (404, "not_found_error") and "elsewhere" in message


def test_half_an_emoji_is_read_as_a_replacement_character(serve):
    url = serve(ScriptedProvider(lambda request: request.messages[-1].text)).url
    body = json.dumps(BODY | {"messages": [{"role": "user", "content": "a\ud83d b"}]})
    assert HTTP.post(f"{url}/v1/messages", content=body).json()["content"][0]["text"] == "a\ufffd b"
