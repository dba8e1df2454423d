"""`openk2 agent TASK`: a model carries out a task with tools, in the working folder."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openk2.errors import OpenK2Error, RequestError

if TYPE_CHECKING:
    from openk2.agent import Agent, AgentResult
    from openk2.agent.output import Writer
    from openk2.agent.toolset import Approve
    from openk2.chat.messages import ToolCall
    from openk2.chat.provider import ChatProvider

INTERRUPTED = 130
"""The shell's exit code for Ctrl-C."""


def command(
    task: Annotated[str, typer.Argument(help="What to do, in quotes.")],
    model: Annotated[
        str | None, typer.Option(help="k2-nano, a checkpoint folder, or with --base-url a name of that server.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Use this OpenAI-compatible server; key: OPENAI_API_KEY.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Approve every call that asks for approval.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one event a line, as JSON.")] = False,
    max_turns: Annotated[int, typer.Option(min=1, help="Most answers of the model.")] = 20,
    cwd: Annotated[Path, typer.Option(help="The working folder; tools see nothing outside.")] = Path(),
) -> None:
    """Carry out a task with tools: search_files, read_file, list_files, calculate, current_time.

    Exit codes: 0 finished; 1 stopped by a limit or an error; 2 wrong usage or model; 130 Ctrl-C.
    """
    if not task.strip():
        raise RequestError("the task is empty", param="task")

    from openk2.agent import Agent, builtin_tools
    from openk2.cli.provider import opened_provider

    tools = builtin_tools(cwd)  # before the model is loaded: a missing folder is told at once
    writer = _writer(as_json)
    try:
        with opened_provider(model, base_url) as provider:
            agent = Agent(
                provider,
                tools,
                max_turns=max_turns,
                approve=_approve(yes),
                max_result_chars=result_chars(provider),
            )
            result = asyncio.run(_run(agent, task, writer))
    except KeyboardInterrupt:
        writer.interrupted()
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output is gone; Python must not fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    raise typer.Exit(0 if result.finished else 1)


async def _run(agent: Agent, task: str, writer: Writer) -> AgentResult:
    from openk2.agent import Stopped

    async with aclosing(agent.events(task)) as events:
        async for event in events:
            writer.add(event)
            if isinstance(event, Stopped):
                return event.result
    raise AssertionError("a run ends with Stopped")


def _writer(as_json: bool) -> Writer:
    from rich.console import Console

    from openk2.agent.output import JsonWriter, TerminalWriter

    return JsonWriter() if as_json else TerminalWriter(Console())


def _approve(yes: bool) -> Approve | None:
    """Yes to all, a question on a terminal, or None: without a terminal nobody could answer."""
    if yes:
        return lambda call: True
    return _ask if sys.stdin.isatty() else None


def _ask(call: ToolCall) -> bool:
    from openk2.agent.printable import printable

    return typer.confirm(f"Run {printable(call.name)} with {printable(call.arguments)}?", default=False, err=True)


def result_chars(provider: ChatProvider) -> int:
    """Most characters of one tool result: about a quarter of the model's window, at three characters a token.

    A window that is not known, or larger than 27k tokens, gives the default.
    """
    from openk2.agent.toolset import DEFAULT_MAX_RESULT_CHARS

    window: int | None = None
    with suppress(OpenK2Error):  # many endpoints do not tell; one that cannot be reached is reported by the run
        window = getattr(provider, "max_model_len", None)
    if window is None:
        return DEFAULT_MAX_RESULT_CHARS
    return min(DEFAULT_MAX_RESULT_CHARS, max(500, window * 3 // 4))
