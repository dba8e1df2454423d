"""Documents in files: where each one stands, so that they are read one at a time, in any order.

Making one of these classes reads its file once and checks every document, so that a fault deep in the data stops a run
before its first step.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from openk2.errors import DataError, EnvironmentFault

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

SPAN_BYTES = 65_536
"""A text file is cut into documents of at most so many bytes, at a line's end where there is one."""


@dataclass(frozen=True)
class Document:
    """A text to pretrain on."""

    text: str
    ends: bool
    """False where a text file goes on in the next document."""


class DocumentFile(Protocol[T_co]):
    """The documents of one file."""

    path: Path

    @property
    def digests(self) -> Sequence[int]:
        """64 bits of a hash of each document's content."""

    def read(self, index: int) -> T_co:
        """Document `index`. Raises DataError when the file has changed since."""

    def where(self, index: int) -> str:
        """`FILE, line 3`."""


def content_digest(content: bytes) -> int:
    """64 bits that depend on nothing but the content."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", param=str(path)) from None


class JsonLines(Generic[T]):
    """A file of JSON lines. Blank lines are skipped."""

    def __init__(
        self, path: Path, parse: Callable[[Any], T | None], content: Callable[[T], bytes], *, what: str
    ) -> None:
        """`parse` turns a line's value into a document, or None for an empty one, and raises DataError with what is
        wrong; `content` gives the bytes that make documents equal; `what` names the documents in errors.

        Raises DataError naming the file and line of the first that is wrong, or the file when it holds none.
        """
        self.path, self.parse = path, parse
        self.digests: list[int] = []
        self._spans: list[tuple[int, int, int]] = []  # first byte, length, line number
        at = 0
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    document = self._parse(line, number)
                    if document is not None:
                        self._spans.append((at, len(line), number))
                        self.digests.append(content_digest(content(document)))
                at += len(line)
        if not self.digests:
            raise DataError(f"{path} is empty: it holds no {what}", param=str(path))

    def read(self, index: int) -> T:
        start, length, number = self._spans[index]
        with _open(self.path) as file:
            file.seek(start)
            document = self._parse(file.read(length), number)
        if document is None:
            raise DataError(f"{self.where(index)}: the file has changed while it was in use", param=str(self.path))
        return document

    def where(self, index: int) -> str:
        return f"{self.path}, line {self._spans[index][2]}"

    def _parse(self, line: bytes, number: int) -> T | None:
        try:
            value = json.loads(line.decode("utf-8"))
            if b"\\u" in line:  # an escape may spell half a character, which no text in UTF-8 holds
                json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise DataError(
                f"{self.path}, line {number}: {half} is half a character, without its other half", param=str(self.path)
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}, line {number}: not JSON ({error})", param=str(self.path)) from None
        try:
            return self.parse(value)
        except DataError as error:
            raise DataError(f"{self.path}, line {number}: {error}", param=str(self.path)) from None


class TextFile:
    """A plain text file in UTF-8, cut into documents of at most `SPAN_BYTES`."""

    def __init__(self, path: Path) -> None:
        """Raises DataError when it is not UTF-8, or holds nothing but white space."""
        self.path = path
        self.digests: list[int] = []
        self._spans: list[tuple[int, int]] = []
        at, rest = 0, b""
        with _open(path) as file:
            while window := rest + file.read(SPAN_BYTES - len(rest)):
                span = window if len(window) < SPAN_BYTES else window[: _cut(window)]
                rest = window[len(span) :]
                if _decode(span, path, at).strip():
                    self._spans.append((at, len(span)))
                    self.digests.append(content_digest(span))
                at += len(span)
        if not self.digests:
            raise DataError(f"{path} is empty: it holds no text", param=str(path))

    def read(self, index: int) -> Document:
        start, length = self._spans[index]
        with _open(self.path) as file:
            file.seek(start)
            return Document(_decode(file.read(length), self.path, start), index == len(self._spans) - 1)

    def where(self, index: int) -> str:
        return f"{self.path}, byte {self._spans[index][0]}"


def _cut(window: bytes) -> int:
    """Where to cut: after the last line's end, else the last blank, else before the last character."""
    for mark in (b"\n", b" "):
        if (at := window.rfind(mark)) > 0:
            return at + 1
    at = len(window) - 1
    while at > len(window) - 4 and window[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _decode(span: bytes, path: Path, start: int) -> str:
    try:
        return span.decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        raise DataError(f"{path}, byte {at}: not UTF-8 text ({error.reason})", param=str(path)) from None


class ParquetFile:
    """A column of a parquet file, held in memory: pyarrow's buffers, not Python strings."""

    def __init__(self, path: Path, field: str) -> None:
        """Raises DataError for a file that is none, has no such column of text, or holds no text; EnvironmentFault
        without pyarrow."""
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise EnvironmentFault(
                f"{path}: parquet files need pyarrow, which is not installed; add it with: "
                "pip install 'openk2[parquet]'"
            ) from None
        self.path = path
        try:
            with _open(path) as file:
                names = parquet.read_schema(file).names
                if field not in names:
                    raise DataError(f"{path} has no column {field!r}; it has {', '.join(names)}", param=str(path))
                column = parquet.read_table(file, columns=[field]).column(field)
        except arrow.ArrowException as error:
            raise DataError(f"{path}: not a readable parquet file ({error})", param=str(path)) from None
        if not (arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type)):
            raise DataError(f"{path}: the column {field!r} holds {column.type}, not text", param=str(path))
        self._column = column
        texts = ((row, scalar.as_py()) for row, scalar in enumerate(column))
        kept = [(row, content_digest(text.encode())) for row, text in texts if text and text.strip()]
        if not kept:
            raise DataError(f"{path} is empty: its column {field!r} holds no text", param=str(path))
        self._rows = [row for row, _ in kept]
        self.digests = [digest for _, digest in kept]

    def read(self, index: int) -> Document:
        return Document(self._column[self._rows[index]].as_py(), True)

    def where(self, index: int) -> str:
        return f"{self.path}, row {self._rows[index] + 1}"


class Collection(Generic[T]):
    """The documents of several files, counted through."""

    def __init__(self, files: Sequence[DocumentFile[T]]) -> None:
        self.files = files
        self.digests = [digest for file in files for digest in file.digests]
        self._ends = list(accumulate(len(file.digests) for file in files))

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def fingerprint(self) -> str:
        """Changes with any document, or their order: a position in the stream holds for this one only."""
        return _fingerprint(self.digests)

    @property
    def by_file(self) -> dict[str, str]:
        """Each file's path and the fingerprint of its documents."""
        return {str(file.path): _fingerprint(file.digests) for file in self.files}

    def read(self, index: int) -> T:
        file, inside = self._find(index)
        return file.read(inside)

    def where(self, index: int) -> str:
        file, inside = self._find(index)
        return file.where(inside)

    def _find(self, index: int) -> tuple[DocumentFile[T], int]:
        number = bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)


def _fingerprint(digests: Sequence[int]) -> str:
    return hashlib.blake2b(b"".join(d.to_bytes(8, "little") for d in digests), digest_size=8).hexdigest()
