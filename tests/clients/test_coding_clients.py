"""Programs of npm's: Claude Code and Codex do a task through our server, and the Vercel AI SDK asks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.server.conftest import RunningServer, Serve
from typer.testing import CliRunner

from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.cli.main import app

PROGRAMS = Path(sys.prefix, "node", "node_modules", ".bin")
"""Where `make test-clients` puts them."""
TASK = "Write the word made to the file made.txt."
COMMAND = "echo made > made.txt"
REPORT = "The file made.txt is there: it says héllo 👋."

pytestmark = pytest.mark.clients


VERCEL = Path(__file__).with_name("vercel.mjs")


def needs(program: str) -> pytest.MarkDecorator:
    reason = f"{program} is not installed: `make test-clients` does it where there is npm"
    return pytest.mark.skipif(not (PROGRAMS / program).exists(), reason=reason)


def answer(request: ChatRequest) -> ScriptedTurn | str:
    """Runs the command once by whatever tool for that the client has, then reports."""
    if any(message.role == "tool" for message in request.messages):
        return REPORT
    calls = {"Bash": {"command": COMMAND, "description": "Write the file"}, "exec_command": {"cmd": COMMAND}}
    for tool in request.tools:
        if tool.name in calls:
            return ScriptedTurn("I write it.", [ScriptedCall(tool.name, calls[tool.name])])
    return "a title"


def connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, client: str, server: RunningServer) -> Path:
    """What a user does: `openk2 connect CLIENT --write`, in a home of its own; the folder to work in."""
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    for name in [n for n in os.environ if n.startswith(("ANTHROPIC", "CLAUDE", "OPENAI", "CODEX"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
    arguments = ["connect", client, "--url", server.url, "--model", "scripted", "--write"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    return folder


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def check(provider: ScriptedProvider, folder: Path) -> None:
    assert (folder / "made.txt").read_text() == "made\n"
    asked = [request for request in provider.requests if request.tools]
    assert len(asked) == 2
    assert TASK in "".join(message.text or "" for message in asked[0].messages)
    (result,) = (message for message in asked[1].messages if message.role == "tool")
    (call,) = (call for message in asked[1].messages for call in message.tool_calls)
    assert result.tool_call_id == call.id and COMMAND in call.arguments


@needs("claude")
def test_claude_code(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = ScriptedProvider(answer)
    folder = connect(monkeypatch, tmp_path, "claude-code", serve(provider))
    program = str(PROGRAMS / "claude")
    said = json.loads(run(folder, program, "-p", TASK, "--allowedTools", "Bash", "--output-format", "json"))
    assert said["result"] == REPORT and not said["is_error"]
    check(provider, folder)


@needs("codex")
def test_codex(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = ScriptedProvider(answer)
    folder = connect(monkeypatch, tmp_path, "codex", serve(provider))
    options = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json")
    events = [json.loads(line) for line in run(folder, str(PROGRAMS / "codex"), "exec", *options, TASK).splitlines()]
    said = [event["item"]["text"] for event in events if event.get("item", {}).get("type") == "agent_message"]
    assert said[-1] == REPORT
    assert any(event["type"] == "turn.completed" for event in events)
    check(provider, folder)


@pytest.mark.skipif(not (PROGRAMS.parent / "ai").exists(), reason="the Vercel AI SDK is not installed")
@pytest.mark.parametrize("mode", ["whole", "streamed"])
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_vercel_ai_sdk(serve: Serve, tmp_path: Path, api: str, mode: str) -> None:
    cities = [{"city": "Oslo"}, {"city": "Rome"}]
    calls = [ScriptedCall("get_weather", city) for city in cities]
    provider = ScriptedProvider([ScriptedTurn("", calls), REPORT])
    script = tmp_path / VERCEL.name
    script.write_text(VERCEL.read_text())
    (tmp_path / "node_modules").symlink_to(PROGRAMS.parent)  # node looks for packages beside the script
    said = json.loads(run(tmp_path, "node", str(script), serve(provider).url, api, mode))
    assert said["text"] == REPORT and said["finish"] == "stop"
    assert said["calls"] == [["get_weather", city] for city in cities]
    assert said["results"] == ["cold in Oslo", "cold in Rome"]
    results = [message.text for message in provider.requests[1].messages if message.role == "tool"]
    assert results == said["results"]
