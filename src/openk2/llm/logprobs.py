"""Log probabilities on their way to the text that they belong to."""

from __future__ import annotations

from collections import deque

from openk2.chat.messages import TokenLogprob
from openk2.engine.request import TokenLogprobs
from openk2.tokenizer import Tokenizer


class PendingLogprobs:
    """Holds what is known of tokens until their text is given out: text is held back for stop strings and characters.

    Call `push` for each token of text, `saw` for the text that became known by it, `take` for the text given out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: deque[tuple[int, TokenLogprob]] = deque()  # (where in the text it begins, token)
        self._known = 0
        self._given = 0

    def push(self, token_id: int, known: TokenLogprobs) -> None:
        self._pending.append((self._known, self.told(token_id, known)))

    def saw(self, text: str) -> None:
        self._known += len(text)

    def drop_unknown(self) -> None:
        """Forget the tokens of which no text became known: they were a marker."""
        while self._pending and self._pending[-1][0] >= self._known:
            self._pending.pop()

    def take(self, text: str) -> tuple[TokenLogprob, ...]:
        """The tokens that begin in `text`, which goes on where the last one ended."""
        self._given += len(text)
        taken = []
        while self._pending and self._pending[0][0] < self._given:
            taken.append(self._pending.popleft()[1])
        return tuple(taken)

    def told(self, token_id: int, known: TokenLogprobs | None) -> TokenLogprob:
        """What is known of a token, None being nothing, with texts in place of ids."""
        if known is None:
            return self._entry(token_id, None)
        return self._entry(token_id, known.logprob, tuple(self._entry(id, logprob) for id, logprob in known.top))

    def _entry(self, token_id: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        # A model may have more rows than the tokenizer entries; such an id has no text.
        known = token_id < self._tokenizer.vocab_size
        return TokenLogprob(self._tokenizer.token_bytes(token_id) if known else b"", logprob, top)
