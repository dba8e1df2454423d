"""Reads the answer of an endpoint's legacy completions: the continuation of a raw prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openk2.chat.events import ChatEvent, Finished, TextDelta
from openk2.chat.messages import TokenLogprob
from openk2.client.envelope import Envelope


class TextReplyReader:
    """Turns the JSON chunks of one continuation into chat events: `feed` each, then `finish`."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """`stop`: the request's stop strings; an endpoint may name the one that ended the answer."""
        self._envelope = Envelope("completion", stop)

    @property
    def finish_reason_seen(self) -> bool:
        return self._envelope.reason is not None

    def feed(self, chunk: Any) -> Iterator[ChatEvent]:
        """Events of one chunk, or of a whole completion. Raises ProviderError for an error object."""
        choice = self._envelope.choice_of(chunk)
        if choice is not None and isinstance(text := choice.get("text"), str) and text:
            yield TextDelta(text, _logprobs(choice.get("logprobs")))

    def finish(self, *, done_seen: bool) -> Iterator[ChatEvent]:
        """Events at the end of the stream. Raises ProviderError when the answer is not whole."""
        envelope = self._envelope
        envelope.check_end(done_seen=done_seen)
        yield Finished("length" if envelope.reason == "length" else "stop", envelope.usage, envelope.stop_string)


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
