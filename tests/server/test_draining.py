"""The end of a server: answers under way may finish, for a time; no other is begun; a second signal ends all."""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from .conftest import HTTP, eventually, metric
from .test_run import openk2_serve, when_loaded

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"


def begin(url: str, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
    """A request that is being answered."""
    answer = pool.submit(HTTP.post, url + PATH, json=BODY)
    assert eventually(lambda: metric(url, "vllm:num_requests_waiting") == 1)
    return answer


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=120)
    return process.returncode


def test_answers_under_way_finish_and_nothing_new_is_begun(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ThreadPoolExecutor() as pool, openk2_serve("--port", "0", after=str(gate)) as process:
        url = when_loaded(process)
        answer = begin(url, pool)
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: HTTP.get(f"{url}/ready").status_code == 503)
        assert HTTP.get(f"{url}/ready").json() == {"status": "draining"}
        assert HTTP.get(f"{url}/health").status_code == 200
        refused = HTTP.post(url + PATH, json=BODY)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        gate.touch()
        assert answer.result(120).json()["choices"][0]["message"]["content"] == "Hello!"
        assert ended(process) == 0


def test_what_does_not_finish_in_time_ends_with_an_error(tmp_path: Path) -> None:
    arguments = ("--port", "0", "--drain-timeout", "0.2")
    with ThreadPoolExecutor() as pool, openk2_serve(*arguments, after=str(tmp_path / "never")) as process:
        answer = begin(when_loaded(process), pool)
        process.send_signal(signal.SIGTERM)
        refused = answer.result(120)
        assert refused.status_code == 503 and "did not finish" in refused.json()["error"]["message"]
        assert ended(process) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool, openk2_serve("--port", "0", after=str(tmp_path / "never")) as process:
        url = when_loaded(process)
        answer = begin(url, pool)
        process.send_signal(number)
        assert eventually(lambda: HTTP.get(f"{url}/ready").status_code == 503)
        process.send_signal(number)
        assert ended(process) == 128 + number
        assert isinstance(answer.exception(120), httpx.TransportError)
