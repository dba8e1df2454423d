"""Messages and tools -> prompt ids, safe and exact.

The checkpoint's own Jinja template runs where there is one (sandboxed), `k2_template.jinja` otherwise. No text of a
caller can forge a turn or a call, whatever field it stands in:

1. every character that could begin a control token is replaced, in every string that came from the caller, by a
   random number (a nonce) that no caller could know, so control tokens in the rendered text are the template's alone,
   however it joins or trims those strings;
2. the rendered text is split at the control tokens;
3. each whole run between them is restored and encoded as one string with specials disabled, so no seam between a
   template's text and a caller's changes a token.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from openk2.chat.ids import canonicalize
from openk2.chat.lexers import Thought
from openk2.chat.messages import Message, ToolSpec
from openk2.errors import TemplateError
from openk2.tokenizer import Tokenizer

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"

_TAIL_TOKENS = 16
"""So many hold the marker of a thought, and white space after it, in any vocabulary."""


class ChatTemplate:
    """A compiled chat template over a tokenizer. `source` None: the K2 rules (revision v4).

    Raises TemplateError for a template that is not valid Jinja.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.source = source or files("openk2.chat").joinpath("k2_template.jinja").read_text(encoding="utf-8")
        self._control_token = re.compile(
            "|".join(re.escape(text) for text in sorted(tokenizer.specials, key=len, reverse=True))
        )
        self._nonces = _Nonces(sorted({text[0] for text in tokenizer.specials}))
        try:
            self._template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"The chat template is not valid Jinja: {error}") from None

    @classmethod
    def from_folder(cls, tokenizer: Tokenizer, folder: str | Path) -> ChatTemplate:
        """The template of a checkpoint folder: `chat_template.jinja`, else the one in `tokenizer_config.json`.

        Where there is neither, the K2 rules.
        """
        folder = Path(folder)
        if (folder / TEMPLATE_FILE).exists():
            return cls(tokenizer, _read(folder / TEMPLATE_FILE))
        if (folder / CONFIG_FILE).exists():
            try:
                source = json.loads(_read(folder / CONFIG_FILE)).get("chat_template")
            except (ValueError, AttributeError):
                raise TemplateError(f"{folder / CONFIG_FILE} is not a JSON object; fetch the file again.") from None
            if isinstance(source, list):
                named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
                source = named.get("default")
            if isinstance(source, str):
                return cls(tokenizer, source)
        return cls(tokenizer)

    @property
    def thinks(self) -> bool:
        """Whether it is the template of a model that thinks before it answers: one that knows the end of thoughts."""
        return Thought.END.value in self.source

    def opens_thought(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends in the beginning of a thought, which its answer then goes on with."""
        return self.thinks and self.tokenizer.decode(prompt[-_TAIL_TOKENS:]).rstrip().endswith(Thought.BEGIN.value)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """Ids of the prompt. Call ids of the history are made canonical first.

        A last message that is partial stays open at its end; `add_generation_prompt` then says nothing. `variables` are
        further ones of the template; they take the place of none that it has in any case.

        Raises RequestError for a tool result of no call, TemplateError when the template refuses the messages.
        """
        rendered = self._render(messages, tools, add_generation_prompt, variables)
        ids: list[int] = []
        for run, control in self._split(rendered):
            if run:
                ids += self.tokenizer.encode(self._nonces.restore(run))
            if control is not None:
                ids.append(self.tokenizer.specials[control])
        return ids

    def render_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt as text, for people to read: it cannot tell a control token from a caller's literal of it."""
        return self._nonces.restore(self._render(messages, tools, add_generation_prompt, {}))

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        add_generation_prompt: bool,
        further: Mapping[str, Any],
    ) -> str:
        nonces = self._nonces
        is_partial = bool(messages) and messages[-1].partial
        variables = nonces.protect(further) | {
            "messages": [nonces.protect(_message_object(message)) for message in canonicalize(messages)],
            "tools": [nonces.protect(sort_keys(tool.declaration)) for tool in tools] or None,
            "add_generation_prompt": add_generation_prompt and not is_partial,
            "bos_token": self.tokenizer.encoding.decode([self.tokenizer.bos_id]),
            "eos_token": self.tokenizer.encoding.decode([self.tokenizer.eos_id]),
        }
        try:
            rendered = self._template.render(variables)
        except TemplateError as error:
            raise TemplateError(nonces.restore(str(error)), param="messages") from None
        except Exception as error:  # a template is a program: whatever it trips over is a fault of it or of the request
            raise TemplateError(
                f"The chat template cannot render this conversation: {nonces.restore(str(error))}", param="messages"
            ) from None
        return self._left_open(rendered) if is_partial else rendered

    def _left_open(self, rendered: str) -> str:
        """Without the end of the last turn."""
        controls = list(self._control_token.finditer(rendered))
        end = controls[-1] if controls else None
        if end is None or self.tokenizer.specials[end[0]] != self.tokenizer.im_end_id or rendered[end.end() :].strip():
            raise TemplateError(
                "The chat template does not close the last turn with the end-of-turn token, so it cannot be continued.",
                param="messages",
            )
        return rendered[: end.start()]

    def _split(self, rendered: str) -> Iterator[tuple[str, str | None]]:
        """(text before, control token) pairs; the last has no control token."""
        start = 0
        for match in self._control_token.finditer(rendered):
            yield rendered[start : match.start()], match[0]
            start = match.end()
        yield rendered[start:], None


class _Nonces:
    """Stand-ins of the characters that can begin a control token; drawn per template and never shown to anyone.

    A nonce is decimal digits only, so no filter of a template (case, JSON escapes) changes it. Its first digit occurs
    nowhere else in it, so it is found exactly where it was put, whatever digits stand around it.
    """

    def __init__(self, openers: Sequence[str]) -> None:
        self._nonce = {opener: self._draw(str(digit)) for digit, opener in enumerate(openers, start=1)}
        self._opener = {nonce: opener for opener, nonce in self._nonce.items()}
        self._openers = re.compile("|".join(map(re.escape, openers)))
        self._nonces = re.compile("|".join(self._opener))

    @staticmethod
    def _draw(first: str) -> str:
        others = [digit for digit in "0123456789" if digit != first]
        return first + "".join(secrets.choice(others) for _ in range(23))

    def protect(self, value: Any) -> Any:
        """`value` (JSON-like) with every string in it, keys included, made free of control tokens."""
        if isinstance(value, str):
            return self._openers.sub(lambda match: self._nonce[match[0]], value)
        if isinstance(value, Mapping):
            return {self.protect(key): self.protect(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.protect(item) for item in value]
        return value

    def restore(self, text: str) -> str:
        return self._nonces.sub(lambda match: self._opener[match[0]], text)


def sort_keys(value: Any) -> Any:
    """`value` with the keys of every object in it sorted; lists keep their order.

    The published tokenizer sorts tool declarations so before it renders them; the grammar takes the same order.
    """
    if isinstance(value, Mapping):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [sort_keys(item) for item in value]
    return value


def _message_object(message: Message) -> dict[str, Any]:
    """The OpenAI-style object that chat templates are written for."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return fields


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up, so that published templates give the published whitespace."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"Cannot read {path}: {error}.") from None
