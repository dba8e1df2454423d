"""Writers of a run's events: for a person at a terminal, or one JSON object a line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from openk2.agent.events import AgentEvent, CallFinished, CallStarted, Stopped, TurnStarted
from openk2.agent.printable import one_line, printable
from openk2.chat.events import TextDelta
from openk2.chat.messages import ToolCall

BAR_CHARS = 24


class Writer(Protocol):
    def add(self, event: AgentEvent) -> None: ...

    def interrupted(self) -> None:
        """The user stopped the run."""
        ...


class JsonWriter:
    """One event a line: `call`, `result`, `text` (whole, once a turn) and `stop`. Seconds count from the start."""

    def __init__(self) -> None:
        self._origin_s: float | None = None
        self._turn = 0
        self._text: list[str] = []

    def add(self, event: AgentEvent) -> None:
        match event:
            case TurnStarted():
                self._flush_text()
                self._turn = event.turn
                self._origin_s = event.started_s if self._origin_s is None else self._origin_s
            case TextDelta():
                self._text.append(event.text)
            case CallStarted():
                self._flush_text()
                self._print("call", **self._call(event), arguments=_arguments(event.call))
            case CallFinished():
                end_s = self._since_start(event.finished_s)
                self._print("result", **self._call(event), end_s=end_s, ok=not event.is_error, result=event.result)
            case Stopped(result):
                self._flush_text()
                counts = {"turns": result.turns, "calls": len(result.calls), "usage": asdict(result.usage)}
                self._print("stop", reason=result.reason, detail=result.detail, **counts)

    def interrupted(self) -> None:
        self._flush_text()
        self._print("stop", reason="interrupted", detail="stopped from the keyboard")

    def _call(self, event: CallStarted | CallFinished) -> dict[str, Any]:
        start_s = self._since_start(event.started_s)
        return {"turn": event.turn, "id": event.call.id, "tool": event.call.name, "start_s": start_s}

    def _flush_text(self) -> None:
        if text := "".join(self._text):
            self._print("text", turn=self._turn, text=text)
        self._text = []

    def _since_start(self, time_s: float) -> float:
        return round(time_s - (self._origin_s or time_s), 6)

    def _print(self, type: str, **fields: Any) -> None:
        print(json.dumps({"type": type, **fields}, ensure_ascii=False), flush=True)


class TerminalWriter:
    """Calls as they happen, how those of a turn overlapped, and the text as it comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        unicode = (console.encoding or "").lower().startswith("utf")
        self._marks = {"call": "→", "ok": "✓", "error": "✗", "bar": "█"} if unicode else _ASCII_MARKS
        self._in_text = False
        self._open = 0
        self._ended: list[CallFinished] = []

    def add(self, event: AgentEvent) -> None:
        match event:
            case TurnStarted():
                self._end_line()
                self._ended = []
            case TextDelta(text):
                self._in_text = not text.endswith("\n")
                self._console.print(printable(text), end="", markup=False, highlight=False, soft_wrap=True)
            case CallStarted():
                self._end_line()
                self._open += 1
                self._line(self._marks["call"], f"{_shown(event.call)}", "cyan")
            case CallFinished():
                self._open -= 1
                self._ended.append(event)
                mark, style = (self._marks["error"], "red") if event.is_error else (self._marks["ok"], "green")
                head = f"{event.call.name}  {_duration(event.duration_s)}  "
                self._line(mark, head + one_line(event.result, self._console.width - len(head) - 4), style)
                if not self._open and len(self._ended) > 1:
                    self._timeline()
            case Stopped(result):
                self._end_line()
                if not result.finished:
                    print(f"openk2: stopped ({result.reason}): {printable(result.detail)}", file=sys.stderr)

    def interrupted(self) -> None:
        self._end_line()
        print("openk2: stopped from the keyboard", file=sys.stderr)

    def _timeline(self) -> None:
        start_s = min(end.started_s for end in self._ended)
        total_s = max(end.finished_s for end in self._ended) - start_s
        apart_s = sum(end.duration_s for end in self._ended)
        title = f"{len(self._ended)} calls at once: {_duration(total_s)}; one after another {_duration(apart_s)}"
        self._line(" ", title, "dim")
        name_width = max(len(end.call.name) for end in self._ended)
        for end in sorted(self._ended, key=lambda end: end.index):
            before = round(BAR_CHARS * (end.started_s - start_s) / total_s) if total_s else 0
            length = max(1, round(BAR_CHARS * end.duration_s / total_s)) if total_s else 1
            bar = " " * before + self._marks["bar"] * length
            self._line(" ", f"{end.call.name:<{name_width}}  |{bar:<{BAR_CHARS}}|  {_duration(end.duration_s)}", "dim")

    def _line(self, mark: str, text: str, style: str) -> None:
        line = Text.assemble((f"{mark} ", style), (printable(text), "dim" if style == "dim" else ""))
        self._console.print(line, soft_wrap=True, highlight=False)

    def _end_line(self) -> None:
        if self._in_text:
            self._console.print()
        self._in_text = False


_ASCII_MARKS = {"call": ">", "ok": "+", "error": "!", "bar": "#"}


def _arguments(call: ToolCall) -> Any:
    try:
        return json.loads(call.arguments or "{}")
    except ValueError:
        return call.arguments


def _shown(call: ToolCall) -> str:
    arguments = _arguments(call)
    if not isinstance(arguments, dict):
        return f"{call.name}({arguments})"
    pairs = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{call.name}({', '.join(pairs)})"


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
