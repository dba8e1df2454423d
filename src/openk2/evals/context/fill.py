"""How many records make a context of so many tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from openk2.chat.events import collect_async
from openk2.chat.messages import Message
from openk2.chat.provider import ChatProvider, ChatRequest
from openk2.config.sampling import SamplingParams
from openk2.evals.context.cases import TASKS, TOOLS, Context, request

CountTokens = Callable[[ChatRequest], int]
MEASURED = (1, 6)
"""Records of the two contexts that an endpoint is asked about: they fit any window."""
CAUTION = 1.03
"""By so much an estimate is raised: a prompt that does not fit the window is no measurement."""
CHARS_A_TOKEN = 3.0
"""Of an endpoint that tells no usage: a guess, for text with many names and digits."""


async def token_counter(provider: ChatProvider) -> tuple[CountTokens, bool]:
    """How to count the tokens of a prompt, and whether the counts are exact.

    Exact where the provider counts prompts, as one with its own tokenizer does. Else two short requests are made for
    one token each: their usage says what the declarations take, and how many tokens a character is.

    Raises as `ChatProvider.stream` does.
    """
    count = getattr(provider, "count_prompt_tokens", None)
    if count is not None:
        return count, True
    requests = [_request(Context("measured"), records) for records in MEASURED]
    sizes = [_chars(one) for one in requests]
    once = SamplingParams(temperature=0.0, max_tokens=1)
    usages = [(await collect_async(provider.stream(replace(one, sampling=once)))).usage for one in requests]
    tokens = [usage.prompt_tokens for usage in usages]
    per_char = (tokens[1] - tokens[0]) / (sizes[1] - sizes[0])
    if per_char <= 0:
        return lambda one: round(CAUTION * _chars(one) / CHARS_A_TOKEN), False
    return lambda one: round(CAUTION * (tokens[0] + (_chars(one) - sizes[0]) * per_char)), False


def _request(context: Context, records: int) -> ChatRequest:
    """With the longest of the context's last messages."""
    asks = [request(task, entry) for entry in context.entries(records) for task in TASKS]
    return ChatRequest((*context.messages(records), Message("user", max(asks, key=len))), TOOLS)


def _chars(request: ChatRequest) -> int:
    texts = [m.text for m in request.messages] + [c.arguments for m in request.messages for c in m.tool_calls]
    return sum(map(len, texts))


class Filler:
    """Fills contexts by a count of tokens; what one took is the first guess for the next."""

    def __init__(self, count: CountTokens) -> None:
        self.count = count
        self._a_record = 60.0

    def fill(self, context: Context, most: int) -> tuple[int, int]:
        """(records, tokens) of the longest prompt of `context` with at most `most` tokens; 0 records: none fits."""
        empty = self.count(_request(context, 1))
        known = {1: empty}

        def tokens(records: int) -> int:
            if records not in known:
                known[records] = self.count(_request(context, records))
            return known[records]

        if empty > most:
            return 0, empty
        low, high = 1, None  # `low` fits, `high` does not
        while high is None or high - low > 1:
            guess = 1 + int((most - empty) / self._a_record)
            guess = max(low + 1, guess if high is None else min(guess, high - 1))
            if tokens(guess) <= most:
                low = guess
            else:
                high = guess
            if guess > 1:
                self._a_record = max(1.0, (tokens(guess) - empty) / (guess - 1))
        return low, tokens(low)
