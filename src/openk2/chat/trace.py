"""How one answer came about, for whoever asks for it with the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openk2.config.sampling import SamplingParams


@dataclass
class Trace:
    """Filled in by the provider while it answers, as far as it knows; empty where the prompt is made elsewhere."""

    prompt_token_ids: Sequence[int] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    """Text of token ids, control tokens as their literals."""
    sampling: SamplingParams | None = None
    """What was sampled with: no setting is left to a default."""
    constraint: Mapping[str, Any] | None = None
    """What the grammar held the answer to, fit for JSON."""
    token_ids: list[int] = field(default_factory=list)
    """Of the answer so far, control tokens and the one that ended it included."""

    def text_of(self, token_ids: Sequence[int]) -> str | None:
        return None if self.decode is None else self.decode(token_ids)
