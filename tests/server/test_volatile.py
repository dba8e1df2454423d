"""The line that changes with every request is left out of system prompts, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from openk2.chat.messages import Message
from openk2.server.fields import Fields
from openk2.server.openai.convert import read_messages
from openk2.server.volatile import without_billing_lines

LINE = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=36ee5;"


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (f"{LINE}\nYou help.", "You help."),
        ("You help.", "You help."),
        (f"You help.\n{LINE}", f"You help.\n{LINE}"),
        ([part(LINE), part("You help.")], [part("You help.")]),
        ([part(f"{LINE}\nYou help."), part("Be kind.")], [part("You help."), part("Be kind.")]),
    ],
)
def test_system_messages(content: Any, left: Any) -> None:
    kept = without_billing_lines([Message("system", content), Message("user", LINE)])
    assert kept == (Message("system", left), Message("user", LINE))


@pytest.mark.parametrize("content", [LINE, f"{LINE}\n", [part(LINE)]])
def test_a_message_that_holds_nothing_else_goes(content: Any) -> None:
    assert without_billing_lines([Message("system", content), Message("user", "Hi")]) == (Message("user", "Hi"),)


def test_two_requests_have_one_prompt() -> None:
    def messages(digest: str) -> Any:
        sent = [
            {"role": "system", "content": f"{LINE.replace('36ee5', digest)}\nYou help."},
            {"role": "user", "content": "Hi"},
        ]
        return read_messages(Fields({"messages": sent}))

    assert messages("36ee5") == messages("0aaa9")
