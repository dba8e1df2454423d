"""How far back a model can read: needle and copy tasks over contexts of given lengths, for any ChatProvider.

context_cases(contexts) -> evaluate -> ContextReport; `openk2 eval context` is the command.
"""

from openk2.evals.context.cases import ANSWER_TOKENS, TASKS, Context, ContextCase, context_cases
from openk2.evals.context.fill import Filler, token_counter
from openk2.evals.context.plan import check_lengths, default_lengths, make_contexts, max_answer_tokens, places
from openk2.evals.context.report import ContextReport

__all__ = [
    "ANSWER_TOKENS",
    "TASKS",
    "Context",
    "ContextCase",
    "ContextReport",
    "Filler",
    "check_lengths",
    "context_cases",
    "default_lengths",
    "make_contexts",
    "max_answer_tokens",
    "places",
    "token_counter",
]
