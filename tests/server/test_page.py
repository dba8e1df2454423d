"""The web page: complete, without outside help, and its scripts (run by Node where there is one) do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from openk2.agent.tools.arithmetic import calculate
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import ProviderError
from openk2.server.page import DEMO_TOOLS, STATIC_FOLDER

from .conftest import HTTP, RunningServer, running

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    turns = {
        "call": ScriptedTurn("Ünder 👋", [ScriptedCall("calculate", {"expression": "1+1"})]),
        "break": ScriptedTurn("a", error=ProviderError("the engine ended")),
    }
    with running(ScriptedProvider(lambda request: turns[request.messages[-1].text])) as server:
        yield server


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(server):
    response = HTTP.get(server.url)
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    page = response.text
    assert "<style" not in page and not re.search(r"<script(?![^>]*src=)", page) and not re.search(r"\son\w+=", page)
    for path in re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page):
        assert path.startswith("/static/")
        assert HTTP.get(server.url + path).status_code == 200
    for file in STATIC_FOLDER.iterdir():
        assert "http://" not in file.read_text(encoding="utf-8") and "https://" not in file.read_text(encoding="utf-8")
    script = HTTP.get(f"{server.url}/static/app.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["cache-control"] == "no-cache"


def test_every_element_that_the_script_uses_is_in_the_page():
    used = set(re.findall(r'element\("([\w-]+)"\)', (STATIC_FOLDER / "app.js").read_text(encoding="utf-8")))
    there = set(re.findall(r'id="([\w-]+)"', (STATIC_FOLDER / "index.html").read_text(encoding="utf-8")))
    assert used and used <= there


def test_the_page_declares_the_tools_that_it_runs(server):
    tools = HTTP.get(f"{server.url}/ui/tools.json").json()["tools"]
    assert tools == [tool.declaration for tool in DEMO_TOOLS]
    script = (STATIC_FOLDER / "tools.js").read_text(encoding="utf-8")
    assert all(f"  {tool.name}: (" in script for tool in DEMO_TOOLS)


def node(script: str) -> object:
    """What a module script prints as JSON."""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_the_pages_calculator_agrees_with_the_agents():
    expressions = [
        "23 * 19", "12 * (3 + 4)", "2 ** 3 ** 2", "-2 ** 2", "2^-1", "7 // 2 - -7 // 2", "-7 % 3", "0.1 + 0.2", "1e3/4",
        "sqrt(16) + max(1, 2, 3) * pi", "round(2.6)", "+5 - (-3)", "10 / 4 / 5", "3 × 4 ÷ 2", "abs(-.5)",
    ]  # fmt: skip
    module = (STATIC_FOLDER / "tools.js").as_uri()
    results = node(f"""
        import {{ runTool }} from {json.dumps(module)};
        const run = (expression) => runTool("calculate", JSON.stringify({{ expression }}));
        console.log(JSON.stringify({json.dumps(expressions)}.map(run)));
    """)
    assert [float(result) for result in results] == [float(calculate(expression)) for expression in expressions]


@needs_node
def test_the_pages_tools_refuse_what_they_cannot_do():
    calls = [
        ["calculate", '{"expression": "1 / 0"}'], ["calculate", '{"expression": "process.exit()"}'],
        ["calculate", '{"expression": "2 +"}'], ["calculate", '{"expression": "constructor(1)"}'],
        ["calculate", '{"expression": "1 2"}'], ["current_time", '{"timezone": "Atlantis"}'],
        ["get_weather", '{"city": "Atlantis"}'], ["nothing", "{}"], ["calculate", "{"],
    ]  # fmt: skip
    module = (STATIC_FOLDER / "tools.js").as_uri()
    results = node(f"""
        import {{ runTool }} from {json.dumps(module)};
        const fails = ([name, text]) => {{ try {{ runTool(name, text); return false; }} catch {{ return true; }} }};
        const times = ["UTC", "europe/paris", "Tokyo", ""].map((timezone) =>
          runTool("current_time", JSON.stringify({{ timezone }})));
        const weather = runTool("get_weather", '{{"city": "Paris"}}');
        console.log(JSON.stringify([{json.dumps(calls)}.map(fails), times, weather]));
    """)
    fails, times, weather = results
    assert all(fails)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+, \w+day$", time) for time in times)
    assert "Europe/Paris" in times[1] and "Asia/Tokyo" in times[2] and "demo data" in weather


@needs_node
def test_the_pages_stream_reader_reads_the_servers_streams(server):
    module = (STATIC_FOLDER / "api.js").as_uri()
    text, arguments, failure, missing = node(f"""
        globalThis.sessionStorage = {{ getItem: () => null }};
        const plainFetch = globalThis.fetch;
        globalThis.fetch = (path, options) => plainFetch({json.dumps(server.url)} + path, options);
        const {{ streamChat, getJson }} = await import({json.dumps(module)});
        const ask = (content) => streamChat({{ messages: [{{ role: "user", content }}] }});
        let text = "", args = "", failure = null, missing = null;
        for await (const chunk of ask("call")) {{
          const delta = chunk.choices[0]?.delta ?? {{}};
          text += delta.content ?? "";
          args += delta.tool_calls?.[0].function.arguments ?? "";
        }}
        try {{ for await (const chunk of ask("break")); }} catch (error) {{ failure = error.message; }}
        try {{ await getJson("/v1/nothing"); }} catch (error) {{ missing = error.status; }}
        console.log(JSON.stringify([text, args, failure, missing]));
    """)
    assert text == "Ünder 👋" and json.loads(arguments) == {"expression": "1+1"}
    assert failure == "the engine ended" and missing == 404
