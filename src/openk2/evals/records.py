"""The replies of an evaluation as JSON lines: to read, and to go on after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openk2.chat.messages import Completion, FinishReason, Message, ToolCall
from openk2.errors import DataError
from openk2.evals.cases import Case
from openk2.evals.lines import LineFile


@dataclass(frozen=True)
class Record:
    """One reply."""

    case: str
    """The case's id."""
    fingerprint: str
    """Of the case's question: a record of an edited case is not taken for its answer."""
    grammar: bool
    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    """Name and arguments, as JSON text, of each call."""
    finish_reason: FinishReason = "stop"
    error: str | None = None
    """Why the request was refused; the reply is then empty."""

    @classmethod
    def of(cls, case: Case, grammar: bool, reply: Completion | None, error: str | None) -> Record:
        if reply is None:
            return cls(case.id, fingerprint_of(case), grammar, finish_reason="error", error=error or "no reply")
        calls = tuple((call.name, call.arguments) for call in reply.message.tool_calls)
        return cls(case.id, fingerprint_of(case), grammar, reply.message.text, calls, reply.finish_reason)

    def completion(self) -> Completion | None:
        """The reply again; None when the request was refused."""
        if self.error is not None:
            return None
        calls = tuple(
            ToolCall(f"functions.{name}:{index}", name, arguments) for index, (name, arguments) in enumerate(self.calls)
        )
        return Completion(Message("assistant", self.text or None, tool_calls=calls), self.finish_reason)


def fingerprint_of(case: Case) -> str:
    """16 hex digits over the tools and messages of a case."""
    question = [[tool.declaration for tool in case.tools], [asdict(message) for message in case.messages]]
    return hashlib.sha256(json.dumps(question, sort_keys=True, default=list).encode()).hexdigest()[:16]


class RecordFile(LineFile):
    """A JSON lines file of records, read when it exists and then added to, line by line.

    The first line says which run it belongs to. Raises DataError when that is another run than `run` describes, or
    when a line is malformed; a last line that was cut off while it was written is dropped.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self._records: dict[tuple[str, str, bool], Record] = {}
        try:
            begun = self._read(dict(run)) if path.exists() else False
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}", param=str(path)) from error
        super().__init__(path)
        if not begun:
            self.write({"run": dict(run)})

    def __len__(self) -> int:
        return len(self._records)

    def find(self, case: Case, grammar: bool) -> Record | None:
        return self._records.get((case.id, fingerprint_of(case), grammar))

    def add(self, record: Record) -> None:
        self._records[record.case, record.fingerprint, record.grammar] = record
        self.write(asdict(record))

    def _read(self, run: dict[str, Any]) -> bool:
        """Take in the file's records; returns whether its first line is whole."""
        begun = False
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n") and number > 1:
                break
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check_run(entry["run"], run)
                    begun = line.endswith(b"\n")
                else:
                    record = Record(**{**entry, "calls": tuple((name, text) for name, text in entry["calls"])})
                    self._records[record.case, record.fingerprint, record.grammar] = record
            except (ValueError, KeyError, TypeError) as error:
                line_at = f"{self.path}, line {number}"
                raise DataError(
                    f"{line_at}: not a record of an evaluation; choose another file", param=str(self.path)
                ) from error
        return begun

    def _check_run(self, found: Any, run: dict[str, Any]) -> None:
        if found != run:
            differ = [key for key in run if not isinstance(found, dict) or found.get(key) != run[key]]
            raise DataError(
                f"{self.path} holds another run ({', '.join(differ) or 'its settings'} differ); choose another file "
                "or remove it",
                param=str(self.path),
            )
