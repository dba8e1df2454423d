"""`openk2 agent` and `openk2 chat` against a scripted model behind our own server."""

from __future__ import annotations

import builtins
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openk2.agent import Agent, builtin_tools, tool
from openk2.agent.output import TerminalWriter
from openk2.agent.printable import one_line, printable
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.cli import agent as agent_verb
from openk2.cli.main import app, describe
from openk2.config import SamplingParams
from openk2.errors import OverloadedError

Serve = Callable[[ScriptedProvider], str]
runner = CliRunner()

THREE_CALLS = ScriptedTurn(
    "Three at once.\n",
    [
        ScriptedCall("search_files", {"pattern": "TODO", "lang": "py"}),
        ScriptedCall("calculate", {"expression": "6 * 7"}),
        ScriptedCall("current_time", {"timezone": "Nowhere"}),
    ],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("x = 1  # TODO: name it\n")
    return tmp_path


def agent(*arguments: object) -> Any:
    return runner.invoke(app, ["agent", *map(str, arguments)])


def test_json_tells_every_event_on_a_line(serve: Serve, folder: Path) -> None:
    provider = ScriptedProvider([THREE_CALLS, "One TODO, and 42."], model="m")
    done = agent("Find the TODOs", "--base-url", serve(provider), "--json", "--cwd", folder)
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events] == ["text", *["call"] * 3, *["result"] * 3, "text", "stop"]
    calls = {event["tool"]: event for event in events if event["type"] == "call"}
    results = {event["tool"]: event for event in events if event["type"] == "result"}
    assert calls["search_files"]["arguments"] == {"pattern": "TODO", "lang": "py"}
    assert calls["search_files"]["id"] == results["search_files"]["id"] == "functions.search_files:0"
    assert results["search_files"]["result"] == "a.py:1: x = 1  # TODO: name it" and results["search_files"]["ok"]
    assert results["calculate"]["result"] == "42"
    assert not results["current_time"]["ok"] and results["current_time"]["result"].startswith("error: ")
    assert max(end["start_s"] for end in results.values()) <= min(end["end_s"] for end in results.values())
    assert events[-2] == {"type": "text", "turn": 2, "text": "One TODO, and 42."}
    assert events[-1]["reason"] == "finished" and (events[-1]["turns"], events[-1]["calls"]) == (2, 3)
    names = {spec.name for spec in provider.requests[0].tools}
    assert names == {"search_files", "read_file", "list_files", "calculate", "current_time"}


def test_human_output_shows_calls_overlap_and_text(serve: Serve, folder: Path) -> None:
    url = serve(ScriptedProvider([THREE_CALLS, "One TODO, and 42."]))
    done = agent("Find the TODOs", "--base-url", url, "--cwd", folder)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "Three at once."
    assert 'search_files(pattern="TODO", lang="py")' in done.stdout and "a.py:1: x = 1" in done.stdout
    assert "3 calls at once" in done.stdout and "one after another" in done.stdout
    assert lines[-1] == "One TODO, and 42."


def test_a_limit_ends_with_1(serve: Serve, folder: Path) -> None:
    provider = ScriptedProvider(
        lambda request: ScriptedTurn(calls=[ScriptedCall("calculate", {"expression": str(len(request.messages))})])
    )
    url = serve(provider)
    done = agent("Count", "--base-url", url, "--max-turns", 2, "--cwd", folder)
    assert done.exit_code == 1 and "stopped (max_turns): the limit of 2 turns" in done.stderr
    done = agent("Count", "--base-url", url, "--max-turns", 2, "--cwd", folder, "--json")
    assert done.exit_code == 1 and json.loads(done.stdout.splitlines()[-1])["reason"] == "max_turns"


@pytest.mark.parametrize("model", [[], ["--model", "m"]])
def test_a_failing_endpoint_ends_with_1_and_a_line(model: list[str], folder: Path) -> None:
    arguments = ["Hi", "--base-url", "127.0.0.1:9", *model, "--cwd", folder]
    done = agent(*arguments)
    assert done.exit_code == 1 and "cannot reach http://127.0.0.1:9/v1" in done.stderr and not done.stdout
    done = agent(*arguments, "--json")
    (stop,) = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1 and stop["reason"] == "error" and "cannot reach" in stop["detail"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(["  "], "the task is empty"), (["Hi", "--cwd", "/there/is/no/such/folder"], "/there/is/no/such/folder")],
)
def test_wrong_input_is_told_before_a_model_is_loaded(arguments: list[str], line: str) -> None:
    done = agent(*arguments)
    assert done.exit_code != 0 and isinstance(done.exception, Exception) and line in describe(done.exception)[0]


def test_escape_sequences_never_reach_the_terminal(serve: Serve, folder: Path) -> None:
    (folder / "evil.py").write_text("TODO \x1b]0;owned\x07\n")
    url = serve(ScriptedProvider([THREE_CALLS, "\x1b[2Jgone\x9b1m"]))
    done = agent("Find", "--base-url", url, "--cwd", folder)
    assert "\x1b" not in done.output and "\x07" not in done.output and "\x9b" not in done.output
    assert "gone" in done.stdout


def test_texts_on_one_line() -> None:
    assert one_line("a\nb\nc", 40) == "a (+2 lines)" and one_line("a\nb", 40) == "a (+1 line)"
    assert one_line("x" * 50, 20) == "x" * 17 + "..."
    assert printable("tab\tnew\nline\r\x1b") == "tab\tnew\nline\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


def test_terminals_without_unicode() -> None:
    import io

    from rich.console import Console

    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True), width=80)
    writer = TerminalWriter(console)

    async def drive() -> None:
        provider = ScriptedProvider([ScriptedTurn(calls=THREE_CALLS.calls), "done"])
        async for event in Agent(provider, builtin_tools(Path(__file__).parent)).events("go"):
            writer.add(event)

    import asyncio

    asyncio.run(drive())
    assert b"> calculate(" in raw.getvalue() and b"#" in raw.getvalue()


@pytest.mark.parametrize("window", [None, 100, 4096, 262144])
def test_results_leave_room_in_the_window(window: int | None) -> None:
    class Provider:
        max_model_len = window

    chars = agent_verb.result_chars(Provider())  # type: ignore[arg-type]
    assert chars == {None: 20_000, 100: 500, 4096: 3072, 262144: 20_000}[window]


@pytest.mark.parametrize(("answer", "approved"), [("y\n", True), ("\n", False)])
def test_approval_is_asked_only_on_a_terminal(answer: str, approved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from openk2.chat.messages import ToolCall

    call = ToolCall("i", "write", "{}")
    monkeypatch.setattr(sys, "stdin", _Terminal(False))
    assert agent_verb._approve(False) is None
    always = agent_verb._approve(True)
    assert always is not None and always(call) is True
    monkeypatch.setattr(sys, "stdin", _Terminal(True))
    ask = agent_verb._approve(False)
    assert ask is not None
    monkeypatch.setattr(builtins, "input", lambda prompt="": answer.strip())
    monkeypatch.setattr("typer.confirm", lambda text, **_: answer.strip() == "y")
    assert ask(call) is approved


class _Terminal:
    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


# chat


def test_chat_answers_once(serve: Serve) -> None:
    provider = ScriptedProvider(["Hello,\nworld"])
    done = runner.invoke(app, ["chat", "-p", "Hi", "--base-url", serve(provider)])
    assert (done.exit_code, done.stdout) == (0, "Hello,\nworld\n")
    assert provider.requests[0].messages[0].text == "Hi"


def test_chat_reads_a_pipe(serve: Serve) -> None:
    provider = ScriptedProvider(["Hello"], model="other")
    done = runner.invoke(app, ["chat", "other", "--base-url", serve(provider)], input="from a\npipe")
    assert (done.exit_code, done.stdout) == (0, "Hello\n")
    assert provider.requests[0].messages[0].text == "from a\npipe"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--memory", "plenty"], "8GiB"),
        (["--memory", "8GiB", "--base-url", "127.0.0.1:9"], "--memory is for models that run here"),
        (["--memory", "1MiB"], "bytes are missing"),
    ],
)
def test_a_promise_of_memory_that_cannot_be_kept(arguments: list[str], line: str) -> None:
    done = runner.invoke(app, ["chat", "-p", "Hi", *arguments])
    assert isinstance(done.exception, Exception)
    told, code = describe(done.exception)
    assert code == 2 and line in told


def test_chat_with_nothing_to_say() -> None:
    done = runner.invoke(app, ["chat"], input="")
    assert isinstance(done.exception, Exception) and "prompt is empty" in describe(done.exception)[0]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_lines(*lines: str | type[BaseException]) -> None:
        remaining: Iterator[str | type[BaseException]] = iter(lines)

        def fake_input(prompt: str = "") -> str:
            line = next(remaining, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", fake_input)

    return set_lines


def talk(provider: ScriptedProvider) -> None:
    import asyncio

    from openk2.cli.chat import _talk

    with asyncio.Runner() as loop:
        _talk(provider, loop, SamplingParams())


def test_chat_keeps_the_conversation(typed: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    provider = ScriptedProvider(["one", OverloadedError("full\nup"), "two", "three"], model="m")
    typed("a", "lost", "", "/help", "b", KeyboardInterrupt, "/new", "c", "/exit", "never")
    talk(provider)
    asked = [[message.text for message in request.messages] for request in provider.requests]
    assert asked == [["a"], ["a", "one", "lost"], ["a", "one", "b"], ["c"]]
    printed = capsys.readouterr()
    assert printed.out.startswith("m - /help") and "/new " in printed.out and "three\n" in printed.out
    assert printed.err == "openk2: full up\n"


def test_chat_ends_at_the_end_of_input(typed: Callable[..., None]) -> None:
    typed("a")
    provider = ScriptedProvider([ScriptedTurn("cut", finish_reason="length")])
    talk(provider)
    assert provider.remaining == 0


# processes of their own


def start(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "openk2", *arguments],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would the processes of tests that run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_an_open_pipe_on_stdin_is_never_waited_for(serve: Serve, folder: Path) -> None:
    url = serve(ScriptedProvider([THREE_CALLS, "done"]))
    process = start("agent", "Find", "--base-url", url, "--cwd", str(folder), "--json")
    assert process.stdout is not None
    out = process.stdout.read()  # stdin stays open and empty
    assert process.wait(30) == 0 and json.loads(out.splitlines()[-1])["reason"] == "finished"
    process.communicate()


def test_ctrl_c_ends_the_agent_cleanly(serve: Serve, folder: Path) -> None:
    provider = ScriptedProvider([THREE_CALLS, ScriptedTurn("never said", delay_s=60)])
    process = start("agent", "Find", "--base-url", serve(provider), "--cwd", str(folder), "--json")
    assert process.stdout is not None and process.stderr is not None
    while '"result"' not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == ""
    assert json.loads(out.splitlines()[-1])["reason"] == "interrupted"


def test_a_hung_tool_does_not_keep_the_process() -> None:
    script = """
import threading
from openk2 import Agent, ScriptedProvider, tool
from openk2.chat.scripted import ScriptedCall, ScriptedTurn

@tool(timeout_s=0.01)
def hang() -> None:
    threading.Event().wait()

print(Agent(ScriptedProvider([ScriptedTurn(calls=[ScriptedCall("hang", {})]), "done"]), [hang]).run("go").text)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "done\n"


def test_tools_see_the_context_of_the_caller() -> None:
    import contextvars

    user = contextvars.ContextVar("user", default="nobody")

    @tool
    def who() -> str:
        return user.get()

    user.set("eve")
    result = Agent(ScriptedProvider([ScriptedTurn(calls=[ScriptedCall("who", {})]), "done"]), [who]).run("go")
    assert result.calls[0].result == "eve"
