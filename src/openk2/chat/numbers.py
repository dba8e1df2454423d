"""How long a number may become in JSON that is written under a grammar.

A grammar of 'less than 0.5' rightly allows 0.49999999999999999999, which every reader of JSON rounds to 0.5; and a
small model that repeats itself never ends its digits. So a number with a fraction has at most 15 digits, which double
precision keeps apart (IEEE 754), an integer at most 24, enough for any identifier, and an exponent 2, which double
precision holds. Where the schema wants yet more, as for 'above 0' after zeros alone, a digit other than 0 comes next.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from openk2.tokenizer import Tokenizer

MOST_DIGITS = 15
"""Of a number with a fraction, leading zeros included."""
MOST_INTEGER_DIGITS = 24
MOST_EXPONENT_DIGITS = 2

Words = NDArray[np.int32]


class NumberWatch:
    """Follows JSON text byte by byte, as far as numbers need it."""

    def __init__(self) -> None:
        self._in_string = self._escaped = False
        self._digits = 0
        self._most = MOST_INTEGER_DIGITS

    def feed(self, text: bytes) -> None:
        for byte in text:
            if self._in_string:
                ends = byte == 0x22 and not self._escaped
                self._escaped = byte == 0x5C and not self._escaped
                self._in_string = not ends
            elif 0x30 <= byte <= 0x39:
                self._digits += 1
            elif byte == 0x2E:
                self._most = MOST_DIGITS
            elif byte in b"eE" and self._digits:
                self._digits, self._most = 0, MOST_EXPONENT_DIGITS
            elif byte not in b"+-" or self._most != MOST_EXPONENT_DIGITS:
                self._in_string = byte == 0x22
                self._digits, self._most = 0, MOST_INTEGER_DIGITS

    @property
    def room(self) -> int | None:
        """Digits that the number which the text is in may still get; None: it is in none."""
        if not self._digits and self._most != MOST_EXPONENT_DIGITS:
            return None
        return max(0, self._most - self._digits)


class DigitMasks:
    """Which tokens of a vocabulary begin with more than some number of digits; an exponent's `e` counts as one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.n_ranks)]
        self._leading = np.zeros((tokenizer.vocab_size + 31) // 32 * 32, np.int32)
        self._leading[: len(texts)] = [
            len(text) - len(text.lstrip(b"0123456789")) or int(text[:1] in (b"e", b"E")) for text in texts
        ]
        self._most = int(self._leading.max())
        zeros = np.zeros(len(self._leading), bool)
        zeros[: len(texts)] = [text.startswith(b"0") for text in texts]
        self._zeros: Words = np.packbits(zeros, bitorder="little").view(np.int32)
        self._with_more_than = lru_cache(maxsize=32)(self._compute)

    def limit(self, words: Words, room: int | None) -> None:
        """Take from the mask the tokens that begin with more than `room` digits; if nothing is left, with a zero."""
        if room is None or room >= self._most:
            return
        for masked in (self._with_more_than(room), self._zeros):
            rest = words[: len(masked)] & ~masked
            if rest.any():
                words[: len(masked)] = rest
                return

    def _compute(self, room: int) -> Words:
        return np.packbits(self._leading > room, bitorder="little").view(np.int32)
