"""The schemas of requests and answers for `server/openapi.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openk2.config.modes import MODES
from openk2.server.fields import MAX_STOP_STRINGS
from openk2.server.openai.completions import DEFAULT_MAX_TOKENS
from openk2.server.openai.logprobs import MAX_TEXT_LOGPROBS, MAX_TOP_LOGPROBS
from openk2.server.openai.sampling import MAX_CHOICES, MAX_LOGIT_BIAS

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _integer(minimum: int, maximum: int | None = None) -> Schema:
    return {"type": "integer", "minimum": minimum} | ({} if maximum is None else {"maximum": maximum})


def _number(minimum: float, maximum: float) -> Schema:
    return {"type": "number", "minimum": minimum, "maximum": maximum}


def _constant(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _record(properties: dict[str, Schema], required: Sequence[str] = ()) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _optional(properties: dict[str, Schema]) -> dict[str, Schema]:
    """A field that is null counts as absent."""
    return {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in properties.items()}


_SAMPLING = _optional(
    {
        "temperature": _number(0, 2),
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "top_k": _integer(-1),
        "min_p": _number(0, 1),
        "frequency_penalty": _number(-2, 2),
        "presence_penalty": _number(-2, 2),
        "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 2},
        "logit_bias": {"type": "object", "additionalProperties": _number(-MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)},
        "seed": {"type": "integer"},
        "stop": {"anyOf": [{"type": "string", "minLength": 1}, _array({"type": "string", "minLength": 1}, maxItems=4)]},
        "stop_token_ids": _array(_integer(0)),
        "min_tokens": _integer(0),
        "ignore_eos": _BOOLEAN,
        "mode": _constant(*MODES),
    }
)
_STREAM = _optional({"stream": _BOOLEAN, "stream_options": _record({"include_usage": _BOOLEAN})})
_TEXT_PART = _record({"type": _constant("text"), "text": STRING}, ["type", "text"])
_CONTENT: Schema = {"anyOf": [STRING, _array(ref("TextPart"))]}

SCHEMAS: dict[str, Schema] = {
    "TextPart": _TEXT_PART,
    "Message": {
        "oneOf": [
            _record(
                {"role": _constant("system", "developer", "user"), "content": _CONTENT, **_optional({"name": STRING})},
                ["role", "content"],
            ),
            _record(
                {
                    "role": _constant("assistant"),
                    "content": {"anyOf": [STRING, _array(ref("TextPart")), {"type": "null"}]},
                    **_optional(
                        {
                            "tool_calls": _array(ref("ToolCall")),
                            "reasoning_content": STRING,
                            "partial": _BOOLEAN,
                            "name": STRING,
                        }
                    ),
                },
                ["role"],
            ),
            _record(
                {"role": _constant("tool"), "content": _CONTENT, "tool_call_id": STRING},
                ["role", "content", "tool_call_id"],
            ),
        ]
    },
    "ToolCall": _record(
        {
            "id": STRING,
            "type": _constant("function"),
            "function": _record({"name": STRING, "arguments": STRING}, ["name", "arguments"]),
        },
        ["id", "type", "function"],
    ),
    "Tool": _record(
        {
            "type": _constant("function"),
            "function": _record(
                {
                    "name": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[a-zA-Z0-9_-]+$"},
                    **_optional({"description": STRING, "parameters": _OBJECT, "strict": _BOOLEAN}),
                },
                ["name"],
            ),
        },
        ["type", "function"],
    ),
    "ToolChoice": {"anyOf": [_constant("auto", "none", "required", "any"), _OBJECT]},
    "ResponseFormat": {
        "oneOf": [
            _record({"type": _constant("text", "json_object")}, ["type"]),
            _record(
                {
                    "type": _constant("json_schema"),
                    "json_schema": _record(
                        {"name": STRING, "schema": _OBJECT, **_optional({"strict": _BOOLEAN, "description": STRING})},
                        ["name", "schema"],
                    ),
                },
                ["type", "json_schema"],
            ),
        ]
    },
    "ChatCompletionRequest": _record(
        {
            "messages": _array(ref("Message"), minItems=1),
            **_optional(
                {
                    "model": STRING,
                    "tools": _array(ref("Tool")),
                    "tool_choice": ref("ToolChoice"),
                    "parallel_tool_calls": _BOOLEAN,
                    "response_format": ref("ResponseFormat"),
                    "max_completion_tokens": _integer(1),
                    "max_tokens": _integer(1),
                    "n": _integer(1, MAX_CHOICES),
                    "logprobs": _BOOLEAN,
                    "top_logprobs": _integer(0, MAX_TOP_LOGPROBS),
                    "chat_template_kwargs": _OBJECT,
                }
            ),
            **_SAMPLING,
            **_STREAM,
        },
        ["messages"],
    ),
    "CompletionRequest": _record(
        {
            "prompt": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    _array(_integer(0), minItems=1),
                    _array({"type": "string", "minLength": 1}, minItems=1),
                    _array(_array(_integer(0), minItems=1), minItems=1),
                ]
            },
            **_optional(
                {
                    "model": STRING,
                    "max_tokens": {**_integer(1), "default": DEFAULT_MAX_TOKENS},
                    "n": _integer(1, MAX_CHOICES),
                    "best_of": _integer(1, MAX_CHOICES),
                    "echo": _BOOLEAN,
                    "logprobs": _integer(0, MAX_TEXT_LOGPROBS),
                    "skip_special_tokens": _BOOLEAN,
                }
            ),
            **_SAMPLING,
            **_STREAM,
        },
        ["prompt"],
    ),
    "ResponseRequest": _record(
        {
            "input": {"anyOf": [STRING, _array(_OBJECT)]},
            **_optional(
                {
                    "model": STRING,
                    "instructions": STRING,
                    "previous_response_id": STRING,
                    "store": _BOOLEAN,
                    "tools": _array(_OBJECT),
                    "tool_choice": ref("ToolChoice"),
                    "parallel_tool_calls": _BOOLEAN,
                    "text": _OBJECT,
                    "max_output_tokens": _integer(1),
                    "top_logprobs": _integer(0, MAX_TOP_LOGPROBS),
                    "include": _array(STRING),
                    "metadata": {"type": "object", "additionalProperties": STRING},
                    "stream": _BOOLEAN,
                }
            ),
            **_SAMPLING,
        }
    ),
    "MessagesRequest": _record(
        {
            "max_tokens": _integer(1),
            "messages": _array(
                _record(
                    {
                        "role": _constant("user", "assistant", "system"),
                        "content": {"anyOf": [STRING, _array(_OBJECT)]},
                    },
                    ["role", "content"],
                ),
                minItems=1,
            ),
            **_optional(
                {
                    "model": STRING,
                    "system": {"anyOf": [STRING, _array(ref("TextPart"))]},
                    "tools": _array(_OBJECT),
                    "tool_choice": _OBJECT,
                    "temperature": _number(0, 1),
                    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    "top_k": _integer(0),
                    "stop_sequences": _array({"type": "string", "minLength": 1}, maxItems=MAX_STOP_STRINGS),
                    "output_config": _OBJECT,
                    "mode": _constant(*MODES),
                    "stream": _BOOLEAN,
                }
            ),
        },
        ["messages", "max_tokens"],
    ),
    "CountTokensRequest": _record(
        {
            "messages": _array(_OBJECT, minItems=1),
            **_optional(
                {"model": STRING, "system": {"anyOf": [STRING, _array(ref("TextPart"))]}, "tools": _array(_OBJECT)}
            ),
        },
        ["messages"],
    ),
    "TokenizeRequest": {
        "oneOf": [
            _record({"prompt": STRING, **_optional({"model": STRING, "return_token_strs": _BOOLEAN})}, ["prompt"]),
            _record(
                {
                    "messages": _array(ref("Message"), minItems=1),
                    **_optional(
                        {
                            "model": STRING,
                            "tools": _array(ref("Tool")),
                            "add_generation_prompt": _BOOLEAN,
                            "return_token_strs": _BOOLEAN,
                        }
                    ),
                },
                ["messages"],
            ),
        ]
    },
    "DetokenizeRequest": _record({"tokens": _array(_integer(0)), **_optional({"model": STRING})}, ["tokens"]),
    "Error": _record(
        {
            "error": _record(
                {
                    "message": STRING,
                    "type": STRING,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                ["message", "type"],
            )
        },
        ["error"],
    ),
    "AnthropicError": _record(
        {
            "type": _constant("error"),
            "error": _record({"type": STRING, "message": STRING}, ["type", "message"]),
            "request_id": STRING,
        },
        ["type", "error"],
    ),
    "ChatCompletion": _record(
        {
            "id": STRING,
            "object": _constant("chat.completion"),
            "created": {"type": "integer"},
            "model": STRING,
            "choices": _array(_OBJECT),
            "usage": _OBJECT,
        },
        ["id", "object", "created", "model", "choices", "usage"],
    ),
    "Completion": _record(
        {
            "id": STRING,
            "object": _constant("text_completion"),
            "created": {"type": "integer"},
            "model": STRING,
            "choices": _array(_OBJECT),
            "usage": _OBJECT,
        },
        ["id", "object", "created", "model", "choices", "usage"],
    ),
    "ResponseObject": _record(
        {
            "id": STRING,
            "object": _constant("response"),
            "status": STRING,
            "output": _array(_OBJECT),
            "usage": _OBJECT,
        },
        ["id", "object", "status", "output"],
    ),
    "AnthropicMessage": _record(
        {
            "id": STRING,
            "type": _constant("message"),
            "role": _constant("assistant"),
            "content": _array(_OBJECT),
            "stop_reason": STRING,
            "usage": _OBJECT,
        },
        ["id", "type", "role", "content", "usage"],
    ),
    "Model": _record(
        {"id": STRING, "object": _constant("model"), "created": {"type": "integer"}, "owned_by": STRING},
        ["id", "object", "created", "owned_by"],
    ),
    "Models": _record({"object": _constant("list"), "data": _array(ref("Model"))}, ["object", "data"]),
    "TokenCount": _record({"input_tokens": _integer(0)}, ["input_tokens"]),
    "Tokens": _record(
        {"count": _integer(0), "max_model_len": _integer(1), "tokens": _array(_integer(0))}, ["count", "tokens"]
    ),
    "Text": _record({"prompt": STRING}, ["prompt"]),
    "Deleted": _record({"id": STRING, "object": STRING, "deleted": _BOOLEAN}, ["id", "deleted"]),
    "Status": _record({"status": _constant("ok", "loading", "failed", "draining")}, ["status"]),
    "Version": _record({"version": STRING}, ["version"]),
}
