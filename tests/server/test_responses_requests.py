"""What a request to `/v1/responses` may say: items become messages, and a 400 that names the field for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openk2.chat.messages import Message, ResponseFormat, ToolCall, ToolChoice
from openk2.config.sampling import SamplingParams
from openk2.errors import ConfigError, RequestError
from openk2.server.openai.schema import read_chat_completion
from openk2.server.responses import store as store_module
from openk2.server.responses.schema import ResponsesRequest, read_response_request
from openk2.server.responses.store import PreviousResponseError, ResponseStore, UnknownResponseError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
USER = {"role": "user", "content": "Hi"}
IMAGE = {"type": "input_image", "image_url": "data:"}


def read(store: ResponseStore | None = None, /, **body: Any) -> ResponsesRequest:
    return read_response_request({"input": "Hi"} | body, store or ResponseStore())


def tool(name: str = "f", **more: Any) -> dict:
    return {"type": "function", "name": name, "parameters": SCHEMA} | more


def call(call_id: str = "a", name: str = "f", **more: Any) -> dict:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}"} | more


def output(call_id: str = "a", value: Any = "done", **more: Any) -> dict:
    return {"type": "function_call_output", "call_id": call_id, "output": value} | more


def response(id: str, previous: str | None = None, *items: dict) -> dict:
    return {"id": id, "previous_response_id": previous, "output": list(items)}


def answer(id: str, text: str) -> dict:
    return {
        "id": id, "type": "message", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }  # fmt: skip


WRONG: list[tuple[str, dict]] = [
    ("input", {"input": None}),
    ("input", {"input": 3}),
    ("input", {"input": []}),
    ("input[0]", {"input": ["Hi"]}),
    ("input[0].role", {"input": [{"content": "Hi"}]}),
    ("input[0].role", {"input": [{"role": "tool", "content": "Hi"}]}),
    ("input[0].content", {"input": [{"role": "user"}]}),
    ("input[0].content", {"input": [{"role": "user", "content": 3}]}),
    ("input[0].content[1].type", {"input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, IMAGE]}]}),
    ("input[0].content[0].text", {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
    ("input[1].call_id", {"input": [USER, call(call_id=None)]}),
    ("input[1].name", {"input": [USER, call(name="")]}),
    ("input[1].arguments", {"input": [USER, call(arguments={})]}),
    ("input[2].call_id", {"input": [USER, call(), output("b")]}),
    ("input[2].output", {"input": [USER, call(), output(value=None)]}),
    ("input[2].output[0].type", {"input": [USER, call(), output(value=[IMAGE])]}),
    ("input[0].id", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
    ("previous_response_id", {"previous_response_id": "resp_1"}),
    ("instructions", {"instructions": ["Be brief."]}),
    ("mode", {"mode": "Reflex"}),
    ("tools[0].type", {"tools": [{"name": "f"}]}),
    ("tools[0].name", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("tools[0].name", {"tools": [tool("no spaces")]}),
    ("tools[1].name", {"tools": [tool(), tool()]}),
    ("tools[0].strict", {"tools": [tool(strict="yes")]}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": "required", "tools": [{"type": "custom", "name": "apply_patch"}]}),
    ("tool_choice.name", {"tool_choice": {"type": "function", "name": "g"}, "tools": [tool()]}),
    ("tool_choice.type", {"tool_choice": {"type": "file_search"}}),
    ("tool_choice.tools[0].name", {
        "tools": [tool()], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [tool("g")]}}),
    ("max_output_tokens", {"max_output_tokens": 0}),
    ("temperature", {"temperature": 3}),
    ("store", {"store": "no"}),
    ("stream", {"stream": 1}),
    ("metadata.a", {"metadata": {"a": 1}}),
    ("text.format.type", {"text": {"format": {"type": "grammar"}}}),
    ("text.format.name", {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "array"}}}}),
    ("background", {"background": True}),
    ("conversation", {"conversation": "conv_1"}),
    ("prompt", {"prompt": {"id": "p"}}),
    ("model", {"model": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "body"), WRONG, ids=[f"{param}-{i}" for i, (param, _) in enumerate(WRONG)])
def test_a_wrong_field_is_a_400_that_names_it(param: str, body: dict) -> None:
    with pytest.raises(RequestError) as error:
        read(**body)
    assert error.value.http_status == 400
    assert error.value.param == param


def test_items_become_messages() -> None:
    body = read(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Be kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look."}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            answer("msg_1", "I look."),
            call("x", "f", arguments='{"b": 1,"a":2}'),
            call("y", "g"),
            output("y", [{"type": "input_text", "text": "2"}]),
            output("x", "1"),
            call("z"),
            output("z", ""),
        ],
    )
    assert body.chat.messages == (
        Message("system", "Be brief."),
        Message("system", "Be kind."),
        Message("user", [{"type": "text", "text": "Look."}]),
        Message(
            "assistant",
            [{"type": "text", "text": "I look."}],
            tool_calls=(ToolCall("x", "f", '{"b": 1,"a":2}'), ToolCall("y", "g", "{}")),
        ),
        Message("tool", [{"type": "text", "text": "2"}], tool_call_id="y"),
        Message("tool", "1", tool_call_id="x"),
        Message("assistant", tool_calls=(ToolCall("z", "f", "{}"),)),
        Message("tool", "", tool_call_id="z"),
    )
    assert body.ignored == ()


def test_a_request_is_that_of_a_chat_completion() -> None:
    """The same settings, tools and format in both spellings give the same request, and so the same prompt."""
    settings = {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 3,
        "stop": ["\n"],
        "parallel_tool_calls": False,
        "presence_penalty": 1,
    }
    function = {"name": "f", "description": "Do f.", "parameters": SCHEMA}
    chat = read_chat_completion(
        {
            "messages": [USER],
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
            "max_tokens": 9,
            "logprobs": True,
        }
        | settings
    )
    body = read(
        tools=[tool(description="Do f.", strict=True)],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}},
        max_output_tokens=9,
        include=["message.output_text.logprobs"],
        **settings,
    )
    assert [body.chat] == chat.choice_requests()
    assert body.chat.response_format == ResponseFormat(SCHEMA, "city")


def test_what_has_no_effect_is_named() -> None:
    custom = {"type": "custom", "name": "apply_patch"}
    body = read(
        input=[USER, {"type": "web_search_call", "id": "ws_1"}],
        tools=[custom, tool(), {"type": "web_search"}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}, custom]},
        reasoning={"effort": "high"},
        include=["reasoning.encrypted_content"],
        max_tokens=5,
        text={"verbosity": "low"},
    )
    assert body.ignored == (
        "input.web_search_call", "tools.custom", "tools.web_search", "include.reasoning.encrypted_content",
        "max_tokens", "reasoning",
    )  # fmt: skip
    assert [spec.name for spec in body.chat.tools] == ["f"]
    assert body.chat.tool_choice == ToolChoice("required")
    assert body.chat.sampling == SamplingParams()


def test_a_conversation_is_the_chain_of_its_responses(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.sqlite")
    store.add(response("resp_1", None, answer("msg_1", "Hello.")), [USER])
    store.add(response("resp_2", "resp_1", call(id="fc_1")), [{"role": "user", "content": "Call f."}])
    again = ResponseStore(tmp_path / "responses.sqlite")  # as after a new start of the server
    body = read(again, previous_response_id="resp_2", input=[output()])
    assert [message.role for message in body.chat.messages] == ["user", "assistant", "user", "assistant", "tool"]
    assert body.new_items == (output(),)
    assert again.get("resp_1")["output"][0]["id"] == "msg_1"
    referred = read(again, input=[USER, {"type": "item_reference", "id": "msg_1"}])
    assert referred.new_items == (USER, answer("msg_1", "Hello."))
    again.delete("resp_1")
    for gone in (lambda: store.get("resp_1"), lambda: store.delete("resp_1")):
        with pytest.raises(UnknownResponseError):
            gone()
    assert store.output_item("msg_1") is None
    with pytest.raises(PreviousResponseError, match="resp_1"):
        read(store, previous_response_id="resp_2")


def test_the_oldest_responses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_RESPONSES", 2)
    store = ResponseStore()
    for number in range(4):
        store.add(response(f"resp_{number}", None, answer(f"msg_{number}", "Hi")), [])
    assert store.get("resp_3") and store.get("resp_2")
    with pytest.raises(UnknownResponseError):
        store.get("resp_1")
    assert store.output_item("msg_1") is None and store.output_item("msg_2") is not None


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text(
        "Dear Ann, this is certainly no database, and it is long enough to be read as one."
    )
    for file in (tmp_path / "letter", tmp_path / "nowhere" / "store"):
        with pytest.raises(ConfigError, match=str(file)):
            ResponseStore(file)
