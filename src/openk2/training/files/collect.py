"""Files of a recipe's `[data]` section to collections of documents, each file in the format that its name says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from openk2.errors import DataError
from openk2.training.data import Conversation
from openk2.training.files.documents import Collection, Document, DocumentFile, JsonLines, ParquetFile, TextFile
from openk2.training.files.messages import conversation_content, read_conversation

LINES_SUFFIXES = (".jsonl", ".ndjson")


def expand_paths(patterns: Sequence[str]) -> list[Path]:
    """The files that the patterns (`*`, `**` allowed) name, in the patterns' order, those of one pattern sorted.

    A file whose own name has such marks is taken as it stands. Raises DataError for a pattern that names none or is
    malformed, and for a folder.
    """
    paths: dict[Path, None] = {}  # in order, each once
    for pattern in patterns:
        path = Path(pattern)
        if any(mark in pattern for mark in "*?[") and not path.exists():
            anchor = Path(path.anchor)
            try:
                found = sorted(p for p in anchor.glob(str(path.relative_to(path.anchor))) if p.is_file())
            except ValueError as error:
                raise DataError(f"{pattern} is no pattern of files: {error}", param="data.files") from None
        else:
            found = [path]
        if not found or not found[0].exists():
            raise DataError(f"no file {pattern}", param="data.files")
        if found[0].is_dir():
            raise DataError(f"{pattern} is a folder; name its files, such as {pattern}/*.jsonl", param="data.files")
        paths |= dict.fromkeys(found)
    return list(paths)


def collect_texts(paths: Iterable[Path], field: str = "text") -> Collection[Document]:
    """Texts to pretrain on: JSON lines (`.jsonl`, `.ndjson`) and parquet (`.parquet`) with a text in `field`; every
    other file is one plain text.

    Raises DataError naming the first file, and line, that is wrong.
    """

    def parse(value: Any) -> Document | None:
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            keys = f"; it has {', '.join(map(str, value))}" if isinstance(value, dict) and value else ""
            raise DataError(f"no text under {field!r}{keys}")
        return Document(text, True) if text.strip() else None

    def read(path: Path) -> DocumentFile[Document]:
        if path.suffix in LINES_SUFFIXES:
            return JsonLines(path, parse, lambda document: document.text.encode(), what="texts")
        return ParquetFile(path, field) if path.suffix == ".parquet" else TextFile(path)

    return Collection([read(path) for path in paths])


def collect_conversations(paths: Iterable[Path]) -> Collection[Conversation]:
    """Conversations to fine-tune on, from JSON lines of any name (`files/messages.py`).

    Raises DataError naming the first file and line that is wrong.
    """
    return Collection(
        [JsonLines(path, read_conversation, conversation_content, what="conversations") for path in paths]
    )
