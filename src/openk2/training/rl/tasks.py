"""Prompts with a known answer, cut out of conversations."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from openk2.chat.messages import Message
from openk2.chat.template import ChatTemplate
from openk2.errors import DataError
from openk2.evals.cases import Case, CaseKind, case_from_reference
from openk2.evals.scoring import ASKING
from openk2.training.data import Conversation
from openk2.training.rl.config import RLConfig

Stream = Callable[[int, int], Iterator[Conversation]]
"""(seed, data stage) to conversations."""
MOST_SEARCHED = 300
"""Conversations looked through for each prompt wanted."""


@dataclass(frozen=True)
class Task:
    case: Case
    prompt_ids: tuple[int, ...]
    budget: int
    """Most tokens of an answer."""


class TaskSource:
    """Draws the prompts of each step; which ones is a function of the seed and the step's number."""

    def __init__(self, template: ChatTemplate, stream: Stream, config: RLConfig, *, seed: int, max_length: int) -> None:
        """`max_length`: of prompt and answer together."""
        self.template, self.stream, self.config = template, stream, config
        self.seed, self.max_length = seed, max_length

    def draw(self, step: int, data_stage: int) -> list[Task]:
        """`config.prompts` tasks, of kinds in `config.kinds`' shares, at most one from a conversation.

        Raises DataError when the data hold too few that are short enough.
        """
        config = self.config
        seed = self.seed * 1_000_003 + step
        kinds = random.Random(f"{seed}/kinds").choices(
            list(config.kinds), list(config.kinds.values()), k=config.prompts
        )
        wanted = Counter(kinds)
        tasks: list[Task] = []
        for searched, conversation in enumerate(self.stream(seed, data_stage)):
            if len(tasks) == config.prompts or searched == MOST_SEARCHED * config.prompts:
                break
            for case, answer in turns(conversation, f"rl/{step}-{searched}"):
                task = self._task(case, answer) if wanted[case.kind] > 0 else None
                if task is not None:
                    wanted[case.kind] -= 1
                    tasks.append(task)
                    break
        if missing := sorted(kind for kind, count in wanted.items() if count > 0):
            raise DataError(
                f"rl.kinds: the data have too few prompts of kind {missing[0]!r} with at most "
                f"{config.max_prompt_tokens} tokens (rl.max_prompt_tokens) that leave room for their answer",
                param="rl.kinds",
            )
        return tasks

    def _task(self, case: Case, answer: Message) -> Task | None:
        """None where prompt and budget are too long."""
        prompt = self.template.render(case.messages, case.tools)
        if len(prompt) > self.config.max_prompt_tokens:
            return None
        whole = self.template.render((*case.messages, answer), case.tools, add_generation_prompt=False)
        budget = int(self.config.budget_factor * (len(whole) - len(prompt))) + self.config.budget_tokens
        return Task(case, tuple(prompt), budget) if len(prompt) + budget <= self.max_length else None


def turns(conversation: Conversation, name: str) -> Iterator[tuple[Case, Message]]:
    """Each of the assistant's turns as a case, with the message that is right there.

    Text before any result is an `ask_back` when it asks for something, with tools at hand; else `no_tool` or, without
    tools, `chat`.
    """
    for at, message in enumerate(conversation.messages):
        if message.role == "assistant":
            text_kind: CaseKind = "chat" if not conversation.tools else "no_tool"
            if conversation.tools and ASKING.search(message.text):
                text_kind = "ask_back"
            before = conversation.messages[:at]
            yield case_from_reference(f"{name}-{at}", "rl", conversation.tools, before, message, text_kind), message
