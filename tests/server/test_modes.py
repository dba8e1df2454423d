"""`mode` in every API: the same answer streamed or not, named in the usage, counted, refused where it is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from openk2.chat.messages import ExpertUse, Usage
from openk2.cli.serve import command
from openk2.errors import ConfigError
from openk2.server.request_record import RequestRecord

from .conftest import HTTP, RunningServer

TEXT = "What time is it in Europe/Paris?"
CHAT = [{"role": "user", "content": TEXT}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 24, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 24, "stream_options": {"include_usage": True}},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 24},
    "/v1/messages": {"messages": CHAT, "max_tokens": 24},
}


def ask(server: RunningServer, path: str, **more: Any) -> Any:
    body = BODIES[path] | {"temperature": 0} | more
    if not more.get("stream"):
        body.pop("stream_options", None)
    return HTTP.post(server.url + path, json=body)


def objects(text: str) -> list[Any]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said(path: str, whole: Any) -> str:
    if path == "/v1/chat/completions":
        return whole["choices"][0]["message"]["content"]
    if path == "/v1/completions":
        return whole["choices"][0]["text"]
    if path == "/v1/responses":
        return "".join(part["text"] for item in whole["output"] for part in item.get("content", ()))
    return "".join(block["text"] for block in whole["content"])


def streamed(path: str, events: list[Any]) -> tuple[str, Any]:
    """Text and usage."""
    if path == "/v1/chat/completions":
        return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]), events[-1][
            "usage"
        ]
    if path == "/v1/completions":
        return "".join(e["choices"][0]["text"] for e in events if e["choices"]), events[-1]["usage"]
    if path == "/v1/responses":
        return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta"), events[-1]["response"][
            "usage"
        ]
    text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
    return text, next(e["usage"] for e in events if e["type"] == "message_delta")


@pytest.mark.parametrize("mode", ["reflex", "auto"])
@pytest.mark.parametrize("path", BODIES)
def test_streamed_and_whole_answers_are_one(nano_server: RunningServer, path: str, mode: str) -> None:
    whole = ask(nano_server, path, mode=mode).json()
    text, usage = streamed(path, objects(ask(nano_server, path, mode=mode, stream=True).text))
    assert text == said(path, whole) and text
    assert usage["experts"] == whole["usage"]["experts"]
    assert usage["experts"]["mode"] == mode
    assert 3 <= usage["experts"]["per_token"] <= (5 if mode == "reflex" else 7.9)


@pytest.mark.parametrize("path", BODIES)
def test_the_trained_number_is_the_default_and_not_named(nano_server: RunningServer, path: str) -> None:
    plain, deliberative = ask(nano_server, path).json(), ask(nano_server, path, mode="deliberative").json()
    assert said(path, plain) == said(path, deliberative)
    assert "experts" not in plain["usage"] and "experts" not in deliberative["usage"]
    assert "x-openk2-ignored" not in ask(nano_server, path, mode="reflex").headers


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("mode", "said"), [("quick", "one of reflex, deliberative, auto"), (5, "a string")])
def test_what_is_no_mode_is_a_400(nano_server: RunningServer, path: str, mode: Any, said: str) -> None:
    refused = ask(nano_server, path, mode=mode)
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert "'mode'" in message and said in message and "\n" not in message


def test_several_choices_add_up_and_are_counted(nano_server: RunningServer) -> None:
    def counted() -> dict[int, float]:
        lines = [
            line for line in HTTP.get(f"{nano_server.url}/metrics").text.splitlines() if "expert_choices_total{" in line
        ]
        return {int(line.split('experts="')[1].split('"')[0]): float(line.rpartition(" ")[2]) for line in lines}

    before = counted()
    path = "/v1/chat/completions"
    usage = ask(nano_server, path, mode="reflex", n=3, temperature=1, seed=5).json()["usage"]
    after = counted()
    assert set(after) == set(range(1, 9))
    new = {number: after[number] - before[number] for number in after}
    assert new[1] == new[2] == new[6] == new[7] == new[8] == 0
    taken, choices = sum(number * times for number, times in new.items()), sum(new.values())
    assert usage["experts"]["per_token"] == pytest.approx(taken / choices, abs=1e-3)


def test_the_log_line_adds_up_the_choices() -> None:
    record = RequestRecord(request_id="r", method="POST", path="/v1/chat/completions")
    record.add_usage(Usage(10, 2))
    assert "mode" not in record.fields() and "experts_per_token" not in record.fields()
    record.add_usage(Usage(10, 3, experts=ExpertUse("auto", 12, 4)))
    record.add_usage(Usage(10, 3, experts=ExpertUse("auto", 24, 4)))
    told = record.fields()
    assert (told["mode"], told["experts_per_token"], told["completion_tokens"], told["prompt_tokens"]) == (
        "auto", 4.5, 8, 10,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mode", "quick"], "one of reflex, deliberative, auto"),
        (["--mode", "auto", "--upstream", "http://127.0.0.1:9/v1"], "--mode"),
    ],
)
def test_the_option_of_serve_is_checked(options: list[str], said: str) -> None:
    app = Typer()
    app.command()(command)
    done = CliRunner().invoke(app, options)
    assert isinstance(done.exception, ConfigError) and said in str(done.exception)


def test_one_token_has_no_count(nano_server: RunningServer) -> None:
    usage = ask(nano_server, "/v1/chat/completions", mode="auto", max_tokens=1).json()["usage"]
    assert usage["experts"] == {"mode": "auto", "per_token": None}
