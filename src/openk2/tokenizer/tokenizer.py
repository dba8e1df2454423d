"""Text <-> token ids in the tiktoken format, as Kimi K2 publishes it.

A vocabulary is a file of byte-level BPE ranks (`tiktoken.model`: base64 of the token's bytes, a space, its rank)
followed by 256 special slots: special ids start at the number of ranks. Named specials keep the published offsets;
unnamed slots are `<|reserved_token_{id}|>` and are special tokens too.

Nothing here knows about chats: `openk2.chat.template` decides which control tokens stand in a prompt. Source of the
split rule, offsets and encode rules: tokenizer files of moonshotai/Kimi-K2-Instruct-0905.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tiktoken

from openk2.errors import TokenizerError

RANKS_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"

NUM_SPECIAL_SLOTS = 256
"""Special ids after the ranks; 163,584 + 256 = 163,840 rows of K2's embedding."""

SPECIAL_OFFSETS: Mapping[str, int] = {
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_end|>": 2,
    "<|im_user|>": 3,
    "<|im_assistant|>": 4,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "[EOT]": 9,
    "<|im_system|>": 10,
    "<|tool_calls_section_begin|>": 11,
    "<|tool_calls_section_end|>": 12,
    "<|tool_call_begin|>": 13,
    "<|tool_call_argument_begin|>": 14,
    "<|tool_call_end|>": 15,
    "<|im_middle|>": 17,
    "[UNK]": 254,
    "[PAD]": 255,
}
"""Published named specials (K2, K2-0905): text -> id minus the number of ranks."""

SPLIT_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How text is cut before BPE (Rust-regex syntax; `&&` is set intersection)."""

ENCODE_WINDOW_CHARS = 400_000
"""Text is encoded in windows of this many characters ..."""

MAX_RUN_CHARS = 25_000
"""... each cut again so that no run of whitespace, or of non-whitespace, is longer than this."""


class Tokenizer:
    """A vocabulary: `ranks` (token bytes -> id, contiguous from 0) and `specials` (text -> id).

    `specials` None means the published ones at `len(ranks) + offset`. Slots that it does not name become
    `<|reserved_token_{id}|>`. Raises TokenizerError for ranks with holes, a missing single byte, or special ids
    outside the 256 slots after the ranks.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        specials: Mapping[str, int] | None = None,
        *,
        bos_token: str = "[BOS]",
        eos_token: str = "[EOS]",
    ) -> None:
        self.n_ranks = len(ranks)
        self.vocab_size = self.n_ranks + NUM_SPECIAL_SLOTS
        _check_ranks(ranks)
        if specials is None:
            specials = {text: self.n_ranks + offset for text, offset in SPECIAL_OFFSETS.items()}
        self.specials: dict[str, int] = _fill_slots(specials, self.n_ranks)
        self.special_ids = frozenset(self.specials.values())
        self.encoding = tiktoken.Encoding(
            f"openk2-{self.n_ranks}",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=dict(ranks),
            special_tokens=self.specials,
        )
        self.bos_id = self._special("bos_token", bos_token)
        self.eos_id = self._special("eos_token", eos_token)
        self.im_end_id = self._special("end of turn", "<|im_end|>")

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Read `tiktoken.model` and, where there is one, `tokenizer_config.json` of a checkpoint folder.

        Raises TokenizerError when a file is missing or malformed.
        """
        folder = Path(path)
        ranks = load_ranks(folder / RANKS_FILE)
        config_file = folder / CONFIG_FILE
        if not config_file.exists():
            return cls(ranks)
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
            added = config.get("added_tokens_decoder") or {}
            specials = {entry["content"]: int(token_id) for token_id, entry in added.items()}
            bos = _token_text(config.get("bos_token"), "[BOS]")
            eos = _token_text(config.get("eos_token"), "[EOS]")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokenizerError(
                f"{config_file} is not a readable tokenizer configuration ({type(error).__name__}: {error})."
                " Fetch the file again.",
                param=CONFIG_FILE,
            ) from None
        return cls(ranks, specials or None, bos_token=bos, eos_token=eos)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with special tokens disabled: control-token literals are ordinary text."""
        ids: list[int] = []
        for window in encode_windows(text):
            ids += self.encoding.encode_ordinary(window)
        return ids

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of `text` where the literal of any special token becomes its id. Never use it on callers' text."""
        ids: list[int] = []
        for window in encode_windows(text):
            ids += self.encoding.encode(window, allowed_special="all")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, specials their literals."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`. Raises TokenizerError for an id outside the vocabulary."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token; a special's are those of its literal."""
        try:
            return self.encoding.decode_single_token_bytes(token_id)
        except (KeyError, OverflowError):
            raise TokenizerError(
                f"Token id {token_id} is outside the vocabulary of {self.vocab_size} entries."
            ) from None

    def _special(self, role: str, text: str) -> int:
        if text not in self.specials:
            raise TokenizerError(f"The vocabulary has no {text} token, which is needed as {role}.", param=CONFIG_FILE)
        return self.specials[text]


def load_ranks(path: Path) -> dict[bytes, int]:
    """Parse a tiktoken rank file. Raises TokenizerError naming the line at fault."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"Cannot read the vocabulary {path}: {error.strerror or error}.", param=RANKS_FILE
        ) from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"{path} line {number} is not 'base64 rank'; the file is truncated or not a tiktoken vocabulary.",
                param=RANKS_FILE,
            ) from None
    return ranks


def save_ranks(ranks: Mapping[bytes, int], path: Path) -> None:
    """Write `ranks` as a tiktoken rank file, in rank order."""
    lines = (
        base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    path.write_bytes(b"".join(lines))


def encode_windows(text: str) -> Iterator[str]:
    """Cut `text` as the published tokenizer does before BPE; windows are encoded independently.

    Only extreme inputs are cut at all, and only there can a cut change tokens.
    """
    for start in range(0, len(text), ENCODE_WINDOW_CHARS):
        window = text[start : start + ENCODE_WINDOW_CHARS]
        if len(window) <= MAX_RUN_CHARS:
            yield window
        else:
            yield from _cut_long_runs(window)


def _cut_long_runs(window: str) -> Iterator[str]:
    piece_start = 0
    run_length = 0
    run_is_space = window[0].isspace()
    for position, char in enumerate(window):
        is_space = char.isspace()
        if is_space != run_is_space:
            run_length, run_is_space = 1, is_space
        else:
            run_length += 1
            if run_length > MAX_RUN_CHARS:
                yield window[piece_start:position]
                piece_start, run_length = position, 1
    yield window[piece_start:]


def _check_ranks(ranks: Mapping[bytes, int]) -> None:
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(
            f"The {len(ranks)} ranks of the vocabulary are not the numbers 0 to {len(ranks) - 1}, each once.",
            param=RANKS_FILE,
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"The vocabulary lacks {len(missing)} of the 256 single bytes (first: 0x{missing[0]:02x}),"
            " so some text could not be encoded.",
            param=RANKS_FILE,
        )


def _fill_slots(named: Mapping[str, int], n_ranks: int) -> dict[str, int]:
    slots = range(n_ranks, n_ranks + NUM_SPECIAL_SLOTS)
    texts: dict[int, str] = {}
    for text, token_id in named.items():
        if token_id not in slots:
            raise TokenizerError(
                f"Special token {text} has id {token_id}; with {n_ranks} ranks, special ids are"
                f" {slots[0]} to {slots[-1]}.",
                param=CONFIG_FILE,
            )
        if token_id in texts:
            raise TokenizerError(f"{texts[token_id]} and {text} share the id {token_id}.", param=CONFIG_FILE)
        if not text:
            raise TokenizerError(f"Special token {token_id} has no text.", param=CONFIG_FILE)
        texts[token_id] = text
    return {texts.get(token_id, f"<|reserved_token_{token_id}|>"): token_id for token_id in slots}


def _token_text(value: Any, default: str) -> str:
    """`bos_token` and its like are a string, an object with `content`, or absent."""
    if value is None:
        return default
    return str(value["content"] if isinstance(value, dict) else value)
