"""What the chunks of chat completions and of legacy completions have in common: errors, usage, one choice, its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openk2.chat.messages import ExpertUse, Usage
from openk2.client.failures import stream_error
from openk2.errors import ProviderError


class Envelope:
    """The state of one answer beside its content: `choice_of` each chunk, then `check_end`."""

    def __init__(self, kind: str, stop: Sequence[str]) -> None:
        """`kind` of answer, for errors; `stop`: the request's stop strings, of which one may end the answer."""
        self._kind, self._stop = kind, stop
        self.stop_string: str | None = None
        self.reason: str | None = None
        self.usage = Usage()

    def choice_of(self, chunk: Any) -> Mapping[str, Any] | None:
        """The choice that was asked for, if the chunk has it. Raises ProviderError for an error object."""
        if not isinstance(chunk, dict):
            raise ProviderError(f"the endpoint sent something that is no {self._kind}")
        if chunk.get("error"):
            raise stream_error(chunk["error"])
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = _read_usage(usage)
        choices = chunk.get("choices") or []
        if not choices or choices[0].get("index"):  # only the first choice was asked for
            return None
        choice: Mapping[str, Any] = choices[0]
        if choice.get("finish_reason"):
            self.reason = choice["finish_reason"]
            self.stop_string = _stop_string_of(choice, self._stop)
        return choice

    def check_end(self, *, done_seen: bool) -> None:
        """Raises ProviderError when the answer is not whole."""
        if self.reason is None and not done_seen:
            raise ProviderError("the connection ended before the answer was complete")
        if self.reason == "content_filter":
            raise ProviderError("the endpoint's content filter stopped the answer")


def _stop_string_of(choice: Mapping[str, Any], stop: Sequence[str]) -> str | None:
    """The one of the request's stop strings that ended the answer, where the engine names it, as vLLM and SGLang do."""
    named = choice.get("stop_reason") or choice.get("matched_stop")
    return named if isinstance(named, str) and named in stop else None


def _read_usage(usage: Mapping[str, Any]) -> Usage:
    """Of the wire format's `usage`."""
    details = usage.get("prompt_tokens_details") or {}
    completion_tokens = usage.get("completion_tokens") or 0
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=completion_tokens,
        cached_tokens=details.get("cached_tokens") or usage.get("cached_tokens") or 0,
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
        experts=_read_experts(usage.get("experts"), completion_tokens),
    )


def _read_experts(told: Any, tokens: int) -> ExpertUse | None:
    """Of an openk2 server (`server/experts.py`). Only the mean is on the wire: it counts as that of `tokens` choices,
    in thousandths, so that means of several answers weigh by their tokens."""
    if not isinstance(told, Mapping) or not isinstance(told.get("mode"), str | None):
        return None
    per_token = told.get("per_token")
    if not isinstance(per_token, int | float) or not 0 < per_token < 1e6:
        return ExpertUse(told.get("mode"))
    return ExpertUse(told.get("mode"), round(1000 * per_token) * tokens, 1000 * tokens)
