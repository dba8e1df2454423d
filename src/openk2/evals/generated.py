"""Cases out of the training data's held-out part. The generator is given by the caller: evals know no training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from openk2.chat.messages import Message, ToolSpec
from openk2.evals.cases import CALLING_KINDS, Case, CaseKind, case_from_reference

HeldTurn = tuple[Sequence[ToolSpec], Sequence[Message], Message]
"""Tools, messages so far, and the assistant message that is right."""
HeldCases = Callable[[int, int, str], Iterable[HeldTurn]]
"""`held_cases(seed, n, kind)`: `n` turns of conversations of `kind`, such as `openk2.training.data.held_cases`."""

MIX: tuple[tuple[str, CaseKind, int], ...] = (
    ("single", "single", 31),
    ("follow_up", "single", 8),
    ("missing", "single", 3),
    ("parallel_same", "parallel", 9),
    ("parallel_different", "parallel", 10),
    ("chain", "chain", 12),
    ("chain", "answer", 4),
    ("error", "answer", 3),
    ("missing", "ask_back", 10),
    ("no_fit", "no_tool", 7),
    ("chat", "chat", 3),
)
"""Kind of generated conversation, kind of case made of one of its turns, and how many of a hundred cases."""
TURNS_SEARCHED = 20
"""Most turns to look at for each case wanted: not every turn of a conversation is of the wanted kind."""


def generated_cases(held_cases: HeldCases, n: int, seed: int) -> list[Case]:
    """`n` cases of the set `generated`, mixed as `MIX` says; the same for the same seed."""
    counts = [n * percent // 100 for _, _, percent in MIX]
    counts[0] += n - sum(counts)
    return [
        case
        for (source, kind, _), count in zip(MIX, counts, strict=True)
        for case in islice(_of_kind(held_cases, source, kind, seed, TURNS_SEARCHED * count), count)
    ]


def _of_kind(held_cases: HeldCases, source: str, kind: CaseKind, seed: int, turns: int) -> Iterator[Case]:
    text_kind: CaseKind = "chat" if kind in CALLING_KINDS else kind
    for number, (tools, messages, expected) in enumerate(held_cases(seed, turns, source)):
        case = case_from_reference(
            f"generated/{seed}-{source}-{number}", "generated", tools, messages, expected, text_kind
        )
        if case.kind == kind:
            yield case
