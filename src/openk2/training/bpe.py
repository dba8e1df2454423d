"""Makes a vocabulary: byte-pair merges learned from text, in the tiktoken rank format that K2 uses.

The published split rule cuts the text first. On top of it, merges that would hinder a small model from copying are left
out: a digit, a blank and a punctuation mark each stay tokens of their own when `atomic` says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

import regex

from openk2.tokenizer.tokenizer import SPLIT_PATTERN

Pair = tuple[bytes, bytes]


def byte_order() -> list[bytes]:
    """The 256 single bytes in the order of the published ranks: printable Latin-1 first, as in GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [bytes([b]) for b in printable + [b for b in range(256) if b not in set(printable)]]


def copy_friendly(left: bytes, right: bytes) -> bool:
    """Allow merges inside a word of ASCII letters of one case pattern (Word, word, WORD), of JSON's own punctuation,
    and of bytes past ASCII.

    Values are then copied in pieces that look the same wherever they stand: after a blank, a quote or an underscore.
    """
    both = left + right
    if all(b >= 128 for b in both) or all(b in b'{}[]":, ' for b in both.removeprefix(b" ")):
        return both.strip() != b""
    if not both.isalpha() or not both.isascii():
        return False
    return both.islower() or both.isupper() or (both[:1].isupper() and both[1:].islower())


def any_merge(left: bytes, right: bytes) -> bool:
    """Allow every merge: the ordinary rule, for models that are not small."""
    return True


MERGES: Mapping[str, Callable[[bytes, bytes], bool]] = {"any": any_merge, "copy": copy_friendly}
"""Rules by name: `copy` is `copy_friendly`."""


def train_ranks(
    texts: Iterable[str], vocab_size: int, *, allow: Callable[[bytes, bytes], bool] = copy_friendly
) -> dict[bytes, int]:
    """Learn `vocab_size` byte-string tokens, the 256 single bytes among them, most frequent merges first.

    Ties are broken by the bytes themselves, so that the same texts always give the same ranks.
    """
    split = regex.compile(SPLIT_PATTERN, regex.V1)
    words = Counter(piece for text in texts for piece in split.findall(text))
    parts = [[bytes([b]) for b in word.encode()] for word in words]
    counts = list(words.values())
    pair_count: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(parts):
        for pair in zip(word, word[1:], strict=False):
            pair_count[pair] += counts[index]
            where[pair].add(index)
    ranks = {token: rank for rank, token in enumerate(byte_order())}
    refused: set[Pair] = set()
    while len(ranks) < vocab_size:
        best = max((p for p in pair_count if p not in refused), key=lambda p: (pair_count[p], p), default=None)
        if best is None or pair_count[best] < 2:
            break
        if not allow(*best):
            refused.add(best)
            continue
        ranks.setdefault(best[0] + best[1], len(ranks))
        for index in list(where[best]):
            _merge(parts, index, best, counts[index], pair_count, where)
        del pair_count[best], where[best]
    return ranks


def _merge(
    parts: list[list[bytes]],
    index: int,
    pair: Pair,
    count: int,
    pair_count: Counter[Pair],
    where: defaultdict[Pair, set[int]],
) -> None:
    word = parts[index]
    for old in zip(word, word[1:], strict=False):
        pair_count[old] -= count
        if pair_count[old] <= 0:
            del pair_count[old]
        where[old].discard(index)
    merged: list[bytes] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    parts[index] = merged
    for new in zip(merged, merged[1:], strict=False):
        pair_count[new] += count
        where[new].add(index)
