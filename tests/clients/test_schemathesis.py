"""Requests drawn from our own OpenAPI description, valid and not: no answer is a server error or breaks what it says.

Schemathesis draws them, and judges with its own reading of the description.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.server.conftest import Serve

from openk2.chat.events import ChatEvent
from openk2.chat.messages import Message
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.chat.scripted import ScriptedProvider, ScriptedTurn

pytestmark = pytest.mark.clients

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"
EXAMPLES = 25
"""Of each endpoint and phase."""


class Text(ScriptedProvider):
    """Answers whatever it is asked; a continuation too."""

    async def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        async for event in self.stream(ChatRequest((Message("user", str(request.prompt)),), sampling=request.sampling)):
            yield event


def test_no_request_from_the_description_breaks_the_server(serve: Serve, tmp_path: Path) -> None:
    url = serve(Text(lambda _: ScriptedTurn("Hi"))).url
    report = tmp_path / "report.ndjson"
    arguments = [
        "run", f"{url}/openapi.json", "--checks", CHECKS, "--max-examples", str(EXAMPLES), "--mode", "all",
        "--phases", "examples,coverage,fuzzing", "--exclude-path", "/ready", "--seed", "1", "--no-color",
        "--report", "ndjson", "--report-ndjson-path", str(report),
    ]  # fmt: skip
    run = subprocess.run(
        [str(Path(sys.executable).with_name("st")), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    asked = sum("Response" in line or "ScenarioFinished" in line for line in report.read_text().splitlines())
    assert asked > 15, [json.loads(line) for line in report.read_text().splitlines()][:3]
