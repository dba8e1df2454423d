"""Why a prompt was not found in the prefix cache: the first token at which it differs from an earlier one.

Programs put what changes with every request (a date, a random id, a line for their own accounting) before what stays
the same, and so lose the whole cache without a sign. Here the prompts of late are kept; one that shares most of its
text with an earlier one, but not its beginning, is set beside it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.responses import Response

from openk2.chat.trace import Trace
from openk2.server.sse import dump_json

logger = logging.getLogger(__name__)

_PROMPTS = 32
_MISSES = 64
_PASSAGE = 8
"""Tokens of a passage; two prompts are alike when they have passages in common, wherever these stand."""
_KEPT_ONE_IN = 4
"""Passages are kept when their hash says so, which is the same for equal ones."""
_ALIKE = 0.5
"""Share of the earlier prompt's passages after the difference that stand in the later one, too."""
_LEAST_TOKENS = 128
"""Lost tokens below this are not worth a word: among them is the rest of a cache block."""
_CONTEXT = 24
"""Tokens of text shown before the difference and after it."""
_FACTORS = np.array([0x9E3779B97F4A7C15**k % 2**64 for k in range(1, _PASSAGE + 1)], dtype=np.uint64)
_TEXTS = frozenset({"before", "earlier", "now"})
"""Fields that no log may hold."""


@dataclass(frozen=True)
class CacheMiss:
    """One prompt beside the earlier one that it could have gone on from."""

    request_id: str
    earlier_request_id: str
    reason: Literal["changed", "not_kept"]
    """`changed`: the prompts differ before text that they have in common. `not_kept`: they do not, but the blocks of
    the earlier one are gone, or were not written yet."""
    prompt_tokens: int
    cached_tokens: int
    shared_tokens: int
    """Leading tokens that both have: the first that differs has this position."""
    lost_tokens: int
    """Tokens of the earlier prompt that were computed again."""
    before: str
    """The text before the difference, and below: what followed it in the earlier prompt and in this one."""
    earlier: str
    now: str


class CacheMisses:
    """The prompts of late, and what was found out about them. Used on the event loop only."""

    def __init__(self) -> None:
        self._prompts: deque[_Prompt] = deque(maxlen=_PROMPTS)
        self.found: deque[CacheMiss] = deque(maxlen=_MISSES)
        """Newest last."""

    def explain(self, request_id: str, trace: Trace, cached_tokens: int) -> CacheMiss | None:
        """Keep the prompt; what it lost, if it lost much that an earlier one had."""
        prompt = _Prompt.of(request_id, trace.prompt_token_ids)
        losses = [loss for earlier in self._prompts if (loss := _loss(earlier, prompt, cached_tokens))]
        self._prompts.append(prompt)
        if not losses:
            return None
        loss = max(losses, key=lambda loss: loss.tokens)
        at, earlier_ids = loss.shared_tokens, loss.earlier.ids

        def text(ids: NDArray[np.int64]) -> str:
            return trace.text_of(ids.tolist()) or ""

        miss = CacheMiss(
            request_id=request_id,
            earlier_request_id=loss.earlier.request_id,
            reason=loss.reason,
            prompt_tokens=len(prompt.ids),
            cached_tokens=cached_tokens,
            shared_tokens=at,
            lost_tokens=loss.tokens,
            before=text(prompt.ids[max(0, at - _CONTEXT) : at]),
            earlier=text(earlier_ids[at : at + _CONTEXT]),
            now=text(prompt.ids[at : at + _CONTEXT]),
        )
        self.found.append(miss)
        numbers = {name: value for name, value in asdict(miss).items() if name not in _TEXTS}
        logger.info("cache miss", extra={"fields": numbers})
        return miss


@dataclass(frozen=True)
class _Prompt:
    request_id: str
    ids: NDArray[np.int64]
    positions: NDArray[np.intp]
    """Where the kept passages begin, and their hashes."""
    hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, request_id: str, token_ids: Sequence[int]) -> _Prompt:
        ids = np.asarray(token_ids, dtype=np.int64)
        if len(ids) < _PASSAGE:
            return cls(request_id, ids, np.empty(0, np.intp), np.empty(0, np.uint64))
        windows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), _PASSAGE)
        hashes = (windows * _FACTORS).sum(axis=1, dtype=np.uint64)  # modulo 2^64
        positions = np.flatnonzero((hashes >> np.uint64(40)) % np.uint64(_KEPT_ONE_IN) == 0)
        return cls(request_id, ids, positions, hashes[positions])

    def passages_after(self, position: int) -> NDArray[np.uint64]:
        return np.unique(self.hashes[self.positions >= position])


@dataclass(frozen=True)
class _Loss:
    earlier: _Prompt
    reason: Literal["changed", "not_kept"]
    shared_tokens: int
    tokens: int


def _loss(earlier: _Prompt, prompt: _Prompt, cached_tokens: int) -> _Loss | None:
    """What the prompt could have had of the earlier one, and did not; None for little or nothing."""
    shortest = min(len(earlier.ids), len(prompt.ids))
    differs = np.flatnonzero(earlier.ids[:shortest] != prompt.ids[:shortest])
    shared = int(differs[0]) if len(differs) else shortest
    if shared - cached_tokens >= _LEAST_TOKENS:
        return _Loss(earlier, "not_kept", shared, shared - cached_tokens)
    lost = shortest - max(shared, cached_tokens)
    if lost < _LEAST_TOKENS:
        return None
    passages = earlier.passages_after(shared)
    alike = float(np.isin(passages, prompt.passages_after(shared)).mean()) if len(passages) else 0.0
    return _Loss(earlier, "changed", shared, lost) if alike >= _ALIKE else None


def build_router(misses: CacheMisses) -> APIRouter:
    router = APIRouter()

    @router.get("/debug/cache-misses")
    async def cache_misses() -> Response:
        """The newest first."""
        found: list[dict[str, Any]] = [asdict(miss) for miss in reversed(misses.found)]
        return Response(dump_json({"data": found}), media_type="application/json")

    return router
