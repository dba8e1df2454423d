"""The engine's loop, in a process of its own or in a thread: one interface for both.

A busy event loop beside the engine slows every decode step, so a server runs it in a process: token ids go over a pipe,
and nothing else is shared. The library runs the same loop in a thread.

What a caller hands over is text-free: prompt ids, sampling settings, stop ids and, for constrained requests, an opaque
specification that the builder's `make_constraint` turns into a `TokenConstraint` on the engine's side.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from openk2.config import SamplingParams
from openk2.engine.constraint import TokenConstraint
from openk2.engine.engine import Engine, EngineStats
from openk2.engine.request import EngineRequest, StepOutput
from openk2.errors import EngineDeadError, OpenK2Error, ProviderError

logger = logging.getLogger(__name__)

IDLE_CHECK_SECONDS = 1.0
"""How often an idle engine process looks whether its parent still lives, should the pipe not tell."""

CLOSE_SECONDS = 5.0
"""How long a closing engine may finish its step before it is ended, where its owner does not say."""


@dataclass(frozen=True)
class Submission:
    """One request on its way to the engine; picklable."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    """Resolved: no None left but where None is a value."""
    stop_token_ids: frozenset[int]
    constraint: Any = None
    """What `EngineParts.make_constraint` understands; None: unconstrained."""


@dataclass(frozen=True)
class EngineParts:
    """What a builder returns, on the engine's side."""

    engine: Engine
    make_constraint: Callable[[Any], TokenConstraint | None]
    on_close: Callable[[], None] = lambda: None
    """Called when the engine is closed, not when it dies."""


Builder = Callable[[], EngineParts]
"""Loads the model and makes the engine. For a process it must be picklable."""

Outcome = StepOutput | OpenK2Error
"""What a request's sink is given: outputs up to one with a finish reason, or the error that ended it."""

Sink = Callable[[Outcome], None]
"""Called from a thread of the client; must not block."""


class EngineClient(Protocol):
    """Where requests are handed in, wherever the engine runs."""

    max_model_len: int
    """Most tokens of a request, prompt and answer."""

    @property
    def is_alive(self) -> bool: ...

    @property
    def stats(self) -> EngineStats:
        """As of the end of the last step."""
        ...

    def submit(self, submission: Submission, sink: Sink) -> None:
        """Start a request. Raises EngineDeadError; every later fault goes to `sink`."""
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request; its sink is not called again. Unknown ids are ignored."""
        ...

    def close(self) -> None:
        """End the engine. Requests that still run get EngineDeadError."""
        ...


@dataclass(frozen=True)
class _Abort:
    request_id: str


class _Close:
    pass


@dataclass(frozen=True)
class _Ready:
    """The engine process has loaded."""

    max_model_len: int
    stats: EngineStats


_Command = Submission | _Abort | _Close


@dataclass(frozen=True)
class _Refused:
    """A request (or a start, id "") that failed outside of a step, in a form that survives pickling."""

    request_id: str
    kind: type[OpenK2Error]
    message: str
    attributes: dict[str, Any]

    @classmethod
    def of(cls, request_id: str, error: Exception, otherwise: OpenK2Error) -> _Refused:
        """Errors of ours stay what they are; any other becomes `otherwise`."""
        ours = error if isinstance(error, OpenK2Error) else otherwise
        return cls(request_id, type(ours), str(ours), dict(vars(ours)))

    def error(self) -> OpenK2Error:
        error = self.kind.__new__(self.kind)  # not through __init__: some of them build their own message
        error.args = (self.message,)
        vars(error).update(self.attributes)
        return error


_Report = StepOutput | _Refused | EngineStats


def _run(parts: EngineParts, receive: Callable[[bool], _Command | None], emit: Callable[[list[_Report]], None]) -> None:
    """Steps while there is work, commands in between. `receive(True)` waits, `receive(False)` returns None at once."""
    engine = parts.engine
    told = engine.stats()
    while True:
        command = receive(not engine.has_work)
        while command is not None:
            match command:
                case _Close():
                    parts.on_close()
                    return
                case _Abort(request_id):
                    engine.abort(request_id)
                case Submission():
                    try:
                        engine.add_request(_engine_request(command, parts))
                    except Exception as error:  # a bad request must not end the others
                        fault = ProviderError(f"the engine refused the request: {_describe(error)}")
                        emit([_Refused.of(command.request_id, error, fault)])
            command = receive(False)
        reports: list[_Report] = list(engine.step()) if engine.has_work else []
        stats = engine.stats()
        if stats != told:
            reports.insert(0, stats)  # whoever has read an output knows the load as of then
            told = stats
        if reports:
            emit(reports)


def _engine_request(submission: Submission, parts: EngineParts) -> EngineRequest:
    constraint = None if submission.constraint is None else parts.make_constraint(submission.constraint)
    return EngineRequest(
        request_id=submission.request_id,
        prompt_token_ids=submission.prompt_token_ids,
        sampling=submission.sampling,
        stop_token_ids=submission.stop_token_ids,
        constraint=constraint,
    )


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class _Sinks:
    """Who waits for which request; knows once and for all when the engine is dead."""

    def __init__(self, stats: EngineStats) -> None:
        self.stats = stats
        self._lock = threading.Lock()
        self._sinks: dict[str, Sink] = {}
        self._death: str | None = None

    @property
    def is_alive(self) -> bool:
        return self._death is None

    def add(self, request_id: str, sink: Sink) -> None:
        with self._lock:
            if self._death is not None:
                raise EngineDeadError(self._death)
            if request_id in self._sinks:
                raise ValueError(f"request id {request_id!r} is in use")
            self._sinks[request_id] = sink

    def remove(self, request_id: str) -> None:
        with self._lock:
            self._sinks.pop(request_id, None)

    def deliver(self, reports: list[_Report]) -> None:
        for report in reports:
            if isinstance(report, EngineStats):
                self.stats = report
                continue
            is_last = isinstance(report, _Refused) or report.finish_reason is not None
            with self._lock:
                sink = self._sinks.pop(report.request_id, None) if is_last else self._sinks.get(report.request_id)
            if sink is not None:
                sink(report.error() if isinstance(report, _Refused) else report)

    def die(self, reason: str) -> None:
        """The first reason stands; everybody who waits hears it."""
        with self._lock:
            if self._death is None:
                self._death = reason
            waiting, self._sinks = list(self._sinks.values()), {}
            reason = self._death
        for sink in waiting:
            sink(EngineDeadError(reason))


class ThreadEngine:
    """The engine in a thread of this process. The builder runs in the caller's thread and may raise."""

    def __init__(self, build: Builder, *, close_seconds: float = CLOSE_SECONDS) -> None:
        parts = build()
        self._close_seconds = close_seconds
        self.max_model_len = parts.engine.max_model_len
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._sinks = _Sinks(parts.engine.stats())
        self._thread = threading.Thread(target=self._serve, args=(parts,), name="openk2-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._sinks.is_alive

    @property
    def stats(self) -> EngineStats:
        return self._sinks.stats

    def submit(self, submission: Submission, sink: Sink) -> None:
        self._sinks.add(submission.request_id, sink)
        self._inbox.put(submission)

    def abort(self, request_id: str) -> None:
        self._sinks.remove(request_id)
        self._inbox.put(_Abort(request_id))

    def close(self) -> None:
        self._inbox.put(_Close())
        self._thread.join(self._close_seconds)
        self._sinks.die("the engine was closed")

    def _serve(self, parts: EngineParts) -> None:
        def receive(block: bool) -> _Command | None:
            try:
                return self._inbox.get(block)
            except queue.Empty:
                return None

        try:
            _run(parts, receive, self._sinks.deliver)
        except Exception as error:
            logger.exception("the engine failed")  # a fault of ours: the place in the code is needed
            self._sinks.die(f"the engine failed: {_describe(error)}")


class ProcessEngine:
    """The engine in a spawned process.

    Raises what the builder raised there, or EngineDeadError when the process ended while loading. The process ends with
    this one, however this one ends: it sees its pipe close.
    """

    def __init__(self, build: Builder, *, close_seconds: float = CLOSE_SECONDS) -> None:
        self._close_seconds = close_seconds
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_process_main, args=(theirs, build, os.getpid()), name="openk2-engine", daemon=True
        )
        self._process.start()
        theirs.close()
        ready = self._await_ready()
        self._sinks = _Sinks(ready.stats)
        self.max_model_len = ready.max_model_len
        self._outbox: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        # Writing has a thread too: a long prompt may not fit into the pipe until the engine ends its step.
        self._threads = [
            threading.Thread(target=target, name=f"openk2-engine-{target.__name__.strip('_')}", daemon=True)
            for target in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        return self._sinks.is_alive

    @property
    def stats(self) -> EngineStats:
        return self._sinks.stats

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def submit(self, submission: Submission, sink: Sink) -> None:
        self._sinks.add(submission.request_id, sink)
        self._outbox.put(submission)

    def abort(self, request_id: str) -> None:
        self._sinks.remove(request_id)
        self._outbox.put(_Abort(request_id))

    def close(self) -> None:
        self._sinks.die("the engine was closed")
        self._outbox.put(_Close())
        self._process.join(self._close_seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._connection.close()

    def _await_ready(self) -> _Ready:
        """What the engine says once it has loaded."""
        wait([self._connection, self._process.sentinel])
        try:
            first = self._connection.recv() if self._connection.poll() else None
        except (EOFError, OSError):
            first = None
        if isinstance(first, _Ready):
            return first
        self._process.join(CLOSE_SECONDS)
        self._connection.close()
        if isinstance(first, _Refused):
            raise first.error()
        raise EngineDeadError(f"the engine process ended while it loaded ({_how_it_ended(self._process.exitcode)})")

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, str):  # its last words
                    self._sinks.die(message)
                else:
                    self._sinks.deliver(message)
        except (EOFError, OSError):
            self._process.join(CLOSE_SECONDS)
            self._sinks.die(f"the engine process ended ({_how_it_ended(self._process.exitcode)})")

    def _write(self) -> None:
        while (command := self._outbox.get()) is not None:
            with contextlib.suppress(OSError):  # a dead engine: the reading thread tells everybody
                self._connection.send(command)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "killed; usually for lack of memory"
    if exitcode is not None and exitcode < 0:
        return f"signal {signal.Signals(-exitcode).name}"
    return f"exit status {exitcode}"


def _process_main(connection: Connection, build: Builder, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        parts = build()
    except Exception as error:
        connection.send(_Refused.of("", error, EngineDeadError(f"the engine could not start: {_describe(error)}")))
        return

    def receive(block: bool) -> _Command | None:
        while not connection.poll(IDLE_CHECK_SECONDS if block else 0):
            if os.getppid() != parent:  # a fork of the parent may hold the pipe open after its death
                return _Close()
            if not block:
                return None
        return connection.recv()

    try:
        connection.send(_Ready(parts.engine.max_model_len, parts.engine.stats()))
        _run(parts, receive, connection.send)
    except (EOFError, OSError):
        return  # the parent is gone
    except Exception as error:
        logger.exception("the engine failed")
        connection.send(f"the engine failed: {_describe(error)}")
