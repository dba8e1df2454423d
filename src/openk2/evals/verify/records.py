"""One record for each request line, under the vendor verifier's keys, so that results compare one to one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from openk2.errors import DataError
from openk2.evals.lines import LineFile
from openk2.evals.verify.reply import Completion, Reply
from openk2.evals.verify.validity import call_faults


@dataclass(frozen=True)
class Record(Completion):
    """What one request was answered. The keys are the verifier's, but for the last two."""

    data_index: int
    """The number of the request line, from 1."""
    request: Mapping[str, Any]
    extra_body: Mapping[str, Any]
    response: Mapping[str, Any]
    status: Literal["success", "failed"]
    finish_reason: str | None
    tool_calls_valid: bool | None
    """Whether every call names a declared tool with valid arguments; None: the answer calls nothing."""
    last_run_at: str
    duration_ms: float
    hash: str
    first_ms: float = 0.0
    """To the first event of a stream."""
    faults: tuple[str, ...] = ()
    """Where the answer's form departs from the API."""

    @classmethod
    def of(
        cls, index: int, body: Mapping[str, Any], extra: Mapping[str, Any], reply: Reply, *, at: str, digest: str
    ) -> Record:
        called = reply.error is None and reply.finish_reason == "tool_calls" and bool(reply.calls)
        return cls(
            data_index=index,
            request=body,
            extra_body=extra,
            response=reply.response,
            status="success" if reply.error is None else "failed",
            finish_reason=reply.finish_reason,
            tool_calls_valid=not call_faults(reply.calls, body.get("tools") or ()) if called else None,
            last_run_at=at,
            duration_ms=reply.duration_ms,
            hash=digest,
            first_ms=reply.first_ms,
            faults=reply.faults,
        )

    @property
    def error(self) -> str | None:
        return None if self.status == "success" else str(self.response.get("error") or "no answer")


_KEYS = {field.name for field in fields(Record)}


def read_records(path: Path) -> list[Record]:
    """The records of a finished run, ours or the verifier's, the last one of each line; unknown keys are left out.

    Raises DataError naming the first line that is no record.
    """
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", param=str(path)) from error
    found: dict[int, Record] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            record = _record_of(json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            if number == len(texts) > 1:  # without its newline: cut off while it was written
                break
            raise DataError(f"{path}, line {number}: not a record of a run", param=str(path)) from error
        found[record.data_index] = record
    return [found[index] for index in sorted(found)]


def _record_of(entry: Any) -> Record:
    """Raises TypeError when keys are missing."""
    kept = {key: value for key, value in entry.items() if key in _KEYS}
    record = Record(**{**kept, "faults": tuple(kept.get("faults", ()))})
    if not isinstance(record.data_index, int) or not isinstance(record.request, dict):
        raise TypeError("not a record")
    return record if isinstance(record.response, dict) else Record(**{**asdict(record), "response": {}})


class RecordLog(LineFile):
    """The records of a run in a JSON lines file, read when it exists and added to, so that a run resumes."""

    def __init__(self, path: Path, hashes: Sequence[str]) -> None:
        """`hashes`: of the run's requests, in order.

        Raises DataError when the file holds something else or another run, or cannot be written.
        """
        known = read_records(path) if path.exists() else []
        if any(record.hash not in hashes[record.data_index - 1 : record.data_index] for record in known):
            raise DataError(f"{path} holds another run; choose another file or remove it", param=str(path))
        self._done = {record.data_index: record for record in known if record.status == "success"}
        super().__init__(path)

    def find(self, index: int) -> Record | None:
        """The successful answer to this request line, when an earlier run has it."""
        return self._done.get(index)

    def add(self, record: Record) -> None:
        self.write(asdict(record))


def summarize(records: Iterable[Record], model: str, started_at: str, finished_at: str, ms: float) -> dict[str, Any]:
    """The vendor verifier's summary, key for key."""
    records = list(records)
    answered = [record for record in records if record.status == "success"]
    reasons = Counter(record.finish_reason for record in answered)
    others = {str(reason): count for reason, count in reasons.items() if reason not in ("stop", "tool_calls")}
    usages = [record.response.get("usage") or {} for record in answered]
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        "model": model,
        "success_count": len(answered),
        "failure_count": len(records) - len(answered),
        "finish_stop": reasons["stop"],
        "finish_tool_calls": reasons["tool_calls"],
        "finish_others": sum(others.values()),
        "finish_others_detail": others,
        "schema_validation_error_count": sum(record.tool_calls_valid is False for record in answered),
        "successful_tool_call_count": sum(record.tool_calls_valid is True for record in answered),
        "usage": {key: sum(usage.get(key) or 0 for usage in usages) for key in counts},
        "eval_started_at": started_at,
        "eval_finished_at": finished_at,
        "eval_duration_ms": round(ms),
    }
