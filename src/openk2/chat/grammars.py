"""Compiled grammars over one tokenizer: of arguments, of the headers of calls, and the masks of fixed sets of tokens.

The grammar engine is llguidance (never its torch module: it would compile functions on import). Masks are bit sets over
the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher
from llguidance.tiktoken import lltokenizer_from_encoding
from numpy.typing import NDArray

from openk2.chat.closing import WATCHED_ROOM, Closer
from openk2.chat.ids import call_id
from openk2.chat.lexers import Marker
from openk2.chat.numbers import DigitMasks
from openk2.chat.schema import argument_grammars, literals
from openk2.errors import ProviderError, SchemaError
from openk2.tokenizer import Tokenizer

_TEXT_SPECIALS = ("<think>", "</think>")
"""Named specials of the family that are ordinary output, not structure of turns."""

Words = NDArray[np.int32]


class ToolGrammars:
    """Compiled grammars over one tokenizer: arguments by schema, headers by names and index; bounded caches."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.mask_words = (tokenizer.vocab_size + 31) // 32
        self.markers = {marker: tokenizer.specials[marker.value] for marker in Marker}
        self._ll = lltokenizer_from_encoding(
            tokenizer.encoding, n_vocab=tokenizer.vocab_size, eos_token=tokenizer.im_end_id
        )
        self.closer = Closer(tokenizer)
        self.digits = DigitMasks(tokenizer)
        self.shortest = lru_cache(maxsize=1024)(self._shortest)
        self._arguments = lru_cache(maxsize=1024)(self._compile_arguments)
        self._headers = lru_cache(maxsize=256)(self._compile_header)
        self.mask_of = lru_cache(maxsize=64)(self._mask_of)
        self.text_mask = lru_cache(maxsize=64)(self._compute_text_mask)

    def ends(self, end_ids: Collection[int]) -> tuple[int, ...]:
        """Tokens that end a turn: those given, else the tokenizer's own."""
        return tuple(sorted(set(end_ids) or {self.tokenizer.im_end_id, self.tokenizer.eos_id}))

    def fill(self, words: Words, mask: Words) -> None:
        """Copy a mask of this vocabulary into a row that may be longer."""
        self._clear_excess(words)
        words[: self.mask_words] = mask

    def fill_matched(self, words: Words, matcher: LLMatcher) -> None:
        """Write what a matcher allows next; its text's end, for which each state has a token of its own, is not in it.

        Raises ProviderError when the matcher fails.
        """
        self._clear_excess(words)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, self.mask_words * words.itemsize)
        if matcher.is_error():
            raise ProviderError(f"The grammar gave up: {_first_line(matcher.get_error())}")
        # The matcher speaks of the text's end as the end of the sequence.
        _forbid(words, self.tokenizer.im_end_id)

    def _clear_excess(self, words: Words) -> None:
        if len(words) < self.mask_words:
            raise ValueError(f"a mask of {len(words)} words is too short for {self.tokenizer.vocab_size} tokens")
        words[self.mask_words :] = 0

    def compile(self, grammars: Iterable[str]) -> LLMatcher:
        """The first of the grammars that compiles, in its first state. Raises SchemaError when none does."""
        problem = ""
        for grammar in grammars:
            matcher = LLMatcher(self._ll, grammar, log_level=0)
            if not matcher.is_error():
                return matcher
            problem = matcher.get_error()
        raise SchemaError(_first_line(problem))

    def _shortest(self, matcher: LLMatcher, required: frozenset[bytes]) -> int | None:
        path = self.closer.path(matcher, WATCHED_ROOM, required)
        return None if path is None else len(path)

    def header_matcher(self, names: tuple[str, ...], index: int) -> LLMatcher:
        return self._headers(names, index).deep_copy()

    def _compile_header(self, names: tuple[str, ...], index: int) -> LLMatcher:
        try:
            return self.compile([literals([call_id(name, index) for name in names])])
        except SchemaError as error:
            raise SchemaError(f"The tools' names cannot be used: {error}", param="tools") from None

    def arguments(self, name: str, schema: Mapping[str, object]) -> LLMatcher:
        """Of a tool; in its first state and shared, so to be copied. Raises SchemaError, naming the tool."""
        try:
            return self._arguments(json.dumps(schema, sort_keys=True))
        except (TypeError, ValueError) as error:
            raise SchemaError(f"The parameters of tool {name!r} are not JSON: {error}.", param="tools") from None
        except SchemaError as error:
            raise SchemaError(
                f"The parameters of tool {name!r} cannot be used: {error}. Simplify the schema.", param="tools"
            ) from None

    def _compile_arguments(self, schema_json: str) -> LLMatcher:
        return self.compile(argument_grammars(json.loads(schema_json)))

    def _mask_of(self, ids: tuple[int, ...]) -> Words:
        words: Words = np.zeros(self.mask_words, np.int32)
        for token_id in ids:
            if token_id < self.tokenizer.vocab_size:
                allow(words, token_id)
        words.flags.writeable = False
        return words

    def _compute_text_mask(self, end_ids: tuple[int, ...], may_call: bool) -> Words:
        allowed = [*range(self.tokenizer.n_ranks), *end_ids]
        allowed += [self.tokenizer.specials[text] for text in _TEXT_SPECIALS if text in self.tokenizer.specials]
        if may_call:
            allowed.append(self.markers[Marker.SECTION_BEGIN])
        return self._mask_of(tuple(allowed))


@lru_cache(maxsize=4)
def tool_grammars(tokenizer: Tokenizer) -> ToolGrammars:
    """The grammars of a tokenizer, made once: about a second for the full vocabulary."""
    return ToolGrammars(tokenizer)


def allow(words: Words, token_id: int) -> None:
    """Set a token's bit."""
    words.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)


def _forbid(words: Words, token_id: int) -> None:
    words.view(np.uint32)[token_id // 32] &= np.uint32(0xFFFFFFFF ^ (1 << token_id % 32))


def _first_line(message: str) -> str:
    """The compiler's message without its position in a grammar that no caller ever saw."""
    lines = message.strip().split("\n")
    line = lines[0].split("failed to compile JSON schema: ", 1)[-1].removeprefix("error: ")
    if line.endswith(":"):  # a regex's error: the pattern, carets, and only then what is wrong
        line += next((f" {later[7:]}" for later in lines[1:] if later.startswith("error: ")), "")
    return line.rstrip(".")
