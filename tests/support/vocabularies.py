"""Two vocabularies: a small synthetic one, made here, and the published one where it lies beside us."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openk2.tokenizer import Tokenizer

_WORDS = (
    "the weather in city Paris Beijing functions function name type string object properties required description"
    " get set search files pattern lang Return of You are Kimi, an AI assistant created by Moonshot AI. ## tool"
    ' {" ": ", "} "}] true false null 12 100 hello world café 你好 世界 <| |> im_end tool_call <|im tool_calls_section'
)


def synthetic_ranks() -> dict[bytes, int]:
    """256 bytes, then the prefixes of some words with and without a leading space: every rank can be reached by BPE."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in _WORDS.split(" "):
        for form in (word.encode(), b" " + word.encode()):
            for end in range(2, len(form) + 1):
                ranks.setdefault(form[:end], len(ranks))
    return ranks


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A synthetic vocabulary with the published specials after it."""
    return Tokenizer(synthetic_ranks())


@pytest.fixture(scope="session")
def kimi_tokenizer() -> Tokenizer:
    """The published ranks: OPENK2_KIMI_TOKENIZER, or `shared/data/kimi_tokenizer` beside the repository."""
    beside = Path(__file__).parents[3] / "shared" / "data" / "kimi_tokenizer"
    folder = Path(os.environ.get("OPENK2_KIMI_TOKENIZER") or beside)
    if not (folder / "tiktoken.model").exists():
        pytest.skip(f"no published ranks in {folder}; set OPENK2_KIMI_TOKENIZER to their folder")
    return Tokenizer.from_folder(folder)
