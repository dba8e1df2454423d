"""Ids to text while they are generated."""

from __future__ import annotations

import codecs

from openk2.tokenizer.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Gives out text as soon as whole characters are known; a token may hold part of one.

    The pieces of a stream add up to `tokenizer.decode` of all its ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD if a character is still unfinished, and a fresh start."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
