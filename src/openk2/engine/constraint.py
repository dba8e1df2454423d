"""What the engine asks of a grammar. It knows ids only; `openk2.chat.constraints` implements it for tool calls."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenConstraint(Protocol):
    """The state of one request's grammar, moved by the tokens of its answer."""

    @property
    def is_finished(self) -> bool:
        """True: only the end of the turn may follow."""
        ...

    def fill_mask(self, words: NDArray[np.int32]) -> bool:
        """Write the next token's mask: bit i % 32 of words[i // 32] says whether token i is allowed.

        words: (ceil(vocab / 32),), zeros on entry. False: everything is allowed and the words are untouched.
        """
        ...

    def accept(self, token_id: int) -> None:
        """The answer goes on with this token: sampled under the mask, or forced."""
        ...

    def closing_tokens(self, token_id: int, room: int) -> list[int]:
        """Tokens that end the answer validly within the `room` that are left, in place of the sampled `token_id`.

        Empty: `token_id` may be taken, since what it begins can still be ended in time, or nothing can.
        Not yet accepted either.
        """
        ...

    def forced_tokens(self) -> list[int]:
        """Tokens that are the only continuation now, in order; may be empty.

        They are not yet accepted: the engine calls `accept` for each that it takes.
        """
        ...
