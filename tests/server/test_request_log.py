"""One line a request, which names it and tells nothing of what was said; the id on every response."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedProvider, ScriptedTurn
from openk2.errors import ConfigError, ProviderError
from openk2.server.logs import JsonLines, TextLines, configure_logging
from openk2.server.settings import ServerSettings

from .conftest import HTTP, Serve, eventually
from .test_disconnect import never, open_request

CHAT = "/v1/chat/completions"
SECRETS = {"key": "sk-hidden-key", "prompt": "hidden-prompt", "answer": "hidden-answer"}


def body(text: str = SECRETS["prompt"], **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The requests' fields, once there are so many."""
    caplog.set_level(logging.INFO, "openk2")

    def found() -> list[dict[str, Any]]:
        return [record.fields for record in caplog.records if record.message == "request"]

    def wait_for(count: int) -> list[dict[str, Any]]:
        assert eventually(lambda: len(found()) == count)
        return found()

    return wait_for


def test_a_line_tells_tokens_and_times_and_nothing_that_was_said(
    serve: Serve, lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    turn = ScriptedTurn(SECRETS["answer"], usage=Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=5))
    url = serve(ScriptedProvider(lambda _: turn), ServerSettings(api_keys=(SECRETS["key"],))).url
    headers = {"authorization": f"Bearer {SECRETS['key']}", "x-request-id": "mine"}
    HTTP.post(f"{url}{CHAT}?key={SECRETS['key']}", json=body(n=2), headers=headers)
    (fields,) = lines(1)
    assert fields.pop("duration_ms") >= fields.pop("first_event_ms") > 0
    assert fields == {
        "request_id": "mine",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "model": "scripted",
        "prompt_tokens": 7,
        "cached_tokens": 5,
        "completion_tokens": 6,
        "finish_reason": "stop,stop",
    }
    for form in (JsonLines(), TextLines()):
        text = "\n".join(form.format(record) for record in caplog.records)
        assert "mine" in text and not any(secret in text for secret in SECRETS.values())


def test_every_response_has_the_id_errors_and_bugs_included(serve: Serve, lines: Any) -> None:
    def fails(request: Any) -> Any:
        raise RuntimeError("bug") if request.messages[0].text == "bug" else ProviderError("broken")

    url = serve(ScriptedProvider(fails)).url
    statuses = []
    for path, sent, origin in [
        (CHAT, body("bug"), None),
        (CHAT, body("broken"), None),
        (CHAT, {"messages": 1}, None),
        ("/nowhere", {}, None),
        (CHAT, body(), "http://evil.example"),
        ("/v1/messages", body("bug", max_tokens=1), None),
    ]:
        headers = {"x-request-id": f"id-{len(statuses)}"} | ({"origin": origin} if origin else {})
        response = HTTP.post(url + path, json=sent, headers=headers)
        assert response.headers["x-request-id"] == f"id-{len(statuses)}"
        statuses.append(response.status_code)
    assert statuses == [500, 502, 400, 404, 403, 500]
    logged = lines(len(statuses))
    assert [fields["status"] for fields in logged] == statuses
    assert [fields.get("error") for fields in logged[:3]] == ["internal_error", "api_error", None]


def test_a_client_that_goes_away_is_in_the_log(serve: Serve, lines: Any) -> None:
    provider = ScriptedProvider(never)
    url = serve(provider).url
    connection = open_request(url, body())
    assert eventually(lambda: len(provider.requests) == 1)
    connection.close()
    (fields,) = lines(1)
    assert fields["status"] == 499 and fields["aborted"] is True


def test_programs_that_watch_do_not_fill_the_log(serve: Serve, lines: Any) -> None:
    url = serve(ScriptedProvider([])).url
    for path in ("/health", "/ready", "/metrics", "/version"):
        HTTP.get(url + path)
    assert [fields["path"] for fields in lines(1)] == ["/version"]


def record(message: str, exc_info: Any = None, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("openk2", logging.INFO, "file.py", 1, message, (), exc_info)
    made.created, made.msecs = 0.0, 5.0
    made.fields = fields
    return made


def test_json_lines() -> None:
    line = JsonLines().format(record("request", path="/a\nb", status=200))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.005Z",
        "level": "info",
        "event": "request",
        "path": "/a\nb",
        "status": 200,
    }


def test_text_lines() -> None:
    line = TextLines().format(record("request", path='/a\nb "c"', status=200))
    assert line == '1970-01-01T00:00:00.005Z info request path="/a\\nb \\"c\\"" status=200'


@pytest.mark.parametrize("form", [JsonLines(), TextLines()])
def test_a_traceback_is_kept(form: logging.Formatter) -> None:
    try:
        raise RuntimeError("here")
    except RuntimeError as error:
        assert "RuntimeError: here" in form.format(record("a request failed", (type(error), error, None)))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="text or json"):
        configure_logging("xml")
