"""`response_format` of the OpenAI wire format."""

from __future__ import annotations

from openk2.chat.messages import ResponseFormat
from openk2.server.fields import Fields, wrong_value
from openk2.server.json_schema import check_object_schema


def read_response_format(fields: Fields) -> ResponseFormat | None:
    """None: free text. `strict` changes nothing: an answer always keeps to its schema.

    Raises RequestError or SchemaError (both 400) naming the field.
    """
    value = fields.mapping("response_format")
    if value is None:
        return None
    match value.required_string("type"):
        case "text":
            return None
        case "json_object":
            return ResponseFormat()
        case "json_schema":
            declared = value.required_object("json_schema")
            name = declared.required_string("name")
            declared.string("description")
            declared.boolean("strict")
            declared.required_object("schema")
            schema = declared.get("schema")
            check_object_schema(schema, declared.at("schema"))
            return ResponseFormat(schema, name)
        case kind:
            raise wrong_value(value.at("type"), f"it must be 'text', 'json_object' or 'json_schema', not {kind!r}")
