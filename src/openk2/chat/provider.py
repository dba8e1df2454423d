"""The one interface between whoever wants an answer (server, agent, evals) and whatever gives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from openk2.chat.events import ChatEvent
from openk2.chat.messages import Message, ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.trace import Trace
from openk2.config.sampling import SamplingParams
from openk2.errors import RequestError


@dataclass(frozen=True)
class ChatRequest:
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    grammar: bool = True
    """Hold tool calls to the declared names and schemas while they are sampled, where the provider can."""
    response_format: ResponseFormat | None = None
    """None: free text."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the model's chat template, such as the switch of one that can think or not."""
    trace: Trace | None = field(default=None, compare=False)
    """Where to tell how the answer came about; no part of what is asked."""

    def __post_init__(self) -> None:
        """Raises RequestError for a partial message that no answer can go on from."""
        for i, message in enumerate(self.messages):
            if not message.partial:
                continue
            path = f"messages[{i}].partial"

            def check(ok: bool, rule: str, path: str = path) -> None:
                if not ok:
                    raise RequestError(f"Invalid value for '{path}': {rule}.", param=path)

            check(message.role == "assistant", "only an assistant message can be continued")
            check(i == len(self.messages) - 1, "only the last message can be continued")
            check(not message.tool_calls, "a message that calls tools cannot be continued")
            check(self.response_format is None, "a response format holds for whole answers; leave one of the two out")


@dataclass(frozen=True)
class ProviderLoad:
    """What a provider has to do now, and what it has done since it started."""

    running: int
    """Answers that are being made, and below: those that wait for their turn."""
    waiting: int
    cache_usage: float = 0.0
    """Share of the cache that running answers hold, 0 to 1."""
    cache_queries: int = 0
    """Prompt tokens that were looked for in the prefix cache, and below: those found."""
    cache_hits: int = 0
    preemptions: int = 0
    """Answers that gave up their place for want of cache, and were begun again."""


@dataclass(frozen=True)
class ProviderFigure:
    """Something else that a provider tells of itself, named as metrics are."""

    name: str
    help_text: str
    kind: Literal["counter", "gauge"]
    labels: Mapping[str, str]
    value: float


class ChatProvider(Protocol):
    """Our engine (`openk2.llm`), a remote endpoint (`openk2.client`) or a script (`openk2.chat.scripted`)."""

    @property
    def model(self) -> str:
        """The name under which the model answers."""
        ...

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """Yield the answer's events; closing the iterator aborts the request.

        Raises RequestError before the first event when the request cannot be served, ProviderError when the
        provider fails.
        """
        ...


@dataclass(frozen=True)
class TextRequest:
    prompt: str | Sequence[int]
    """Token ids, or text, in which control tokens are ordinary text."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    trace: Trace | None = field(default=None, compare=False)
    """Where to tell how the answer came about; no part of what is asked."""


class TextProvider(ChatProvider, Protocol):
    """A provider that also continues a prompt as it stands, without a chat around it."""

    def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        """Yield `TextDelta`* and `Finished`.

        With `prompt_logprobs` the text begins with the prompt.

        Raises as `stream` does.
        """
        ...
