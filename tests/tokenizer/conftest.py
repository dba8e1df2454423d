"""The vocabularies of `tests.support.vocabularies`, as fixtures of this folder."""

from __future__ import annotations

from tests.support.vocabularies import kimi_tokenizer, tokenizer

__all__ = ["kimi_tokenizer", "tokenizer"]
