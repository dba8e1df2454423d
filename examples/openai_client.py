"""The official `openai` client against the local server: a streamed chat, then a tool call.

openk2 serve &
python examples/openai_client.py
"""

from __future__ import annotations

import json
import sys

from openai import OpenAI

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


def main() -> None:
    client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1", api_key="none")
    model = client.models.list().data[0].id

    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello, who are you?"}], stream=True
    ):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    messages: list = [{"role": "user", "content": "What is the weather in Paris?"}]
    reply = client.chat.completions.create(model=model, messages=messages, tools=[TOOL]).choices[0].message
    messages.append(reply)
    for call in reply.tool_calls or []:
        print(f"{call.function.name}({call.function.arguments})")
        result = f"18 C and sunny in {json.loads(call.function.arguments)['city']}"
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    if reply.tool_calls:
        reply = client.chat.completions.create(model=model, messages=messages, tools=[TOOL]).choices[0].message
    print(reply.content)


if __name__ == "__main__":
    main()
