"""Which upstream a request goes to: the one that most likely has its prompt's beginning in its cache.

Rendezvous hashing: every pair of an upstream and a conversation has a fixed random weight, and the heaviest upstream is
the conversation's first choice. All requests of a conversation so meet the same cache, gateways agree without talking,
and where an upstream comes or goes only its own conversations move. The load is bounded: an upstream that has more to
do than its share passes what is beyond it on to the next choice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from openk2.chat.provider import ChatRequest

SPREAD = 1.25
"""How many times its fair share of all requests under way an upstream may have before others help out."""
FREE_LOAD = 4
"""So many requests at once are nobody's burden, however unfairly they are shared."""
TEXT_KEY_LENGTH = 2048
"""Characters, or token ids, of a raw prompt that tell conversations apart."""

T = TypeVar("T")


def conversation_key(request: ChatRequest) -> bytes:
    """The same for every turn of a conversation: tools, instructions and the first message of the user.

    More would change from turn to turn; less would send all users of one system prompt to the same upstream.
    """
    first_user = next((i for i, message in enumerate(request.messages) if message.role == "user"), 0)
    opening = [(message.role, message.text) for message in request.messages[: first_user + 1]]
    return _digest([[tool.declaration for tool in request.tools], opening])


def text_key(prompt: str | Sequence[int]) -> bytes:
    return _digest(prompt[:TEXT_KEY_LENGTH] if isinstance(prompt, str) else list(prompt[:TEXT_KEY_LENGTH]))


def ranked(names: Iterable[str], key: bytes) -> list[str]:
    """The names by their weight for a key, the heaviest first."""
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), key=key).digest(), reverse=True)


def choose(loads: Mapping[str, int], key: bytes) -> str:
    """The first choice for a key that has room, given the requests under way at each name; names are not empty."""
    bound = max(FREE_LOAD, math.ceil(SPREAD * (sum(loads.values()) + 1) / len(loads)))
    return next(name for name in ranked(loads, key) if loads[name] < bound)


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=32).digest()
