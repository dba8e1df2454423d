"""The tools of one agent: finds, checks and runs a call. Whatever goes wrong becomes a result that the model reads."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from openk2.agent.declare import Tool, ToolError, tool
from openk2.chat.messages import ToolCall, ToolSpec
from openk2.errors import OpenK2Error, SchemaError

Approve = Callable[[ToolCall], bool | Awaitable[bool]]
"""Asked before a tool with `needs_approval` runs."""

DEFAULT_MAX_RESULT_CHARS = 20_000


@dataclass(frozen=True)
class ToolOutcome:
    """What the model is told about one call."""

    text: str
    is_error: bool = False


class Toolset:
    """Tools by name. Plain functions are made tools.

    Results longer than `max_result_chars` are cut with a note. Raises ValueError for a name given twice, SchemaError
    for a declaration whose parameters are no JSON schema.
    """

    def __init__(
        self,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        *,
        approve: Approve | None = None,
        max_result_chars: int = DEFAULT_MAX_RESULT_CHARS,
    ) -> None:
        self._tools: dict[str, Tool] = {}
        self._validators: dict[str, Any] = {}
        self._approve = approve
        self._max_result_chars = max_result_chars
        for given in tools:
            made = given if isinstance(given, Tool) else tool(given)
            if made.name in self._tools:
                raise ValueError(f"two tools are named {made.name!r}")
            self._tools[made.name] = made
            self._validators[made.name] = _validator(made.spec)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self._tools.values())

    async def run(self, call: ToolCall) -> ToolOutcome:
        """Run one call. Never raises for what the model or the tool did wrong; cancelling it abandons the call."""
        try:
            chosen = self._find(call)
            arguments = self._arguments(chosen, call)
            await self._ask(chosen, call)
            async with asyncio.timeout(chosen.timeout_s):
                value = await _call(chosen.function, arguments)
            return ToolOutcome(self._bounded(_as_text(value)))
        except TimeoutError as error:
            # A tool's own TimeoutError carries a message; the one of asyncio.timeout has none.
            text = str(error) or f"{call.name} did not finish within {self._tools[call.name].timeout_s:g} s"
            return self._error(text)
        except Exception as error:
            return self._error(_one_line(error))

    def _find(self, call: ToolCall) -> Tool:
        if call.name not in self._tools:
            known = ", ".join(self._tools) or "none"
            raise ToolError(f"there is no tool {call.name!r}; the tools are: {known}")
        return self._tools[call.name]

    def _arguments(self, chosen: Tool, call: ToolCall) -> dict[str, Any]:
        try:
            arguments = json.loads(call.arguments) if call.arguments.strip() else {}
        except ValueError as error:
            raise ToolError(f"the arguments of {call.name} are not JSON: {error}") from None
        problems = [_describe(error) for error in self._validators[call.name].iter_errors(arguments)]
        parameters = chosen.spec.parameters
        if isinstance(arguments, dict) and "additionalProperties" not in parameters:
            unknown = [name for name in arguments if name not in parameters.get("properties", {})]
            problems += [f"there is no argument {name!r}" for name in unknown]
        if problems:
            raise ToolError(f"invalid arguments for {call.name}: {'; '.join(problems[:3])}")
        if not isinstance(arguments, dict):
            raise ToolError(f"invalid arguments for {call.name}: not a JSON object")
        return arguments

    async def _ask(self, chosen: Tool, call: ToolCall) -> None:
        if not chosen.needs_approval:
            return
        answer = self._approve(call) if self._approve is not None else False
        if inspect.isawaitable(answer):
            answer = await answer
        if not answer:
            raise ToolError(f"{call.name} was not run: it needs an approval that was not given")

    def _bounded(self, text: str) -> str:
        if len(text) <= self._max_result_chars:
            return text
        return f"{text[: self._max_result_chars]}\n[cut: {len(text) - self._max_result_chars} more characters]"

    def _error(self, text: str) -> ToolOutcome:
        return ToolOutcome(self._bounded(f"error: {' '.join(text.split())}"), is_error=True)


def _validator(spec: ToolSpec) -> Any:
    try:
        return jsonschema_rs.validator_for(dict(spec.parameters))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise SchemaError(f"the parameters of tool {spec.name!r} are no usable JSON schema: {reason}") from None


def _describe(error: Any) -> str:
    where = ".".join(str(part) for part in error.instance_path)
    return f"{where}: {error.message}" if where else str(error.message)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ToolError | OpenK2Error):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


async def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    value = await _in_thread(function, arguments)
    return await value if inspect.isawaitable(value) else value


async def _in_thread(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Run a sync function in a daemon thread of its own.

    Not in asyncio's pool: its few workers would let slow calls hold others back, and its threads are joined at exit,
    so that one hung tool would keep the process alive after Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def deliver(outcome: tuple[Any, BaseException | None]) -> None:
        if not done.done():
            done.set_result(outcome)

    def work() -> None:
        try:
            outcome: tuple[Any, BaseException | None] = (function(**arguments), None)
        except BaseException as error:  # also SystemExit: a tool must not end the agent
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, outcome)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="openk2-tool", daemon=True).start()
    value, error = await done
    if error is None:
        return value
    raise error if isinstance(error, Exception) else ToolError(_one_line(error))
