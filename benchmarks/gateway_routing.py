"""Cache hits behind the gateway with one upstream and with several, and what is lost when one of them is killed.

    python benchmarks/gateway_routing.py [--upstreams 4] [--sessions 200] [--turns 6] [--at-once 32] [--json FILE]
    python benchmarks/gateway_routing.py --model k2-nano --turns 2 --max-tokens 16

Upstreams and gateway are processes of their own, spoken to over HTTP as users do. Without `--model` an upstream is a
simulation: every prompt stays in its prefix cache, in blocks of 16 words, and an answer takes a moment. With `--model`
it is `openk2 serve MODEL`, whose cache is real. Sessions share their instructions and each goes on for some turns; the
share of prompt tokens found in a cache is what the upstreams report. In the last run one upstream is killed (SIGKILL)
in the middle. A request is lost when it fails without having streamed anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from openk2.chat.events import ChatEvent, Finished, TextDelta
from openk2.chat.messages import Usage
from openk2.chat.provider import ChatRequest
from server_process import server_process

BLOCK_WORDS = 16
ANSWER = [f"word{n} " for n in range(24)]
KILLED_AFTER = 0.4
"""Of the requests of the last run, so many are answered when an upstream is killed."""


class SimulatedEngine:
    """Keeps every prompt's beginnings, block by block."""

    model = "simulated"

    def __init__(self) -> None:
        self._blocks: set[int] = set()

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        words = [word for message in request.messages for word in message.text.split()]
        beginnings = [hash(tuple(words[:end])) for end in range(BLOCK_WORDS, len(words) + 1, BLOCK_WORDS)]
        cached = BLOCK_WORDS * sum(beginning in self._blocks for beginning in beginnings)
        self._blocks.update(beginnings)
        await asyncio.sleep(0.02)
        for piece in ANSWER:
            yield TextDelta(piece)
            await asyncio.sleep(0.002)
        yield Finished("stop", Usage(len(words), len(ANSWER), cached))


@dataclass
class Tally:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answered: int = 0
    broken: int = 0
    """Failed after they had begun to stream: a client has seen them."""
    lost: int = 0
    """Failed before that."""

    @property
    def cached_share(self) -> float:
        return self.cached_tokens / max(1, self.prompt_tokens)


async def ask(client: httpx2.AsyncClient, messages: list[dict[str, str]], max_tokens: int, tally: Tally) -> str | None:
    """The answer's text; None when there is none."""
    body: dict[str, Any] = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    text, usage = "", None
    with contextlib.suppress(httpx2.HTTPError):
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                text += "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
    if usage is None:
        tally.broken, tally.lost = tally.broken + bool(text), tally.lost + (not text)
        return None
    tally.answered += 1
    tally.prompt_tokens += usage["prompt_tokens"]
    tally.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return text


async def converse(url: str, arguments: argparse.Namespace, on_answer: Callable[[Tally], None]) -> Tally:
    """All sessions; each goes on as long as it is answered."""
    tally = Tally()
    room = asyncio.Semaphore(arguments.at_once)
    limits = httpx2.Limits(max_connections=None)

    async def session(number: int) -> None:
        draw = random.Random(number)
        words = [f"rule{n}" for n in range(128)]
        messages = [{"role": "system", "content": " ".join(words)}]
        async with room:
            for turn in range(arguments.turns):
                asked = " ".join(f"s{number}t{turn}w{n}" for n in range(draw.randint(10, 80)))
                messages.append({"role": "user", "content": asked})
                text = await ask(client, messages, arguments.max_tokens, tally)
                on_answer(tally)
                if text is None:
                    return
                messages.append({"role": "assistant", "content": text})

    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(session(number) for number in range(arguments.sessions)))
    return tally


def measure(count: int, arguments: argparse.Namespace, *, kills: bool = False) -> Tally:
    """A run over `count` fresh upstreams."""
    upstream = ["-m", "openk2", "serve", arguments.model] if arguments.model else [__file__, "--serve-simulated"]
    with contextlib.ExitStack() as stack:
        upstreams = [stack.enter_context(server_process(upstream)) for _ in range(count)]
        addresses = [part for url, _ in upstreams for part in ("--upstream", url)]
        url, _ = stack.enter_context(server_process(["-m", "openk2", "serve", *addresses]))
        enough = KILLED_AFTER * arguments.sessions * arguments.turns

        def on_answer(tally: Tally) -> None:
            if kills and tally.answered >= enough and upstreams[0][1].poll() is None:
                upstreams[0][1].send_signal(signal.SIGKILL)

        return asyncio.run(converse(url, arguments, on_answer))


def serve_simulated(port: int) -> None:
    import uvicorn

    from openk2.server.app import create_app

    uvicorn.run(create_app(SimulatedEngine(), sinks=()), port=port, log_level="critical", lifespan="off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstreams", type=int, default=4)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve-simulated", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_simulated:
        serve_simulated(arguments.port)
        return
    one, several = measure(1, arguments), measure(arguments.upstreams, arguments)
    killed = measure(arguments.upstreams, arguments, kills=True)
    kept = several.cached_share / one.cached_share
    print(f"{arguments.sessions} sessions of {arguments.turns} turns, {arguments.at_once} at once")
    print(f"prompt tokens found in a cache: 1 upstream {one.cached_share:.1%}, ", end="")
    print(f"{arguments.upstreams} upstreams {several.cached_share:.1%}: {kept:.1%} of it")
    print(f"one of {arguments.upstreams} killed: {killed.answered} answered, {killed.lost} lost, ", end="")
    print(f"{killed.broken} broken that had begun; {killed.cached_share:.1%} found in a cache")
    if arguments.json is not None:
        runs = {"one": vars(one), "several": vars(several), "killed": vars(killed)}
        arguments.json.write_text(json.dumps({"upstreams": arguments.upstreams, "kept": kept, **runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
