"""Which upstream answers, and what happens when one does not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from openk2.chat.events import ChatEvent, Finished, TextDelta
from openk2.chat.messages import Message, Usage
from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedProvider, ScriptedTurn
from openk2.client.failures import NoEndpointError, RateLimitedError, RefusedKeyError, SilenceError, UnreachableError
from openk2.client.gateway import Router, Upstream
from openk2.client.gateway.routing import FREE_LOAD, choose, conversation_key, ranked, text_key
from openk2.errors import (
    ContextLengthError,
    ModelNotFoundError,
    OpenK2Error,
    OverloadedError,
    ProviderError,
    RequestError,
)

from .conftest import ADD, ASK, complete, listed

NAMES = [f"http://10.0.0.{n}/v1" for n in range(4)]


def opening(*texts: str, tools: bool = True) -> ChatRequest:
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return ChatRequest(messages, (ADD,) if tools else ())


def test_all_turns_of_a_conversation_have_one_key() -> None:
    first = conversation_key(opening("S", "u1"))
    assert first == conversation_key(opening("S", "u1", "a1", "u2"))
    others = [opening("S", "u2"), opening("S2", "u1"), opening("S", "u1", tools=False), opening("Su1")]
    assert len({first, *map(conversation_key, others)}) == 5
    assert text_key("x" * 5000) == text_key("x" * 6000) != text_key("y" * 5000)
    assert text_key(list(range(5000))) == text_key(list(range(6000)))


def test_only_the_conversations_of_a_lost_upstream_move() -> None:
    keys = [str(n).encode() for n in range(2000)]
    before = {key: ranked(NAMES, key)[0] for key in keys}
    assert min(Counter(before.values()).values()) > 400, "all have about a fourth"
    after = {key: ranked(NAMES[1:], key)[0] for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != NAMES[0])


def test_the_load_is_bounded() -> None:
    key = b"one conversation that all talk in"
    loads = dict.fromkeys(NAMES, 0)
    for _ in range(400):
        loads[choose(loads, key)] += 1
    assert max(loads.values()) <= 126 and sorted(loads.values())[-3] > 100
    first = ranked(NAMES, key)[0]
    few = dict.fromkeys(NAMES, 0)
    for _ in range(FREE_LOAD):
        few[choose(few, key)] += 1
    assert few[first] == FREE_LOAD, "a few requests at once do not leave their cache"


def two(first: OpenK2Error | ScriptedTurn | str, second: OpenK2Error | str = "second") -> tuple[Router, list[Upstream]]:
    """Upstreams of which the first is asked first."""
    names = ranked(["a", "b"], conversation_key(ASK))
    upstreams = [Upstream(name, ScriptedProvider([turn])) for name, turn in zip(names, (first, second), strict=True)]
    return Router(upstreams), upstreams


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("gone"),
        OverloadedError("draining"),
        RateLimitedError("slowly"),
        ProviderError("500"),
        RefusedKeyError("no"),
        NoEndpointError("what?"),
        ModelNotFoundError("who?"),
    ],
)
async def test_another_upstream_answers(error: OpenK2Error) -> None:
    router, (first, second) = two(error)
    assert (await complete(router)).message.content == "second"
    assert (first.failed, second.answered, first.running, second.running) == (1, 1, 0, 0)
    assert first.is_up is not isinstance(error, UnreachableError)


@pytest.mark.parametrize(
    "error", [RequestError("bad"), ContextLengthError(prompt_tokens=9, max_model_len=8), SilenceError("nothing")]
)
async def test_what_would_be_the_same_elsewhere_is_not_tried_there(error: OpenK2Error) -> None:
    router, (_, second) = two(error)
    with pytest.raises(type(error)):
        await complete(router)
    assert not second.provider.requests  # type: ignore[attr-defined]


async def test_what_has_begun_is_not_begun_again() -> None:
    router, (first, second) = two(ScriptedTurn("half", error=UnreachableError("gone")))
    events: list[ChatEvent] = []
    with pytest.raises(UnreachableError):
        async for event in router.stream(ASK):
            events.append(event)  # noqa: PERF401 - what came before the error is what is tested
    assert events == [TextDelta("half")] and not first.is_up and second.running == 0


async def test_the_last_failure_is_told_and_those_down_are_tried_when_none_is_up() -> None:
    router, (first, second) = two(UnreachableError("one"), UnreachableError("two"))
    with pytest.raises(UnreachableError, match="two"):
        await complete(router)
    assert not router.is_alive and not first.is_up and not second.is_up
    second.provider = ScriptedProvider(["back"])
    first.provider = ScriptedProvider([UnreachableError("one")])
    assert (await complete(router)).message.content == "back"


async def test_closing_the_stream_aborts_it() -> None:
    router, (first, _) = two("long")
    events = router.stream(ASK)
    await anext(events)
    assert first.running == 1
    await events.aclose()
    assert first.running == 0 and first.provider.aborted == 1  # type: ignore[attr-defined]


class Caching:
    """An upstream whose every prompt stays in its cache, in blocks of 8 words."""

    model = "m"

    def __init__(self) -> None:
        self._blocks: set[tuple[str, ...]] = set()
        self.asked = self.cached = 0
        self.is_dead = False

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        words = tuple(word for message in request.messages for word in message.text.split())
        ends = range(8, len(words) + 1, 8)
        cached = 8 * sum(words[:end] in self._blocks for end in ends)
        self._blocks.update(words[:end] for end in ends)
        self.asked, self.cached = self.asked + len(words), self.cached + cached
        for _ in range(3):
            await asyncio.sleep(0)
            if self.is_dead:
                raise UnreachableError("killed")
        yield TextDelta("word " * 20)
        await asyncio.sleep(0)
        yield Finished("stop", Usage(len(words), 20, cached))


async def converse(router: Router, sessions: int, turns: int, on_answer: Callable[[], None] = lambda: None) -> None:
    """Conversations that share their instructions, 32 at a time; turns wait for each other."""
    room = asyncio.Semaphore(32)

    async def session(number: int) -> None:
        draw = random.Random(number)
        messages = [Message("system", "rule " * 64), Message("user", f"session {number} " + "ask " * 30)]
        async with room:
            for turn in range(turns):
                events = await listed(router.stream(ChatRequest(tuple(messages))))
                on_answer()
                text = "".join(event.text for event in events if isinstance(event, TextDelta))
                messages += [
                    Message("assistant", text),
                    Message("user", f"turn {turn} " + "more " * draw.randint(5, 40)),
                ]

    await asyncio.gather(*(session(number) for number in range(sessions)))


async def test_four_upstreams_hit_their_caches_as_one_does() -> None:
    shares = []
    for count in (1, 4):
        caches = [Caching() for _ in range(count)]
        await converse(Router([Upstream(f"u{i}", cache) for i, cache in enumerate(caches)]), sessions=200, turns=5)
        shares.append(sum(cache.cached for cache in caches) / sum(cache.asked for cache in caches))
        assert min(cache.asked for cache in caches) > 0.5 * sum(cache.asked for cache in caches) / count
    assert shares[1] >= 0.9 * shares[0], shares


async def test_one_upstream_is_killed_and_no_request_is_lost() -> None:
    caches = [Caching() for _ in range(4)]
    upstreams = [Upstream(f"u{i}", cache) for i, cache in enumerate(caches)]
    answers = 0

    def on_answer() -> None:
        nonlocal answers
        answers += 1
        caches[2].is_dead = answers >= 200

    await converse(Router(upstreams), sessions=200, turns=4, on_answer=on_answer)
    assert answers == 800 and upstreams[2].failed > 0 and not upstreams[2].is_up
