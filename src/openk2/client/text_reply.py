"""Reads the answer of an endpoint's legacy completions: the continuation of a raw prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openk2.chat.events import ChatEvent, Finished, TextDelta
from openk2.chat.messages import TokenLogprob, Usage
from openk2.client.failures import stream_error
from openk2.client.reply import read_usage, stop_string_of
from openk2.errors import ProviderError


class TextReplyReader:
    """Turns the JSON chunks of one continuation into chat events: `feed` each, then `finish`."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """`stop`: the request's stop strings; an endpoint may name the one that ended the answer."""
        self._stop = stop
        self._reason: str | None = None
        self._stop_string: str | None = None
        self._usage = Usage()

    @property
    def finish_reason_seen(self) -> bool:
        return self._reason is not None

    def feed(self, chunk: Any) -> Iterator[ChatEvent]:
        """Events of one chunk, or of a whole completion. Raises ProviderError for an error object."""
        if not isinstance(chunk, dict):
            raise ProviderError("the endpoint sent something that is no completion")
        if chunk.get("error"):
            raise stream_error(chunk["error"])
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = read_usage(usage)
        choices = chunk.get("choices") or []
        if not choices or choices[0].get("index"):  # only the first choice was asked for
            return
        choice = choices[0]
        if isinstance(text := choice.get("text"), str) and text:
            yield TextDelta(text, _logprobs(choice.get("logprobs")))
        if choice.get("finish_reason"):
            self._reason = choice["finish_reason"]
            self._stop_string = stop_string_of(choice, self._stop)

    def finish(self, *, done_seen: bool) -> Iterator[ChatEvent]:
        """Events at the end of the stream. Raises ProviderError when the answer is not whole."""
        if self._reason is None and not done_seen:
            raise ProviderError("the connection ended before the answer was complete")
        if self._reason == "content_filter":
            raise ProviderError("the endpoint's content filter stopped the answer")
        yield Finished("length" if self._reason == "length" else "stop", self._usage, self._stop_string)


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    """Of the legacy form: parallel lists. A first token without one (an echoed prompt's) is left out."""
    tokens, values = (logprobs or {}).get("tokens") or [], (logprobs or {}).get("token_logprobs") or []
    tops = (logprobs or {}).get("top_logprobs") or [None] * len(tokens)
    return tuple(
        TokenLogprob(token.encode("utf-8", "replace"), value, tuple(_top(top)))
        for token, value, top in zip(tokens, values, tops, strict=False)
        if value is not None
    )


def _top(top: Mapping[str, float] | None) -> Iterator[TokenLogprob]:
    for text, value in (top or {}).items():
        yield TokenLogprob(text.encode("utf-8", "replace"), value)
