"""Encoding against the published vectors and an independent implementation of the split rule."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.errors import TokenizerError
from openk2.tokenizer import SPECIAL_OFFSETS, IncrementalDetokenizer, Tokenizer, load_ranks, save_ranks
from openk2.tokenizer.tokenizer import ENCODE_WINDOW_CHARS, MAX_RUN_CHARS, encode_windows

# Computed with the official ranks and split rule; the last is a public test's vector.
GOLDEN = {
    "Hello, world!": "19180 11 2695 0",
    " hello": "40493",
    "You are Kimi, an AI assistant created by Moonshot AI.": (
        "3900 554 24980 72 11 519 22572 26626 5232 673 30218 10065 22572 13"
    ),
    "What is 1+1?": "5376 387 220 16 10 16 30",
    "123456789": "6694 12972 16242",
    "I'm it's WE'LL don't": "17172 4643 40893 6 5847 4536",
    "  \n\n  x": "23118 220 1288",
    "functions.get_weather:0": "41937 1150 21055 2800 25 15",
    '{"city": "Beijing"}': "8264 37666 1289 414 4396 39556 16934",
    "tool_declare": "20960 35556 677",
    "你好，世界": "33845 378 2243",
    "中文abc中文": "16717 8497 16717",
    "日本語のテスト": "4546 63011 4663 25875 33360",
    "한국어": "17079 54078 28763",
    "😀👍🏽": "134750 222 64390 235 92949 121",
    "café naïve Ünïcode": "122583 1941 7915 44187 367 61412 77 44187 2431",
    "hi <|im_end|> x": "9663 22652 348 11129 91 29 1288",
    "杭州天气很好，所以我再为您查询北京和南京的天气：": (
        "12365 8597 6523 378 24888 1295 19183 13021 3372 488 10525 65070 2648"
    ),
}

PUBLISHED_IDS = {
    "[BOS]": 163584,
    "[EOS]": 163585,
    "<|im_end|>": 163586,
    "<|im_user|>": 163587,
    "<|im_assistant|>": 163588,
    "<|start_header_id|>": 163590,
    "<|end_header_id|>": 163591,
    "[EOT]": 163593,
    "<|im_system|>": 163594,
    "<|tool_calls_section_begin|>": 163595,
    "<|tool_calls_section_end|>": 163596,
    "<|tool_call_begin|>": 163597,
    "<|tool_call_argument_begin|>": 163598,
    "<|tool_call_end|>": 163599,
    "<|im_middle|>": 163601,
    "[UNK]": 163838,
    "[PAD]": 163839,
    "<|reserved_token_163589|>": 163589,
}

# The split rule in the syntax of the `regex` module, with look-aheads for the intersections.
_UPPER = r"(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
_LOWER = r"(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])"
_TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT = regex.compile(
    r"[\p{Han}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_TAIL}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_TAIL}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def reference_encode(ranks: dict[bytes, int], text: str) -> list[int]:
    """Byte-pair encoding as its definition says: merge the adjacent pair of lowest rank until none is left."""
    ids = []
    for piece in SPLIT.findall(text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
            if not pairs:
                break
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


MIXED = st.text(
    st.one_of(
        st.sampled_from("the weather Paris'sSTre 123 \n\r\t <|im_end>{}\":,你好世界éÜँ한😀"),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)


@pytest.mark.parametrize("text", GOLDEN)
def test_published_vectors(kimi_tokenizer: Tokenizer, text: str) -> None:
    ids = [int(token_id) for token_id in GOLDEN[text].split()]
    assert kimi_tokenizer.encode(text) == ids
    assert kimi_tokenizer.decode(ids) == text


def test_published_specials(kimi_tokenizer: Tokenizer) -> None:
    assert kimi_tokenizer.vocab_size == 163840
    assert {text: kimi_tokenizer.specials[text] for text in PUBLISHED_IDS} == PUBLISHED_IDS
    assert kimi_tokenizer.encode_with_specials("hi <|im_end|> x") == [9663, 220, 163586, 1288]
    assert kimi_tokenizer.decode([163586]) == "<|im_end|>"


def test_specials_follow_the_ranks(tokenizer: Tokenizer) -> None:
    n = tokenizer.n_ranks
    assert tokenizer.vocab_size == n + 256
    assert tokenizer.special_ids == frozenset(range(n, n + 256))
    for text, offset in SPECIAL_OFFSETS.items():
        assert tokenizer.specials[text] == n + offset
    assert tokenizer.specials[f"<|reserved_token_{n + 5}|>"] == n + 5
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.im_end_id) == (n, n + 1, n + 2)


@settings(max_examples=150)
@given(text=MIXED)
def test_encode_is_byte_pair_encoding_of_the_split(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference_encode(dict(tokenizer.encoding._mergeable_ranks), text)
    assert tokenizer.decode(ids) == text


@settings(max_examples=100)
@given(texts=st.lists(st.one_of(MIXED, st.sampled_from(sorted(PUBLISHED_IDS))), max_size=5))
def test_encode_never_gives_a_special(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert not tokenizer.special_ids & set(tokenizer.encode("".join(texts)))


def test_lone_surrogates_are_replaced(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_windows_of_extreme_inputs() -> None:
    assert list(encode_windows("")) == []
    long_run = "x" * (2 * MAX_RUN_CHARS + 3)
    assert [len(piece) for piece in encode_windows(long_run)] == [MAX_RUN_CHARS, MAX_RUN_CHARS, 3]
    spaced = "x" * MAX_RUN_CHARS + " " + "y" * MAX_RUN_CHARS
    assert list(encode_windows(spaced)) == [spaced]
    long_text = "ab " * 200_000
    pieces = list(encode_windows(long_text))
    assert [len(piece) for piece in pieces] == [ENCODE_WINDOW_CHARS, 600_000 - ENCODE_WINDOW_CHARS]
    assert "".join(pieces) == long_text


@settings(max_examples=100)
@given(data=st.data())
def test_incremental_detokenizer_equals_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == tokenizer.decode(ids)


def test_incremental_detokenizer_waits_for_whole_characters(tokenizer: Tokenizer) -> None:
    first, *rest = "😀".encode()
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push(byte) for byte in (first, *rest)] == ["", "", "", "😀"]
    detokenizer.push(first)
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(ord("a")) == "a"


def test_folder_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ranks = dict(tokenizer.encoding._mergeable_ranks)
    save_ranks(ranks, tmp_path / "tiktoken.model")
    assert load_ranks(tmp_path / "tiktoken.model") == ranks
    assert Tokenizer.from_folder(tmp_path).specials == tokenizer.specials

    n = len(ranks)
    added = {n: "[BOS]", n + 1: "[EOS]", n + 2: "<|im_end|>", n + 22: "<think>"}
    config = {
        "added_tokens_decoder": {str(token_id): {"content": text, "special": True} for token_id, text in added.items()},
        "bos_token": "[BOS]",
        "eos_token": {"content": "<|im_end|>"},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = Tokenizer.from_folder(tmp_path)
    assert read.specials["<think>"] == n + 22
    assert read.specials[f"<|reserved_token_{n + 3}|>"] == n + 3
    assert read.eos_id == n + 2
    assert len(read.specials) == 256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read"),
        (b"IQ== 0\nnonsense\n", "line 2"),
        (b"IQ== 0\nIg== x\n", "line 2"),
        (b"!!!! 0\n", "line 1"),
        (b"IQ== 0\nIg== 2\n", "not the numbers 0 to 1"),
        (b"IQ== 0\nIg== 1\n", "lacks 254 of the 256 single bytes"),
    ],
)
def test_malformed_ranks_are_one_clear_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tiktoken.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not a readable tokenizer configuration"),
        ("[]", "not a readable tokenizer configuration"),
        ('{"added_tokens_decoder": {"3": {"content": "[BOS]"}}}', "has id 3"),
        ('{"eos_token": "<nope>"}', "has no <nope> token"),
    ],
)
def test_malformed_configuration_is_one_clear_line(
    tokenizer: Tokenizer, tmp_path: Path, config: str, message: str
) -> None:
    save_ranks(tokenizer.encoding._mergeable_ranks, tmp_path / "tiktoken.model")
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_unknown_id_is_an_error(tokenizer: Tokenizer) -> None:
    for token_id in (tokenizer.vocab_size, -1, 2**40):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            tokenizer.token_bytes(token_id)
