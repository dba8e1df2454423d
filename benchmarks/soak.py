"""Many clients at once, well-behaved and not, for a long time; then the server is as it was.

    python benchmarks/soak.py [--model k2-nano] [--url URL] [--minutes 10] [--clients 64] [--seed 0] [--json FILE]

Every client sends request after request, drawn at random: answers read to their end, streamed or not, on each API;
streams left in the middle, before their first event, or while they wait; bodies that are too large, cut, or wrong. The
answers are deterministic (greedy, or with a seed), so each that is read to its end must equal its twin, asked for
without a stream before the others came. At the end no request runs or waits, no cache block is held, and the server's
threads, open files and memory are what they were. The exit status is 1 when anything differs.

Without --url the server is started here, as users start it, and its processes are watched; with it only its metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
TOOL = {"name": "get_weather", "description": "Get the weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
}}  # fmt: skip
QUESTIONS = ("Hello, who are you?", "What is 12 * 7?", "What is the weather in Paris?", "Count from one to ten.")
FAULTS = {
    b"{": 400,
    b'{"messages": "no list"}': 400,
    b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": 9}': 400,
    b'{"messages": [{"role": "user", "content": "' + b"long " * 40_000 + b'"}]}': 400,
}
"""Bodies that are refused, and how. The last one is longer than any window here."""
DECLARED_BYTES = 1 << 30
"""Of a body that is refused before it is sent."""
SETTLE_SECONDS = 60.0
MEMORY_SLACK_MIB = 64


def questions(max_tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests whose answers are determined: (path, body without `stream`)."""
    asked: list[tuple[str, dict[str, Any]]] = []
    for number, text in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": text}]
        sampling = {"temperature": 0} if number % 2 else {"temperature": 1, "seed": number}
        tools = [{"type": "function", "function": TOOL}]
        forced = {"tools": tools, "tool_choice": "required", "temperature": 0, "max_tokens": 4 * max_tokens}
        asked += [
            (CHAT, {"messages": messages, "max_tokens": max_tokens, **sampling}),
            (CHAT, {"messages": messages, "max_tokens": max_tokens, "n": 3, **sampling}),
            (CHAT, {"messages": messages, **forced}),
            (TEXT, {"prompt": text, "max_tokens": max_tokens, **sampling}),
            (MESSAGES, {"messages": messages, "temperature": 0, "max_tokens": max_tokens}),
            (RESPONSES, {"input": text, "temperature": 0, "max_output_tokens": max_tokens, "store": False}),
        ]
    return asked


def told(path: str, body: dict[str, Any]) -> Any:
    """What an answer says, without its ids and times."""
    if path in (CHAT, TEXT):
        return [
            (choice.get("text"), choice["finish_reason"], *_message(choice.get("message") or {}))
            for choice in sorted(body["choices"], key=lambda choice: choice["index"])
        ]
    if path == MESSAGES:
        return body["stop_reason"], [(block.get("text"), block.get("input")) for block in body["content"]]
    return body["status"], [(item.get("content"), item.get("arguments")) for item in _without_ids(body["output"])]


def _message(message: dict[str, Any]) -> tuple[Any, Any]:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    return message.get("content") or None, calls


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "id"}
    return value


def added_up(path: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that a stream's events add up to, as far as `told` looks at it."""
    if path == RESPONSES:
        whole: dict[str, Any] = events[-1]["response"]
        return whole
    if path == MESSAGES:
        blocks: list[dict[str, Any]] = []
        for event in events:
            if event["type"] == "content_block_start":
                blocks.append(event["content_block"] | {"json": ""})
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                blocks[-1]["text"] = blocks[-1].get("text", "") + delta.get("text", "")
                blocks[-1]["json"] += delta.get("partial_json", "")
        for block in blocks:
            if block["type"] == "tool_use":
                block["text"], block["input"] = None, json.loads(block["json"])
        reason = next(event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta")
        return {"stop_reason": reason, "content": blocks}
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        whole = choices.setdefault(choice["index"], {"index": choice["index"], "finish_reason": None})
        whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
        if path == TEXT:
            whole["text"] = whole.get("text", "") + choice["text"]
            continue
        message = whole.setdefault("message", {"content": "", "tool_calls": []})
        message["content"] += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls") or []:
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"function": {"name": call["function"]["name"], "arguments": ""}})
            message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if path == CHAT:
        for whole in choices.values():
            if whole["finish_reason"] != "tool_calls":
                _drop_cut_call(whole["message"])
    return {"choices": list(choices.values())}


def _drop_cut_call(message: dict[str, Any]) -> None:
    """Of a call that the token limit cut off, a stream has sent the beginning; the whole answer does not hold it."""
    if message["tool_calls"]:
        try:
            json.loads(message["tool_calls"][-1]["function"]["arguments"])
        except ValueError:
            message["tool_calls"].pop()


@dataclass
class Soak:
    """Sends the requests and keeps count."""

    url: str
    max_tokens: int = 24
    counts: Counter[str] = field(default_factory=Counter)
    """Requests by what was done with them."""
    faults: list[str] = field(default_factory=list)
    """What should not have happened; empty after a good run."""

    def __post_init__(self) -> None:
        self._questions = questions(self.max_tokens)
        self._twins: list[Any] = []
        self._http = self._client()

    def _client(self) -> httpx2.AsyncClient:
        """With connections of its own, so that none is open when the server's files are counted."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        return httpx2.AsyncClient(base_url=self.url, timeout=600, verify=False, limits=limits)

    async def ask_twins(self) -> None:
        """Every question once, alone and without a stream: what its later answers are held to."""
        async with self._client() as http:
            for path, body in self._questions:
                response = await http.post(path, json=body)
                response.raise_for_status()
                self._twins.append(told(path, response.json()))

    async def run(self, clients: int, seed: int, goes_on: Callable[[], bool]) -> None:
        """Clients send requests for as long as `goes_on` says so."""

        async def client(number: int) -> None:
            draw = random.Random(seed * 1000 + number)
            action = ACTIONS[number % len(ACTIONS)]  # so that every one comes, however short the run is
            while goes_on():
                self.counts[action.__name__.strip("_")] += 1
                try:
                    await action(self, draw)
                except Exception as error:
                    self.faults.append(f"{action.__name__.strip('_')}: {type(error).__name__}: {error}")
                action = draw.choice(ACTIONS)

        async with self._client() as self._http:
            await asyncio.gather(*(client(number) for number in range(clients)))

    async def settled(self) -> dict[str, float]:
        """The metrics once nothing runs, or after a minute; what is still held then is a fault."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            async with self._client() as http:
                text = (await http.get("/metrics")).text
            values = {
                line.split("{")[0]: float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith(names)
            }
            if not any(values.values()) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        self.faults += [f"at the end {name} is {value:g}" for name, value in values.items() if value]
        return values

    def _draw(self, draw: random.Random) -> tuple[int, str, dict[str, Any]]:
        number = draw.randrange(len(self._questions))
        return number, *self._questions[number]

    def _compare(self, number: int, answer: Any) -> None:
        path, body = self._questions[number]
        if answer != self._twins[number]:
            self.faults.append(f"{path} {json.dumps(body)}: {answer!r} is not its twin {self._twins[number]!r}")

    async def _whole(self, draw: random.Random) -> None:
        number, path, body = self._draw(draw)
        response = await self._http.post(path, json=body)
        response.raise_for_status()
        self._compare(number, told(path, response.json()))

    async def _streamed(self, draw: random.Random) -> None:
        number, path, body = self._draw(draw)
        async with self._stream(path, body) as response:
            response.raise_for_status()
            data = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
        if path in (CHAT, TEXT) and data.pop() != "[DONE]":
            raise ValueError("a stream ended without [DONE]")
        self._compare(number, told(path, added_up(path, [json.loads(line) for line in data])))

    async def _left_in_the_middle(self, draw: random.Random) -> None:
        _, path, body = self._draw(draw)
        left = draw.randrange(12)
        async with self._stream(path, body) as response:
            async for _ in response.aiter_lines():
                if left == 0:
                    return
                left -= 1

    async def _cancelled(self, draw: random.Random) -> None:
        _, path, body = self._draw(draw)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.random() * 0.2):
                await self._http.post(path, json=body | {"stream": draw.random() < 0.5})

    async def _refused(self, draw: random.Random) -> None:
        content, status = draw.choice(list(FAULTS.items()))
        response = await self._http.post(CHAT, content=content, headers={"content-type": "application/json"})
        if response.status_code != status:
            raise ValueError(f"{content[:60]!r} got {response.status_code}")

    async def _too_large(self, draw: random.Random) -> None:
        path = draw.choice((CHAT, MESSAGES, RESPONSES))
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {DECLARED_BYTES}\r\n\r\n"
            writer.write(head.encode() + b'{"messages": [')
            status = (await reader.readline()).split()[1:2]
            if status != [b"413"]:
                raise ValueError(f"a body of {DECLARED_BYTES} bytes got {status}")
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        async with self._http.stream("POST", path, json=body | {"stream": True}) as response:
            yield response


ACTIONS = [
    *[Soak._streamed] * 5, *[Soak._whole] * 2, *[Soak._left_in_the_middle] * 3, *[Soak._cancelled] * 2,
    Soak._refused, Soak._too_large,
]  # fmt: skip


def resources(pid: int) -> dict[str, int]:
    """Of a process and its children: threads, open files, and MiB of memory."""
    total: Counter[str] = Counter()
    pids = [pid]
    while pids:
        folder = Path("/proc") / str(pids.pop())
        for task in (folder / "task").iterdir():
            pids += map(int, (task / "children").read_text().split())
            total["threads"] += 1
        total["files"] += len(list((folder / "fd").iterdir()))
        pages = int((folder / "statm").read_text().split()[1])
        total["memory_mib"] += pages * 4096 >> 20
    return dict(total)


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Which resources are above what they were."""
    slack = {"threads": 0, "files": 0, "memory_mib": MEMORY_SLACK_MIB}
    return [
        f"{name} grew from {before[name]} to {after[name]}"
        for name in before
        if after[name] > before[name] + slack[name]
    ]


def _for_seconds(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


async def soak(url: str, pid: int | None, minutes: float, clients: int, seed: int) -> dict[str, Any]:
    test = Soak(url)
    await test.ask_twins()
    # The first crowd is not measured: pools of threads and caches grow to their size.
    await test.run(clients, seed + 1, _for_seconds(min(60.0, 6 * minutes)))
    await test.settled()
    before = None if pid is None else resources(pid)
    await test.run(clients, seed, _for_seconds(60 * minutes))
    metrics = await test.settled()
    after = None if pid is None else resources(pid)
    if before is not None and after is not None:
        test.faults += grown(before, after)
    return {
        "minutes": minutes,
        "clients": clients,
        "requests": dict(sorted(test.counts.items())),
        "metrics": metrics,
        "before": before,
        "after": after,
        "faults": test.faults,
    }


@contextlib.contextmanager
def serving(model: str) -> Iterator[tuple[str, int]]:
    """URL and process id of `openk2 serve MODEL`, once it is healthy."""
    command = [sys.executable, "-m", "openk2", "serve", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().partition("listens on ")[2].partition(";")[0]
        try:
            while httpx2.get(f"{url}/ready").status_code != 200:
                if process.poll() is not None:
                    raise SystemExit(f"the server of {model} ended with {process.returncode}")
                time.sleep(0.2)
            yield url, process.pid
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="k2-nano")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    with contextlib.ExitStack() as stack:
        if arguments.url is None:
            url, pid = stack.enter_context(serving(arguments.model))
        else:
            url, pid = arguments.url, None
        report = asyncio.run(soak(url, pid, arguments.minutes, arguments.clients, arguments.seed))
    print(json.dumps(report, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["faults"]))


if __name__ == "__main__":
    main()
