"""CrewAI: an agent with a tool does a task through our server, in an environment of its own (`make test-clients`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.server.conftest import RunningServer, Serve

from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn

pytestmark = pytest.mark.clients

REPORT = "Oslo is cold, Rome is warm: héllo 👋."
CITIES = ["Oslo", "Rome"]


@pytest.fixture
def crewai(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package, told to keep to this machine and to a folder of the test's own before it is imported."""
    for name in ("CREWAI_DISABLE_TELEMETRY", "CREWAI_DISABLE_TRACKING", "OTEL_SDK_DISABLED"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("CREWAI_TRACING_ENABLED", "false")
    monkeypatch.setenv("CREWAI_TESTING", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "storage"))
    return pytest.importorskip("crewai", reason="crewai is not installed: it has an environment of its own")


def model(crewai: Any, server: RunningServer, *, stream: bool) -> Any:
    return crewai.LLM(model="openai/scripted", base_url=f"{server.url}/v1", api_key="any", stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_an_agent_uses_its_tool_and_reports(serve: Serve, crewai: Any, stream: bool) -> None:
    from crewai.tools import tool

    asked: list[str] = []

    @tool("get_weather")
    def get_weather(city: str) -> str:
        """Weather of a city."""
        asked.append(city)
        return f"weather of {city}"

    calls = [ScriptedCall("get_weather", {"city": city}) for city in CITIES]
    provider = ScriptedProvider([ScriptedTurn("", calls), REPORT])
    llm = model(crewai, serve(provider), stream=stream)
    agent = crewai.Agent(role="Reporter", goal="Report weather", backstory="Brief.", tools=[get_weather], llm=llm)
    task = crewai.Task(description="Weather in Oslo and Rome?", expected_output="One sentence.", agent=agent)
    crew = crewai.Crew(agents=[agent], tasks=[task], verbose=False, tracing=False)
    assert crew.kickoff().raw == REPORT
    assert sorted(asked) == CITIES
    first, second = provider.requests
    assert [spec.name for spec in first.tools] == ["get_weather"]
    assert "Weather in Oslo and Rome?" in "".join(message.text for message in first.messages)
    (turn,) = (message for message in second.messages if message.tool_calls)
    assert [(call.name, json.loads(call.arguments)) for call in turn.tool_calls] == [
        ("get_weather", {"city": city}) for city in CITIES
    ]
    results = {message.tool_call_id: message.text for message in second.messages if message.role == "tool"}
    assert results == {call.id: f"weather of {city}" for call, city in zip(turn.tool_calls, CITIES, strict=True)}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_text(serve: Serve, crewai: Any, stream: bool) -> None:
    assert model(crewai, serve(ScriptedProvider([REPORT])), stream=stream).call("Weather?") == REPORT
