"""A discrete-event simulation of gateways before several engines: arrivals, prefix caches, bounded loads, node loss.

Gateways route as the real one does, by the function that the caller gives (`client/gateway/routing.py`'s `choose`), and
know only the requests that went through themselves. An engine keeps prompts in blocks; a conversation's blocks lie one
behind the other, so what it holds of one is a length. Times are seconds, sizes tokens.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from openk2.errors import ConfigError

Choose = Callable[[Mapping[str, int], bytes], str]
"""Requests under way at each engine, and a conversation's key -> the engine."""

BEFORE = 0.1
"""Share of a gateway's work for a request that comes before the engine's."""
CONNECT_FAILURE_S = 0.001
"""A refused connection."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Conversations: each turn's prompt is everything before it and the user's new message."""

    sessions: int
    turns: int
    user_tokens: tuple[int, int]
    """Of a message, evenly from the first to the last."""
    answer_tokens: int
    system_tokens: int
    """Shared by the conversations of one tenant."""
    tenants: int = 1
    at_once: int | None = None
    """Conversations under way, where the next one waits for one to end; None: they arrive by themselves."""
    arrivals_per_s: float = 0.0
    """Of conversations, a Poisson process; without `at_once`."""
    think_s: float = 0.0
    """Mean pause of a user before the next message, exponential."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """How long an engine takes for a request that does not wait."""

    begin_s: float
    """Until the first token, with the whole prompt in the cache."""
    answer_s: float
    """From the first to the last token."""
    per_uncached_token_s: float = 0.0
    slots: int | None = None
    """Requests that it answers at once; others wait. None: any number."""
    jitter: float = 0.1
    """Relative spread of both times, uniform."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    engines: tuple[str, ...]
    service: Service
    gateways: int = 1
    """A request goes through any of them."""
    gateway_s: float = 0.0
    """Processor time of a gateway per request, a tenth before the engine; it does one thing after the other."""
    block_tokens: int = 16
    cache_blocks: int | None = None
    """Of one engine, the least recently used conversation going first; None: all."""
    loss_after: float | None = None
    """Share of all turns that are answered when the first engine dies."""
    back_after_s: float | None = None
    """Until it is there again, with an empty cache."""


@dataclass
class Outcome:
    answered: int = 0
    broken: int = 0
    """Failed after they had begun to stream; the conversation ends."""
    lost: int = 0
    """Failed before that, at every engine."""
    moved: int = 0
    """Answered by another engine than the conversation's turn before."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    """From the request to its first token, of every answered one."""
    answered_by: dict[str, int] = field(default_factory=dict)
    ended_s: float = 0.0

    @property
    def cached_share(self) -> float:
        return self.cached_tokens / max(1, self.prompt_tokens)

    def first_token_quantile_s(self, share: float) -> float:
        ordered = sorted(self.first_token_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    @property
    def imbalance(self) -> float:
        """Requests of the busiest engine over the mean."""
        counts = self.answered_by.values()
        return max(counts, default=0) * len(counts) / max(1, sum(counts))


@dataclass
class _Session:
    number: int
    tenant: int
    key: bytes
    draw: random.Random
    prompt_tokens: int
    turn: int = 0
    last_engine: str | None = None


@dataclass
class _Request:
    number: int
    session: _Session
    gateway: int
    asked_s: float
    cached_tokens: int = 0
    tried: set[str] = field(default_factory=set)
    begun_s: float | None = None
    is_over: bool = False


@dataclass
class _Engine:
    name: str
    is_up: bool = True
    active: dict[int, _Request] = field(default_factory=dict)
    """Requests at it by their number, waiting ones too."""
    busy: int = 0
    waiting: deque[_Request] = field(default_factory=deque)
    held: OrderedDict[tuple[str, int], int] = field(default_factory=OrderedDict)
    """Tenant's or conversation's blocks, the least recently used first."""
    blocks: int = 0


def simulate(workload: Workload, fleet: Fleet, choose: Choose, *, seed: int = 0) -> Outcome:
    """One run until every conversation has ended. The same seed gives the same run.

    Raises ConfigError where no conversation comes.
    """
    if workload.at_once is None and not workload.arrivals_per_s > 0:
        raise ConfigError("conversations must come: give at_once, or arrivals_per_s above 0", param="at_once")
    return _Run(workload, fleet, choose, seed).run()


class _Run:
    def __init__(self, workload: Workload, fleet: Fleet, choose: Choose, seed: int) -> None:
        self.workload, self.fleet, self.choose = workload, fleet, choose
        self.random = random.Random(seed)
        self.engines = {name: _Engine(name) for name in fleet.engines}
        self.loads = [dict.fromkeys(fleet.engines, 0) for _ in range(fleet.gateways)]
        self.seen_up = [dict.fromkeys(fleet.engines, True) for _ in range(fleet.gateways)]
        self.free_at = [0.0] * fleet.gateways
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.now = 0.0
        self.count = 0
        self.next_session = 0
        self.has_died = False
        self.outcome = Outcome(answered_by=dict.fromkeys(fleet.engines, 0))

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (seconds, self.count, do))

    def run(self) -> Outcome:
        if self.workload.at_once is not None:
            for _ in range(min(self.workload.at_once, self.workload.sessions)):
                self.at(0.0, self.open_session)
        else:
            arrival = 0.0
            for _ in range(self.workload.sessions):
                arrival += self.random.expovariate(self.workload.arrivals_per_s)
                self.at(arrival, self.open_session)
        while self.events:
            self.now, _, do = heapq.heappop(self.events)
            do()
        self.outcome.ended_s = self.now
        return self.outcome

    def open_session(self) -> None:
        if self.next_session >= self.workload.sessions:
            return
        number = self.next_session
        self.next_session += 1
        key = hashlib.blake2b(str(number).encode(), digest_size=32).digest()
        draw = random.Random(number)
        session = _Session(number, number % self.workload.tenants, key, draw, self.workload.system_tokens)
        self.ask(session)

    def close_session(self) -> None:
        if self.workload.at_once is not None:
            self.open_session()

    def ask(self, session: _Session) -> None:
        session.prompt_tokens += session.draw.randint(*self.workload.user_tokens)
        session.turn += 1
        gateway = self.random.randrange(self.fleet.gateways)
        request = _Request(self.count, session, gateway, self.now)
        self.at(self.through_gateway(gateway, BEFORE), partial(self.route, request))

    def through_gateway(self, gateway: int, part: float) -> float:
        """When the gateway has done its next part of a request."""
        self.free_at[gateway] = max(self.free_at[gateway], self.now) + self.fleet.gateway_s * part
        return self.free_at[gateway]

    def route(self, request: _Request) -> None:
        loads, seen_up = self.loads[request.gateway], self.seen_up[request.gateway]
        left = [name for name in loads if name not in request.tried]
        if not left:
            self.outcome.lost += 1
            self.close_session()
            return
        able = [name for name in left if seen_up[name]] or left
        name = self.choose({one: loads[one] for one in able}, request.session.key)
        request.tried.add(name)
        engine = self.engines[name]
        if not engine.is_up:
            seen_up[name] = False
            self.at(self.now + CONNECT_FAILURE_S, partial(self.route, request))
            return
        loads[name] += 1
        engine.active[request.number] = request
        request.cached_tokens = self.look_up(engine, request.session)
        if self.fleet.service.slots is not None and engine.busy >= self.fleet.service.slots:
            engine.waiting.append(request)
        else:
            self.serve(engine, request)

    def look_up(self, engine: _Engine, session: _Session) -> int:
        """Tokens of the prompt that are held; the whole prompt is from then on."""
        size, cached = self.fleet.block_tokens, 0
        shared = self.workload.system_tokens // size
        own = session.prompt_tokens // size - shared
        for key, blocks in ((("tenant", session.tenant), shared), (("session", session.number), own)):
            held = engine.held.pop(key, 0)
            cached += min(held, blocks)
            engine.held[key] = max(held, blocks)
            engine.blocks += max(held, blocks) - held
        while self.fleet.cache_blocks is not None and engine.blocks > self.fleet.cache_blocks:
            engine.blocks -= engine.held.popitem(last=False)[1]
        return cached * size

    def serve(self, engine: _Engine, request: _Request) -> None:
        engine.busy += 1
        service = self.fleet.service
        spread = 1 + service.jitter * self.random.uniform(-1, 1)
        uncached = request.session.prompt_tokens - request.cached_tokens
        begun = self.now + spread * (service.begin_s + uncached * service.per_uncached_token_s)
        self.at(begun, partial(self.begin, request))
        self.at(begun + spread * service.answer_s, partial(self.leave, engine, request))

    def begin(self, request: _Request) -> None:
        if not request.is_over:
            request.begun_s = self.now

    def leave(self, engine: _Engine, request: _Request) -> None:
        """The engine has sent everything; the gateway may not have read it yet."""
        if request.is_over:
            return
        request.is_over = True
        del engine.active[request.number]
        engine.busy -= 1
        if engine.waiting:
            self.serve(engine, engine.waiting.popleft())
        self.at(self.through_gateway(request.gateway, 1 - BEFORE), partial(self.answer, engine, request))

    def answer(self, engine: _Engine, request: _Request) -> None:
        self.loads[request.gateway][engine.name] -= 1
        session, outcome = request.session, self.outcome
        outcome.answered += 1
        outcome.answered_by[engine.name] += 1
        outcome.moved += session.last_engine not in (None, engine.name)
        outcome.prompt_tokens += session.prompt_tokens
        outcome.cached_tokens += request.cached_tokens
        outcome.first_token_s.append((request.begun_s or self.now) - request.asked_s)
        session.last_engine = engine.name
        session.prompt_tokens += self.workload.answer_tokens
        if session.turn < self.workload.turns:
            pause = self.random.expovariate(1 / self.workload.think_s) if self.workload.think_s else 0.0
            self.at(self.now + pause, partial(self.ask, session))
        else:
            self.close_session()
        self.maybe_lose()

    def maybe_lose(self) -> None:
        share, turns = self.fleet.loss_after, self.workload.sessions * self.workload.turns
        if share is None or self.has_died or self.outcome.answered < share * turns:
            return
        self.has_died = True
        engine = self.engines[self.fleet.engines[0]]
        engine.is_up = False
        for request in list(engine.active.values()):
            self.break_off(engine, request)
        engine.active.clear()
        engine.waiting.clear()
        engine.held.clear()
        engine.busy = engine.blocks = 0
        if self.fleet.back_after_s is not None:
            self.at(self.now + self.fleet.back_after_s, partial(self.come_back, engine))

    def break_off(self, engine: _Engine, request: _Request) -> None:
        self.loads[request.gateway][engine.name] -= 1
        self.seen_up[request.gateway][engine.name] = False
        request.is_over = True
        if request.begun_s is not None:
            self.outcome.broken += 1
            self.close_session()
            return
        again = _Request(self.count, request.session, request.gateway, request.asked_s, tried=request.tried)
        self.at(self.now + CONNECT_FAILURE_S, partial(self.route, again))

    def come_back(self, engine: _Engine) -> None:
        engine.is_up = True
        for seen_up in self.seen_up:
            seen_up[engine.name] = True
