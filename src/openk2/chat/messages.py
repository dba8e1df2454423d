"""The vocabulary shared by server, client, agent, evals and training: messages, tool calls, tool declarations.

Wire formats (OpenAI, Anthropic) are converted to these at the edge; nothing inside knows a wire format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Content = str | Sequence[Mapping[str, Any]] | None
"""Text, OpenAI-style content parts (`{"type": "text", "text": ...}`), or nothing."""


@dataclass(frozen=True)
class ToolCall:
    """One call that the model asks for."""

    id: str
    """Opaque to clients; canonical form `functions.NAME:INDEX`, the index counting over the conversation."""
    name: str
    arguments: str
    """JSON text exactly as the model wrote it; never re-serialised."""


@dataclass(frozen=True)
class ToolSpec:
    """A tool that the model may call, kept as the caller declared it: the template shows every key of it."""

    declaration: Mapping[str, Any]
    """`{"type": "function", "function": {"name", "description", "parameters", ...}}`"""

    @classmethod
    def function(cls, name: str, description: str, parameters: Mapping[str, Any]) -> ToolSpec:
        return cls(
            {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
        )

    @property
    def name(self) -> str:
        return self.declaration["function"]["name"]

    @property
    def description(self) -> str:
        return self.declaration["function"].get("description") or ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of the arguments; a missing one is an empty object."""
        return self.declaration["function"].get("parameters") or {"type": "object", "properties": {}}

    @property
    def enforced(self) -> Mapping[str, Any]:
        """JSON schema that calls are held to: `parameters`, or any object where the caller said `strict: false`."""
        return {"type": "object"} if self.declaration["function"].get("strict") is False else self.parameters


@dataclass(frozen=True)
class Message:
    role: Role
    content: Content = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """On a `tool` message: the id of the call that this is the result of."""
    partial: bool = False
    """On the last message, one of the assistant's: its text is the beginning of the answer, which goes on."""
    reasoning: str | None = None
    """On an assistant's message: what it thought before it answered. Templates of models that think show it."""

    @property
    def text(self) -> str:
        """The content's text parts, joined."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.get("text", "") for part in self.content if part.get("type") == "text")


ToolChoiceMode = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class ToolChoice:
    """Which calls the model may or must make."""

    mode: ToolChoiceMode = "auto"
    name: str | None = None
    """With mode `required`: the one tool that must be called."""
    parallel: bool = True
    """False allows at most one call in a turn."""


@dataclass(frozen=True)
class ResponseFormat:
    """The text of the answer is to be one JSON object. A turn that calls tools has no such text."""

    schema: Mapping[str, Any] | None = None
    """JSON schema of the object, whose keys then come in the order of its `properties`; None: any object."""
    name: str = "answer"
    """What the schema is called; no model sees it."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token of the answer's text was."""

    bytes: bytes
    """Of its text; a token may hold part of a character."""
    logprob: float | None
    """None: it is a prompt's first, which follows from nothing."""
    top: tuple[TokenLogprob, ...] = ()
    """The most likely tokens in its place, without lists of their own."""

    @property
    def text(self) -> str:
        return self.bytes.decode("utf-8", "replace")


@dataclass(frozen=True)
class ExpertUse:
    """Of an answer on fewer routed experts than the model was trained with."""

    mode: str | None
    """None: a number of experts was asked for."""
    taken: int = 0
    """Experts of all tokens and layers."""
    choices: int = 0
    """Tokens times layers with experts. An answer's last token goes through no layer."""

    @property
    def per_token(self) -> float | None:
        """In each layer, on the mean; None for an answer of one token."""
        return self.taken / self.choices if self.choices else None

    def __add__(self, other: ExpertUse) -> ExpertUse:
        return ExpertUse(self.mode, self.taken + other.taken, self.choices + other.choices)


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's tokens, those whose cache entries were found."""
    reasoning_tokens: int = 0
    """Of the answer's tokens, those of thinking."""
    experts: ExpertUse | None = None
    """None: the trained number, or the provider does not tell."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.experts + other.experts if self.experts and other.experts else self.experts or other.experts,
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


FinishReason = Literal["stop", "length", "tool_calls", "error"]


@dataclass(frozen=True)
class Completion:
    """One finished answer: what a stream of events adds up to."""

    message: Message
    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the text's tokens, when the request asked for them and the provider tells."""
